"""Torch ``.bin`` files from before torch 1.6: read as the newer ones are, and as distrustfully."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpool.errors import CheckpointError
from jaxpool_conversions.reader import Reader
from jaxpool_conversions.torch_legacy import MAGIC

MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def saved(folder: Path, state: Any) -> Path:
    torch = pytest.importorskip("torch")
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes().startswith(MAGIC)
    return path


def handmade(folder: Path, state: bytes, machine: dict[str, Any] = MACHINE, protocol: int = 1001) -> None:
    pickles = pickle.dumps(protocol, 2) + pickle.dumps(machine, 2) + state + pickle.dumps([], 2)
    (folder / "pytorch_model.bin").write_bytes(MAGIC + pickles)


def refused(folder: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        Reader(folder)


def test_every_type_and_view_that_torch_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(6, 8)
    state = {
        "float": base,
        "half": base.half(),
        "brain": base.bfloat16(),
        "long": torch.arange(5),
        "transposed": base.T,
        "window": base[1:4, 2:7:2],
        "shared": base,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    saved(tmp_path, state)
    with Reader(tmp_path) as reader:
        assert reader.names() == state.keys()
        for name, tensor in state.items():
            theirs = tensor.detach().float().numpy()
            np.testing.assert_array_equal(reader.read(name).astype(np.float32), theirs, name)
        assert reader.dtype("brain").name == "bfloat16"
        np.testing.assert_array_equal(reader.read("transposed", np.s_[2:4, 1:3]), base.T[2:4, 1:3].numpy())


def test_the_state_dict_of_a_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    saved(tmp_path, module.state_dict())
    with Reader(tmp_path) as reader:
        assert reader.names() == module.state_dict().keys()
        np.testing.assert_array_equal(reader.read("0.weight"), module.state_dict()["0.weight"].numpy())


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated(tmp_path: Path, keep: float) -> None:
    torch = pytest.importorskip("torch")
    path = saved(tmp_path, {"a": torch.ones(20), "b": torch.ones(30)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    refused(tmp_path, r"pytorch_model\.bin (is truncated|has a damaged)")


def test_a_storage_of_another_size(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = saved(tmp_path, {"a": torch.ones(20)})
    data = path.read_bytes()
    at = data.rindex(struct.pack("<q", 20))
    path.write_bytes(data[:at] + struct.pack("<q", 19) + data[at + 8 :])
    refused(tmp_path, "truncated or damaged at storage")


def test_a_foreign_global_is_named_and_not_called(tmp_path: Path) -> None:
    handmade(tmp_path, b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.")
    refused(tmp_path, "names builtins.eval")


def test_other_machines_and_protocols(tmp_path: Path) -> None:
    handmade(tmp_path, pickle.dumps({}, 2), MACHINE | {"little_endian": False})
    refused(tmp_path, "big-endian")
    handmade(tmp_path, pickle.dumps({}, 2), protocol=1002)
    refused(tmp_path, "protocol 1002")


@pytest.mark.parametrize("announced", [b"].", b"](X\x01\x00\x00\x000X\x01\x00\x00\x000e.", b"]]a.", b"K\x01."])
def test_storages_that_nobody_announced(tmp_path: Path, announced: bytes) -> None:
    torch = pytest.importorskip("torch")
    path = saved(tmp_path, {"a": torch.ones(20)})
    data = path.read_bytes()
    keys = data.index(b"]q\x00X")  # the list of storages, after the state
    path.write_bytes(data[:keys] + announced)
    refused(tmp_path, "tensors and storages do not match")
