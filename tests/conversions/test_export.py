"""The way back to Hugging Face: what export writes, load (and transformers) read."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny

from jaxpool.errors import CheckpointError, WeightsError
from jaxpool_conversions.export import export, save_checkpoint
from jaxpool_conversions.heads import find_head
from jaxpool_conversions.load import load
from jaxpool_conversions.output_folder import new_folder
from jaxpool_conversions.reader import Reader
from jaxpool_conversions.rules import HeadSource, Part, Rule, Transpose

HEAD = HeadSource("score.weight", "score.bias", 4)


def random_leaves(made: SimpleNamespace, seed: int, dtype: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal(target.shape).astype(dtype) for path, target in made.targets().items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_load_is_the_inverse_of_export(tmp_path: Path, made: SimpleNamespace, seed: int, dtype: Any) -> None:
    leaves = random_leaves(made, seed, dtype)
    save_checkpoint(tmp_path / "out", export(leaves, made.table, HEAD), {})
    with Reader(tmp_path / "out") as reader:
        head = find_head(reader, made.table, num_labels=4, width=made.width)
        assert head == HEAD
        again = load(reader, made.table, head, made.targets(dtype))
    assert again.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(np.asarray(again[path]), leaf, path)


def test_export_is_the_inverse_of_load(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    with Reader(made.write(tmp_path, tensors)) as reader:
        leaves = load(reader, made.table, HEAD, made.targets())
    back = export(leaves, made.table, HEAD)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, name)
        assert back[name].flags.c_contiguous, name


FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
             "intermediate_size": 24, "max_position_embeddings": 20},
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 20,
             "bos_token_id": 1, "eos_token_id": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("form", ["shards", "bin"])
def test_checkpoints_of_transformers_come_back_as_they_were(tmp_path: Path, kind: str, form: str) -> None:
    """Sharded, and as torch writes it: loaded, exported, equal name by name. ``test_names.py`` has every family."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    folder = tiny.save(tmp_path / "in", kind, num_labels=3, **FAMILIES[kind])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    source = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    (folder / "model.safetensors").unlink()
    if form == "shards":
        model.save_pretrained(folder, max_shard_size="4KB")
        assert (folder / "model.safetensors.index.json").exists()
    if form == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")

    leaves, table, head = tiny.parameters(folder)
    back = export(leaves, table, head)
    assert back.keys() == source.keys()
    for name, tensor in source.items():
        np.testing.assert_array_equal(back[name], tensor, name)


def test_a_head_from_rows_is_written_as_an_ordinary_head(made: SimpleNamespace) -> None:
    leaves = random_leaves(made, 0, np.float32) | {"head.out.kernel": np.ones((made.width, 1), np.float32)}
    leaves["head.out.bias"] = np.zeros(1, np.float32)
    rows = HeadSource("lm_head.weight", None, 1, rows=(1, 2), method="from_2_way_softmax")
    back = export(leaves, made.table, rows)
    assert back["score.weight"].shape == (1, made.width)
    assert not {"lm_head.weight", "score.bias"} & back.keys()


def test_a_bias_learnt_since_is_written(made: SimpleNamespace) -> None:
    leaves = random_leaves(made, 0, np.float32)
    back = export(leaves, made.table, replace(HEAD, bias=None))
    np.testing.assert_array_equal(back["score.bias"], leaves["head.out.bias"])


def test_a_head_beside_the_backbone_carries_no_prefix(made: SimpleNamespace) -> None:
    dense = (Rule("classifier.dense.weight", "head.dense.kernel", (Transpose(),)),)
    table = replace(made.table, head=dense, head_names=("classifier.out_proj",))
    back = export(random_leaves(made, 0, np.float32), table, HeadSource("classifier.out_proj.weight", None, 4))
    assert "classifier.dense.weight" in back
    assert {"classifier.out_proj.weight", "classifier.out_proj.bias"} <= back.keys()


def test_parameters_that_no_rule_writes(made: SimpleNamespace) -> None:
    leaves = random_leaves(made, 0, np.float32) | {"backbone.extra": np.zeros(3, np.float32)}
    with pytest.raises(WeightsError, match=r"1 parameters have no rule.*backbone\.extra"):
        export(leaves, made.table, HEAD)


def test_a_part_that_is_missing(made: SimpleNamespace) -> None:
    leaves = random_leaves(made, 0, np.float32)
    del leaves["backbone.layers.k.kernel"]
    with pytest.raises(WeightsError, match=r"net\.layer\.0\.qkv\.weight needs 3 parts"):
        export(leaves, made.table, HEAD)


def test_a_step_order_without_a_way_back(made: SimpleNamespace) -> None:
    odd = Rule("embed.weight", "backbone.tokens.table", (Transpose(), Part(0, 0, 2)))
    with pytest.raises(WeightsError, match="no way back"):
        export({"backbone.tokens.table": np.zeros((2, 2))}, replace(made.table, rules=(odd,)), HEAD)


def test_transposed_views_are_written_as_they_read(tmp_path: Path) -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_checkpoint(tmp_path / "out", {"w": matrix.T}, {})
    with Reader(tmp_path / "out") as reader:
        np.testing.assert_array_equal(reader.read("w"), matrix.T)


# --- the folder ----------------------------------------------------------------------------------------------------


def test_the_folder_is_complete_and_readable_by_others(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "vocab.txt").write_text("a")
    (source / "config.json").write_text('{"old": true}')
    (source / "model.safetensors.index.json").write_text("{}")
    (source / "jaxpool.json").write_text("{}")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    save_checkpoint(tmp_path / "out", {"w": np.ones(3, np.float32)}, {"new": True}, source)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"new": True}
    fresh = tmp_path / "fresh"
    fresh.touch()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode == fresh.stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out", "fresh"}


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"out exists already"):
        save_checkpoint(tmp_path / "out", {}, {})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save_checkpoint(tmp_path / "out", {"w": np.ones(1, np.float32)}, {})
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "out") as partial:
            (partial / "half").write_text("written")
            assert not (tmp_path / "out").exists()
            raise stop

    with pytest.raises(stop):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_parent_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "out", {}, {})


@pytest.mark.parametrize("what", ["export", "store"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    """The disk is played by a limit on the size of files, in a process of its own."""
    write = {
        "export": "save_checkpoint(out, {'w': np.ones(1 << 20, np.float32)}, {})",
        "store": "write_store(out, {'w': np.ones(1 << 20, np.float32)}, HeadSource('w', None, 1), {}, source)",
    }[what]
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from jaxpool.errors import CheckpointError
        from jaxpool_conversions.export import save_checkpoint
        from jaxpool_conversions.rules import HeadSource
        from jaxpool_conversions.store import write_store
        out, source = Path(sys.argv[1]) / "out", Path(sys.argv[1]) / "source"
        source.mkdir()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            {write}
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("out cannot be written: File too large; nothing was left behind")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # only over there
