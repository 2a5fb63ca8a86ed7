"""Torch ``.bin`` files, read without torch: what torch writes is read, everything else is refused."""

from __future__ import annotations

import os
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpool.errors import CheckpointError
from jaxpool_conversions.reader import Reader

# --- what torch writes ---------------------------------------------------------------------------------------------


def saved(folder: Path, state: Any, **how: Any) -> Reader:
    torch = pytest.importorskip("torch")
    torch.save(state, folder / "pytorch_model.bin", **how)
    return Reader(folder)


def as_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy() if tensor.is_floating_point() else tensor.numpy()


def test_every_type_and_view_that_torch_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(6, 8)
    state = {
        "float": base,
        "double": base.double(),
        "half": base.half(),
        "brain": base.bfloat16(),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "transposed": base.T,
        "window": base[1:4, 2:7:2],
        "column": base[:, 3],
        "shared": base,
        "expanded": torch.randn(1, 4).expand(3, 4),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    with saved(tmp_path, state) as reader:
        assert reader.names() == state.keys()
        for name, tensor in state.items():
            assert reader.shape(name) == tuple(tensor.shape)
            np.testing.assert_array_equal(reader.read(name).astype(as_numpy(tensor).dtype), as_numpy(tensor), name)
        assert reader.dtype("brain").name == "bfloat16"
        assert reader.dtype("half") == np.float16


@pytest.mark.parametrize("index", [np.s_[1:3, :], np.s_[:, 2:5], np.s_[3:4, 1:2], np.s_[5:5, :]])
def test_slices_of_views(tmp_path: Path, index: tuple[slice, ...]) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(48.0).reshape(6, 8)
    with saved(tmp_path, {"plain": base, "transposed": base.T, "window": base[1:, 1:]}) as reader:
        for name, tensor in {"plain": base, "transposed": base.T, "window": base[1:, 1:]}.items():
            np.testing.assert_array_equal(reader.read(name, index), tensor.numpy()[index])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    with saved(tmp_path, {"a": torch.ones(3)}, pickle_protocol=protocol) as reader:
        np.testing.assert_array_equal(reader.read("a"), np.ones(3, np.float32))


def test_the_state_dict_of_a_module_in_shards(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    names = list(state)
    index = {}
    for i, part in enumerate((names[:3], names[3:])):
        torch.save({name: state[name] for name in part}, tmp_path / f"pytorch_model-{i}.bin")
        index |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {index}}}'.replace("'", '"'))
    with Reader(tmp_path) as reader:
        assert reader.names() == set(names)
        np.testing.assert_array_equal(reader.read("0.weight"), state["0.weight"].numpy())
    with saved(tmp_path, state) as reader:  # an OrderedDict with the attribute _metadata
        assert reader.names() == set(names)


@pytest.mark.parametrize("state", [3, ["a"], {"a": 3}, {"a": {"b": 1}}])
def test_something_else_than_a_dictionary_of_tensors(tmp_path: Path, state: Any) -> None:
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin (holds|has a damaged)"):
        saved(tmp_path, state)


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(CheckpointError, match=r"refused: its pickle names torch\.nn\.modules\.linear\.Linear"):
        saved(tmp_path, torch.nn.Linear(2, 2))


# --- what nobody should write --------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    name: str = "w",
    *,
    kind: str = "FloatStorage",
    key: str = "0",
    size: int = 6,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
) -> bytes:
    """The pickle of ``{name: tensor}``, as torch writes it."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(size) + b"tQ"
    args = b"(" + storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"Rs."


def archive(folder: Path, pickled: bytes, data: bytes | None = None, **how: Any) -> Path:
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", **how) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes() if data is None else data)
    return path


def refused(folder: Path, *words: str) -> None:
    start = time.process_time()  # of this process: what else the machine does is no reason to fail
    with pytest.raises(CheckpointError) as caught:
        Reader(folder)
    assert time.process_time() - start < 60, "what these ask for would take hours"
    for word in ("pytorch_model.bin", *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_handmade_pickle_is_sound(tmp_path: Path) -> None:
    archive(tmp_path, tensor())
    with Reader(tmp_path) as reader:
        np.testing.assert_array_equal(reader.read("w"), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_a_foreign_global_is_named_and_not_called(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    for protocol in (0, 2, 4):
        archive(tmp_path, pickle.dumps({"w": Evil()}, protocol))
        refused(tmp_path, "refused", "" if protocol == 0 else f"{os.mkdir.__module__}.mkdir")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["builtins\neval", "torch\nload", "torch._utils\n_rebuild_tensor_v2.__globals__",
                                  "collections\nOrderedDict.fromkeys", "torch\nUntypedStorage"])  # fmt: skip
def test_globals_close_to_the_allowed_ones(tmp_path: Path, name: str) -> None:
    archive(tmp_path, b"\x80\x02c" + name.encode() + b"\n.")
    refused(tmp_path, "refused", name.replace("\n", "."))


@pytest.mark.parametrize(
    "lie",
    [
        {"size": 7},
        {"size": 1 << 60},
        {"size": -1},
        {"shape": (3, 3)},
        {"shape": (1 << 40, 1 << 40)},
        {"strides": (300, 1)},
        {"strides": (-3, 1)},
        {"offset": 1},
        {"offset": -1},
        {"shape": (2, 3, 1)},
        {"kind": "DoubleStorage"},
    ],
)
def test_lying_storages_and_views(tmp_path: Path, lie: dict[str, Any]) -> None:
    archive(tmp_path, tensor(**lie))
    refused(tmp_path)


@pytest.mark.parametrize("key", ["1", "../data.pkl", "/etc/passwd"])
def test_a_storage_that_is_not_there(tmp_path: Path, key: str) -> None:
    archive(tmp_path, tensor(key=key))
    refused(tmp_path, "missing")


BOMBS = {
    "memo index that would allocate gigabytes": b"\x80\x02}r\xff\xff\xff\x7f.",
    "text that is not there": b"\x80\x02X\xff\xff\xff\xff.",
    "nested tuples, doubling each time": b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b"q\x00}h\x00Ns.",
    "doubled tuple where a name is expected": b"\x80\x04)" + b"q\x00h\x00\x86" * 200 + b"q\x00h\x00\x93.",
    "deep nesting": b"\x80\x02" + b"(" * 30_000 + b"t" * 30_000 + b".",
    "stack underflow": b"\x80\x02tR.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "not a pickle": b"hello",
    "dictionary with itself inside": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "build on a symbol": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "instance of a class": b"\x80\x02(ios\nsystem\n.",
    "extension registry": b"\x80\x02\x82\x01.",
    "new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_answered_at_once(tmp_path: Path, bomb: str) -> None:
    archive(tmp_path, BOMBS[bomb])
    refused(tmp_path)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    archive(tmp_path, tensor() + bytes(1 << 24), compression=zipfile.ZIP_DEFLATED)
    refused(tmp_path, "compressed")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
def test_truncated(tmp_path: Path, keep: float) -> None:
    path = archive(tmp_path, tensor())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    refused(tmp_path, "truncated or damaged")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_not_a_zip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    refused(tmp_path)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as file:
        file.writestr("hello.txt", "hello")
    refused(tmp_path, "data.pkl")


def test_big_endian(tmp_path: Path) -> None:
    path = archive(tmp_path, tensor())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/byteorder", "big")
    refused(tmp_path, "big-endian")
