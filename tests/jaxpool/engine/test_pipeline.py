"""Stages on fake devices: the same scores as on one device, whatever the family, whatever else is shared."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from transformers import AutoConfig

from jaxpool.engine.buckets import Bucket
from jaxpool.engine.engine import Engine, Row
from jaxpool.engine.opening import open_engine
from jaxpool.engine.pipeline import Pipeline
from jaxpool.errors import ValidationError

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
    "qwen2": {**GROUPED, "num_hidden_layers": 3},
    "mixtral": {**GROUPED, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {**GROUPED, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": 8},
    # Two periods of four layers: Mamba and attention, dense and mixtures of experts.
    "jamba": {**GROUPED, "num_hidden_layers": 8, "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 2,
              "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    # One layer without a norm, then periods of three.
    "modernbert": {**SMALL, "num_hidden_layers": 7, "global_attn_every_n_layers": 3, "local_attention": 8,
                   "max_position_embeddings": 64, "cls_token_id": 1, "sep_token_id": 2},
}  # fmt: skip
TABLE = [
    ("bert", (2, 2, 2)),
    ("bert", (4, 1, 1)),
    ("albert", (3, 1, 1)),
    ("mpnet", (2, 2, 1)),
    ("deberta-v2", (2, 1, 2)),
    ("gpt2", (3, 1, 2)),
    ("llama", (4, 2, 1)),
    ("llama", (2, 4, 1)),
    ("qwen2", (2, 1, 4)),
    ("mixtral", (2, 2, 2)),
    ("gemma2", (2, 2, 1)),
    ("jamba", (2, 2, 2)),
    ("modernbert", (3, 2, 1)),
]
"""Family; stages, tensor and data parallelism."""
PADDED, PACKED = Bucket(4, 24), Bucket(4, 32, 4)
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


def computed(engine: Engine) -> np.ndarray:
    rows = [Row(ids, activated=False) for ids in tiny.prompts(80, LENGTHS)]
    futures = [engine.submit(rows, PADDED)]
    if engine.spec.family.packs:
        futures.append(engine.submit(rows, PACKED, PLACES))
    return np.stack([future.result() for future in futures])


@pytest.mark.parametrize(("family", "mesh"), TABLE, ids=lambda value: str(value).replace(" ", ""))
def test_stages_give_the_scores_of_one_device(folders: Path, family: str, mesh: tuple[int, int, int]) -> None:
    folder = folder_of(folders, family)
    one, many = opened(folder), opened(folder, *mesh)
    try:
        expected, found = computed(one), computed(many)
        assert np.ptp(expected, axis=1).min() > 1e-3, "texts differ"
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert many.compiles == len(found), "a set of programs per bucket"
    finally:
        one.close()
        many.close()


def test_weights_lie_on_their_stage_alone(folders: Path) -> None:
    engine = opened(folder_of(folders, "modernbert"), 3, 2, 1)
    pipeline = engine.programs
    assert isinstance(pipeline, Pipeline)
    devices = [set(stage.mesh.devices.flat) for stage in pipeline.stages]
    assert len(set.union(*devices)) == 6, "no device serves two stages"
    leaves = iter(engine.leaves)
    for stage, own in zip(pipeline.stages, devices):
        for path in stage.leaves:
            assert next(leaves).sharding.device_set == own, path
    whole = sum(leaf.size for leaf in jax.tree.leaves(opened_leaves(folder_of(folders, "modernbert"))))
    assert sum(leaf.size for leaf in engine.leaves) == whole, "every parameter lies somewhere, and none twice"
    assert [(stage.first, stage.end) for stage in pipeline.stages] == [(0, 1), (1, 4), (4, None)]
    named = [{path.split(".")[1] for path in stage.leaves if path.startswith("backbone")} for stage in pipeline.stages]
    assert "tokens" in named[0]
    assert named[1] == {"layers"}
    assert "head.out.kernel" in pipeline.stages[2].leaves
    engine.close()


def opened_leaves(folder: Path) -> list[jax.Array]:
    engine = opened(folder)
    leaves = engine.leaves
    engine.close()
    return leaves
