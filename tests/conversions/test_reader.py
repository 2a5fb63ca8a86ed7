"""Reading folders of weights: what is found, what is read, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpool.errors import CheckpointError
from jaxpool_conversions.reader import Reader

VALUES = {
    "matrix": np.arange(24, dtype=np.float32).reshape(4, 6),
    "half": np.arange(6, dtype=np.float16),
    "brain": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "counts": np.arange(5, dtype=np.int64),
    "scalar": np.array(3.5, np.float32),
    "nothing": np.empty((0, 3), np.float32),
}


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_names_shapes_dtypes_and_values(tmp_path: Path, made: SimpleNamespace, shards: int) -> None:
    with Reader(made.write(tmp_path, VALUES, shards)) as reader:
        assert reader.names() == VALUES.keys()
        assert len(reader.files) == shards
        for name, value in VALUES.items():
            assert reader.shape(name) == value.shape
            assert reader.dtype(name) == value.dtype
            got = reader.read(name)
            assert got.dtype == value.dtype
            np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize(
    "index", [np.s_[1:3, :], np.s_[:, 2:5], np.s_[3:4, 5:6], np.s_[2:2, :], np.s_[-2:, :-1], np.s_[0:99, :]]
)
def test_reads_slices_as_numpy_would(tmp_path: Path, made: SimpleNamespace, index: tuple[slice, ...]) -> None:
    with Reader(made.write(tmp_path, VALUES)) as reader:
        np.testing.assert_array_equal(reader.read("matrix", index), VALUES["matrix"][index])


def test_files_without_an_index_are_joined(tmp_path: Path) -> None:
    save_file({"a": VALUES["matrix"]}, tmp_path / "x.safetensors")
    save_file({"b": VALUES["half"]}, tmp_path / "y.safetensors")
    save_file({"lora": VALUES["half"]}, tmp_path / "adapter_model.safetensors")
    with Reader(tmp_path) as reader:
        assert reader.names() == {"a", "b"}


def test_model_safetensors_comes_before_everything_else(tmp_path: Path) -> None:
    save_file({"a": VALUES["matrix"]}, tmp_path / "model.safetensors")
    save_file({"b": VALUES["half"]}, tmp_path / "consolidated.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with Reader(tmp_path) as reader:
        assert reader.names() == {"a"}


def test_the_cache_of_the_hub_is_links_out_of_the_folder(tmp_path: Path, made: SimpleNamespace) -> None:
    blobs = made.write(tmp_path / "blobs", VALUES, shards=2)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
    with Reader(snapshot) as reader:
        np.testing.assert_array_equal(reader.read("matrix"), VALUES["matrix"])


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Reader(folder)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing is not a folder")


def test_no_weights(tmp_path: Path) -> None:
    refused(tmp_path, "no weights", "model.safetensors", "pytorch_model.bin.index.json")


@pytest.mark.parametrize(
    ("file", "kind"), [("x.gguf", "GGUF"), ("flax_model.msgpack", "msgpack"), ("tf_model.h5", "TensorFlow"),
                       ("consolidated.00.pth", "PyTorch"), ("adapter_model.safetensors", "LoRA")]
)  # fmt: skip
def test_weights_of_another_kind(tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / file).touch()
    refused(tmp_path, "no weights", kind)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated(tmp_path: Path, made: SimpleNamespace, keep: int) -> None:
    file = made.write(tmp_path, VALUES) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(tmp_path, "model.safetensors", "truncated or damaged")


def rewrite_header(file: Path, change: dict[str, object]) -> None:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name, fields in change.items():
        header[name] |= fields
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    "fields", [{"shape": [4, 7]}, {"shape": [1 << 40, 1 << 40]}, {"dtype": "F64"}, {"data_offsets": [0, 1 << 50]}]
)
def test_lying_header(tmp_path: Path, made: SimpleNamespace, fields: dict[str, object]) -> None:
    file = made.write(tmp_path, VALUES) / "model.safetensors"
    rewrite_header(file, {"matrix": fields})
    refused(tmp_path, "model.safetensors", "damaged")


def test_header_larger_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    refused(tmp_path, "model.safetensors", "damaged")


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    refused(tmp_path, "Git LFS", "git lfs pull")


@pytest.mark.parametrize("shard", ["../x.safetensors", "a/../../x.safetensors", "/etc/x.safetensors",
                                   "..\\x.safetensors", "C:x.safetensors", "x\0.safetensors"])  # fmt: skip
def test_an_index_that_points_outside(tmp_path: Path, shard: str) -> None:
    save_file(VALUES, tmp_path / "x.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"matrix": shard}}))
    refused(folder, "points outside its folder")


def test_an_index_cannot_smuggle_in_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "x.bin").touch()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"matrix": "x.bin"}}))
    refused(tmp_path, "x.bin", "not a file of the format")


def test_an_index_with_a_missing_shard(tmp_path: Path, made: SimpleNamespace) -> None:
    made.write(tmp_path, VALUES, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, "model-00002-of-00003.safetensors", "not in the folder")


def test_an_index_that_promises_too_much(tmp_path: Path, made: SimpleNamespace) -> None:
    made.write(tmp_path, VALUES, shards=2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["extra"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    refused(tmp_path, "extra", "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "\xff", "[" * 100000]
)
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    refused(tmp_path, "model.safetensors.index.json", "not an index")


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"matrix": VALUES["matrix"]}, tmp_path / f"{name}.safetensors")
    refused(tmp_path, "matrix", "x.safetensors", "y.safetensors")


def test_a_type_numpy_does_not_have(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [2, 8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with Reader(tmp_path) as reader:
        assert reader.shape("w") == (2, 8)
        with pytest.raises(CheckpointError, match=re.escape("tensor w") + ".*F4"):
            reader.dtype("w")


def test_maps_are_dropped_while_reading(tmp_path: Path) -> None:
    """Pages of a map are resident memory; a reader that kept them would hold the whole file in the end."""
    size = 96 << 20
    (tmp_path / "model.safetensors").write_bytes(b"")
    save_file({f"w{i}": np.zeros(size // 12, np.float32) for i in range(3)}, tmp_path / "model.safetensors")
    with Reader(tmp_path) as reader:
        before = resident_file_bytes()
        for i in range(3):
            for start in range(0, size // 12, 1 << 20):
                reader.read(f"w{i}", (slice(start, start + (1 << 20)),))
        assert resident_file_bytes() - before < size / 2


def resident_file_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024
