"""Stages on fake devices: the same scores as on one device, whatever the family, whatever else is shared."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from parity_cases import CASES, FIRST
from patience import wait_until
from transformers import AutoConfig

from jaxpool import LLM
from jaxpool.checkpoints.spec import resolve
from jaxpool.commands.main import main
from jaxpool.engine import sharding
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.engine import Engine, Row
from jaxpool.engine.opening import open_engine
from jaxpool.engine.pipeline import Pipeline
from jaxpool.engine.programs import abstract
from jaxpool.errors import ValidationError
from jaxpool_conversions.rules import HeadSource

SMALL = {"vocab_size": 80, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "num_hidden_layers": 4, "max_position_embeddings": 64},
    "albert": {**SMALL, "num_hidden_layers": 3, "embedding_size": 8, "max_position_embeddings": 64},
    "mpnet": {**SMALL, "num_hidden_layers": 3, "max_position_embeddings": 64},
    "deberta-v2": {**SMALL, "num_hidden_layers": 3, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
                   "position_buckets": 8, "conv_kernel_size": 0, "max_position_embeddings": 64},
    "gpt2": {"vocab_size": 80, "n_embd": 16, "n_layer": 5, "n_head": 4, "n_positions": 64},
    "llama": {**GROUPED, "num_hidden_layers": 4},
    # Devices that share it divide neither its key heads nor its vocabulary.
    "qwen2": {**GROUPED, "vocab_size": 81, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3,
              "num_hidden_layers": 3},
    "mixtral": {**GROUPED, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    # Two periods of four layers: Mamba and attention, dense and mixtures of experts.
    "jamba": {**GROUPED, "num_hidden_layers": 8, "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 2,
              "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    # One layer without a norm, then periods of three.
    "modernbert": {**SMALL, "num_hidden_layers": 7, "global_attn_every_n_layers": 3, "local_attention": 8,
                   "max_position_embeddings": 64, "cls_token_id": 1, "sep_token_id": 2},
}  # fmt: skip
PADDED, PACKED = Bucket(4, 24), Bucket(4, 32, 4)
TABLE = [
    ("bert", (2, 2, 2), (PADDED, PACKED)),
    ("albert", (3, 1, 1), (PACKED,)),
    ("mpnet", (2, 2, 1), (PACKED,)),
    ("deberta-v2", (2, 1, 2), (PADDED,)),
    ("gpt2", (3, 1, 2), (PACKED,)),
    ("llama", (4, 2, 1), (PADDED, PACKED)),
    ("llama", (2, 4, 1), (PADDED,)),
    ("qwen2", (2, 2, 1), (PACKED,)),
    ("mixtral", (2, 2, 2), (PACKED,)),
    ("jamba", (2, 2, 2), (PACKED,)),
    ("modernbert", (3, 2, 1), (PACKED,)),
]
"""Family; stages, tensor and data parallelism; shapes."""
LENGTHS = (1, 5, 24, 13)
PLACES = np.array([0, 0, 1, 3])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def folder_of(folders: Path, family: str) -> Path:
    if not (folders / family).exists():
        tiny.save(folders / family, family, num_labels=3, **FAMILIES[family])
    return folders / family


def opened(folder: Path, stages: int = 1, tensor: int = 1, data: int = 1, **options: Any) -> Engine:
    return open_engine(
        folder,
        AutoConfig.from_pretrained(folder),
        pipeline_parallel_size=stages,
        tensor_parallel_size=tensor,
        data_parallel_size=data,
        max_model_len=32,
        **options,
    )


def computed(engine: Engine, shapes: Sequence[Bucket]) -> np.ndarray:
    rows = [Row(ids, activated=False) for ids in tiny.prompts(80, LENGTHS)]
    futures = [engine.submit(rows, bucket, PLACES if bucket == PACKED else None) for bucket in shapes]
    return np.stack([future.result() for future in futures])


@pytest.mark.parametrize(("family", "mesh", "shapes"), TABLE, ids=[f"{one}-{mesh}" for one, mesh, _ in TABLE])
def test_stages_give_the_scores_of_one_device(
    folders: Path, family: str, mesh: tuple[int, int, int], shapes: tuple[Bucket, ...]
) -> None:
    folder = folder_of(folders, family)
    with closing(opened(folder)) as one, closing(opened(folder, *mesh)) as many:
        expected, found = computed(one, shapes), computed(many, shapes)
        assert np.ptp(expected, axis=1).min() > 1e-3, "texts differ"
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert many.compiles == len(shapes), "a set of programs per bucket"


def test_weights_lie_on_their_stage_alone(folders: Path) -> None:
    folder = folder_of(folders, "modernbert")
    with closing(opened(folder)) as one:
        whole = sum(leaf.size for leaf in one.leaves)
    with closing(opened(folder, 3, 2)) as engine:
        pipeline = engine.programs
        assert isinstance(pipeline, Pipeline)
        devices = [set(stage.mesh.devices.flat) for stage in pipeline.stages]
        assert len(set.union(*devices)) == 6, "no device serves two stages"
        leaves = iter(engine.leaves)
        for stage, own in zip(pipeline.stages, devices):
            for path in stage.leaves:
                assert next(leaves).sharding.device_set == own, path
        assert sum(leaf.size for leaf in engine.leaves) == whole, "every parameter lies somewhere, and none twice"
        # One layer has no norm, the others repeat in periods of three.
        assert [(stage.first, stage.end) for stage in pipeline.stages] == [(0, 1), (1, 4), (4, None)]
        rooms = [
            {path.split(".")[1] for path in stage.leaves if path.startswith("backbone")} for stage in pipeline.stages
        ]
        assert "tokens" in rooms[0]
        assert rooms[1] == {"layers"}
        assert "head.out.kernel" in pipeline.stages[2].leaves


@pytest.mark.parametrize(
    "model_type", ["esm", "convbert", "mobilebert", "deberta", "longformer", "bloom", "deepseek_v3"]
)
def test_whoever_scans_its_layers_can_be_cut(model_type: str) -> None:
    name, shape = CASES[FIRST[model_type]]
    config = AutoConfig.for_model(name, **{"pad_token_id": 0, **shape})
    config.architectures = [tiny.classifier(config).__name__]
    spec = resolve(config, lambda _family, labels, _width: HeadSource("weight", "bias", labels or 2))
    model = abstract(spec)
    pipeline = Pipeline(model, spec, sharding.make_mesh(stages=2))
    assert set().union(*(stage.leaves for stage in pipeline.stages)) == sharding.parameters(model).keys()


def test_a_stage_reads_its_own_layers_only(folders: Path) -> None:
    folder = folder_of(folders, "llama")
    with closing(opened(folder, 4)) as engine:
        pipeline = engine.programs
    assert isinstance(pipeline, Pipeline)
    path, asked = "backbone.layers.mlp.down.kernel", []

    def read(index: Any) -> np.ndarray:
        asked.append(index[0])
        return np.zeros((index[0].stop - index[0].start, 24, 16), np.float32)

    parts = pipeline.place_leaf(path, jax.ShapeDtypeStruct((4, 24, 16), np.float32), read)
    assert [part.shape for part in parts] == [(1, 24, 16)] * 4
    assert sorted((one.start, one.stop) for one in asked) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_converted_store_opens_in_stages(folders: Path, tmp_path: Path) -> None:
    folder = folder_of(folders, "llama")
    assert main(["convert", str(folder), str(tmp_path / "store")]) == 0
    with closing(opened(folder)) as one, closing(opened(tmp_path / "store", 2)) as many:
        np.testing.assert_allclose(computed(many, (PADDED,)), computed(one, (PADDED,)), atol=2e-5)


def test_a_pipeline_made_ahead_compiles_nothing_more(folders: Path) -> None:
    with LLM(
        str(folder_of(folders, "bert")),
        pipeline_parallel_size=2,
        skip_tokenizer_init=True,
        max_model_len=16,
        max_num_batched_tokens=32,
        compile="ahead",
    ) as llm:
        ready = llm.engine.begun
        assert ready == llm.engine.compiles > 0
        outputs = llm.classify(tiny.prompts(80, (1, 3, 16, 9, 4, 12)), use_tqdm=False)
        assert len(outputs) == 6
        assert llm.engine.begun == ready


@pytest.mark.parametrize("stages", [1, 3])
def test_batches_under_way_are_one_more_than_stages(folders: Path, stages: int) -> None:
    with closing(opened(folder_of(folders, "gpt2"), stages)) as engine:
        computed(engine, (PADDED,))
        row, gate = [Row(ids) for ids in tiny.prompts(80, (5,))], threading.Event()
        first = engine.submit(row, PADDED)
        first.add_done_callback(lambda _: gate.wait())  # the fetch thread stays there
        others = [engine.submit(row, PADDED) for _ in range(2 * stages + 2)]
        wait_until(lambda: sum(one.running() for one in others) == stages + 1)
        assert not others[-1].running()
        gate.set()
        for one in others:
            assert one.result().shape == (1, 3)


def test_a_batch_that_fails_in_a_later_stage_fails_alone(folders: Path) -> None:
    with closing(opened(folder_of(folders, "gpt2"), 3)) as engine:
        computed(engine, (PADDED,))
        row = [Row(ids) for ids in tiny.prompts(80, (5,))]
        good = engine.leaves[-1]
        engine.leaves[-1] = good[:0]  # of the last stage: of a shape that its program does not take
        with pytest.raises((TypeError, ValueError)):
            engine.submit(row, PADDED).result()
        engine.leaves[-1] = good
        assert engine.submit(row, PADDED).result().shape == (1, 3)


REFUSED = {
    "funnel": {"vocab_size": 80, "block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24},
    "bart": {"vocab_size": 80, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
             "max_position_embeddings": 64, "eos_token_id": 2},
}  # fmt: skip


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_do_not_scan_are_refused_by_name(family: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, family, num_labels=3, **REFUSED[family])
    with pytest.raises(ValidationError, match=rf"(?i)pipeline_parallel_size=2 is not possible for {family}\w+: its"):
        opened(tmp_path, 2)


def test_more_stages_than_there_are_places_to_cut_are_refused(folders: Path) -> None:
    with pytest.raises(
        ValidationError, match="8 layers can be cut into at most 2 stages: they repeat from layers 0, 4"
    ):
        opened(folder_of(folders, "jamba"), 3)
    with pytest.raises(ValidationError, match=r"pipeline_parallel_size=4 asks for 16 devices; this machine has 8"):
        opened(folder_of(folders, "llama"), 4, 2, 2)
    with pytest.raises(ValidationError, match="pipeline_parallel_size=0 asks for"):
        opened(folder_of(folders, "llama"), 0)


def test_training_in_stages_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "texts.jsonl", "out", "--pipeline-parallel-size", "2"])
    assert "training runs on one device" in capsys.readouterr().err
