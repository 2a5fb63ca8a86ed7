"""The converted store: the same parameters, opened without work; damage is one clear error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpool.errors import CheckpointError
from jaxpool_conversions import store
from jaxpool_conversions.rules import HeadSource
from jaxpool_conversions.store import fingerprint, is_store, open_store, read_head, read_manifest, write_store

HEAD = HeadSource("lm_head.weight", None, 4, rows=(1, 2, 3, 5), method="no_post_processing")


OPEN = """
import sys, jax, numpy as np
from jaxpool_conversions.store import open_store, read_manifest
folder = sys.argv[1]
shapes = read_manifest(folder)["parameters"]
targets = {path: jax.ShapeDtypeStruct(tuple(shape), np.dtype(kind)) for path, (kind, shape) in shapes.items()}
open_store(folder, targets)
assert not [name for name in sys.modules if name.startswith(("orbax", "tensorstore", "safetensors"))]
"""


def leaves(made: SimpleNamespace, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.standard_normal(target.shape).astype(dtype) for path, target in made.targets().items()}


@pytest.fixture
def source(tmp_path: Path, made: SimpleNamespace) -> Path:
    folder = made.write(tmp_path / "source", made.tensors())
    (folder / "config.json").write_text('{"model_type": "net"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def stored(tmp_path: Path, made: SimpleNamespace, source: Path) -> Path:
    write_store(tmp_path / "store", leaves(made), HEAD, {"table": fingerprint(made.table)}, source)
    return tmp_path / "store"


def check(folder: Path, made: SimpleNamespace, wanted: dict[str, np.ndarray], targets: Any = None) -> None:
    got = open_store(folder, targets or made.targets())
    assert list(got) == list(made.targets())
    for path, value in wanted.items():
        np.testing.assert_array_equal(np.asarray(got[path]), value, path)


def test_what_is_written_is_opened(stored: Path, made: SimpleNamespace, source: Path) -> None:
    assert is_store(stored)
    assert not is_store(source)
    check(stored, made, leaves(made))
    assert read_head(stored) == HEAD
    manifest = read_manifest(stored)
    assert manifest["source"]["name"] == "source"
    assert list(manifest["source"]["files"]) == ["model.safetensors"]
    assert manifest["meta"]["table"] == fingerprint(made.table) != fingerprint(replace(made.table, prefix=""))
    assert {path.name for path in stored.iterdir()} == {"config.json", "tokenizer.json", "params", "jaxpool.json"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_types_are_kept_and_cast_if_asked(tmp_path: Path, made: SimpleNamespace, source: Path, dtype: Any) -> None:
    values = leaves(made, dtype)
    write_store(tmp_path / "store", values, HEAD, {}, source)
    check(tmp_path / "store", made, values, made.targets(dtype))
    check(tmp_path / "store", made, {path: v.astype(np.float32) for path, v in values.items()})


def test_orbax_itself_reads_it(stored: Path, made: SimpleNamespace) -> None:
    import orbax.checkpoint as ocp

    with store._quiet_orbax(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(stored / "params")
    for path, value in leaves(made).items():
        np.testing.assert_array_equal(np.asarray(tree[path]), value, path)


@pytest.mark.parametrize("how", [{"use_ocdbt": True}, {"use_ocdbt": False, "use_zarr3": True}, {"use_ocdbt": False}])
def test_another_layout_of_orbax_is_restored_by_orbax(stored: Path, made: SimpleNamespace, how: dict[str, Any]) -> None:
    """Compressed, chunked or in zarr 3: slower, but the same."""
    import orbax.checkpoint as ocp

    shutil.rmtree(stored / "params")
    values = leaves(made)
    with store._quiet_orbax(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**how)) as checkpointer:
        checkpointer.save(stored / "params", args=ocp.args.PyTreeSave(values))
    check(stored, made, values)
    bf16 = {path: value.astype(ml_dtypes.bfloat16) for path, value in values.items()}
    check(stored, made, bf16, made.targets(ml_dtypes.bfloat16))


def test_opening_imports_no_orbax_and_copies_nothing(stored: Path, made: SimpleNamespace) -> None:
    subprocess.run([sys.executable, "-c", OPEN, str(stored)], check=True)
    mapped = store._map(stored / "params" / "backbone.tokens.table", (made.vocab, made.width))
    assert mapped is not None
    leaf = jax.make_array_from_callback(
        mapped.shape, jax.sharding.SingleDeviceSharding(jax.devices()[0]), lambda _: mapped
    )
    assert leaf.unsafe_buffer_pointer() == mapped.ctypes.data


def test_a_donated_parameter_does_not_change_the_file(stored: Path, made: SimpleNamespace) -> None:
    opened = open_store(stored, made.targets())
    shapes = {path: leaf.shape for path, leaf in opened.items()}
    added = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(opened)
    assert {path: leaf.shape for path, leaf in added.items()} == shapes
    check(stored, made, leaves(made))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices, which the suite's configuration fakes")
def test_straight_to_the_given_shardings(stored: Path, made: SimpleNamespace) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    specs = {"backbone.tokens.table": P("model", None), "backbone.layers.up.kernel": P(None, "data", "model")}
    targets = {
        path: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=NamedSharding(mesh, specs.get(path, P())))
        for path, t in made.targets().items()
    }
    check(stored, made, leaves(made), targets)
    for path, leaf in open_store(stored, targets).items():
        assert leaf.sharding == targets[path].sharding


# --- damage --------------------------------------------------------------------------------------------------------


def refused(folder: Path, made: SimpleNamespace, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_store(folder, made.targets())
    for word in (*words, "jaxpool convert"):
        assert word in str(caught.value), str(caught.value)


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / "jaxpool.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_another_format_version(stored: Path, made: SimpleNamespace) -> None:
    rewrite(stored, format=99)
    refused(stored, made, "format 99", "reads 2")


def test_a_store_made_by_other_rules(stored: Path, made: SimpleNamespace) -> None:
    assert open_store(stored, made.targets(), made.table)
    with pytest.raises(CheckpointError, match=r"other conversion rules.*jaxpool convert"):
        open_store(stored, made.targets(), replace(made.table, rules=made.table.rules[1:]))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 2, "parameters": 3, "head": {}}'])
def test_a_damaged_manifest(stored: Path, made: SimpleNamespace, text: str) -> None:
    (stored / "jaxpool.json").write_text(text)
    refused(stored, made, "jaxpool.json", "damaged")


def test_a_head_of_unknown_fields(stored: Path) -> None:
    rewrite(stored, head={"weight": "w", "colour": "red"})
    with pytest.raises(CheckpointError, match=r"jaxpool\.json is damaged.*convert"):
        read_head(stored)


def test_another_model(stored: Path, made: SimpleNamespace) -> None:
    targets = made.targets(**{"backbone.layers.up.kernel": (3, 8, 13), "backbone.new": (1,)})
    with pytest.raises(
        CheckpointError, match=r"2 differ, the first is backbone\.layers\.up\.kernel \(stored \(3, 8, 12\)"
    ):
        open_store(stored, targets)


@pytest.mark.parametrize("size", [0, 10, 10_000])
def test_a_parameter_of_the_wrong_size(stored: Path, made: SimpleNamespace, size: int) -> None:
    (stored / "params" / "backbone.layers.up.kernel" / "0.0.0").write_bytes(bytes(size))
    refused(stored, made, "backbone.layers.up.kernel", f"{size} bytes where 1152 are needed")


@pytest.mark.parametrize("name", ["0.0.0", ".zarray"])
def test_a_missing_file(stored: Path, made: SimpleNamespace, name: str) -> None:
    (stored / "params" / "backbone.layers.up.kernel" / name).unlink()
    refused(stored, made, "backbone.layers.up.kernel", "missing or damaged")


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_damaged_layout(stored: Path, made: SimpleNamespace, content: str) -> None:
    (stored / "params" / "_METADATA").write_text(content)
    refused(stored, made, "_METADATA", "damaged")


def test_a_layout_that_orbax_cannot_restore(stored: Path) -> None:
    """In a process of its own: Orbax drops its own coroutines, which the next test would be blamed for."""
    path = stored / "params" / "_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_ocdbt": True}))
    done = subprocess.run([sys.executable, "-c", OPEN, str(stored)], capture_output=True, text=True, check=False)
    assert "CheckpointError" in done.stderr
    assert "params cannot be restored" in done.stderr
    assert "jaxpool convert" in done.stderr


def test_an_existing_folder_is_left_alone(stored: Path, made: SimpleNamespace, source: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        write_store(stored, leaves(made), HEAD, {}, source)
    check(stored, made, leaves(made))
