"""Torch ``.bin`` files from before torch 1.6 (2020): five pickles in a row, then the storages, one after another.

The pickles go through the same distrustful machine as those of newer files (``torch_pickle.py``).
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

from jaxpool.errors import CheckpointError
from jaxpool_conversions.torch_pickle import MAX_PICKLE_BYTES, Storage, TorchFile

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle, which is always the same: a long number that says what the file is."""
_PROTOCOL = 1001


class LegacyTorchFile(TorchFile):
    """One ``.bin`` file written by ``torch.save`` before version 1.6.

    Raises:
        CheckpointError: the file is truncated, hostile, or no dict of tensors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        pickles.seek(len(MAGIC))
        protocol, machine = self._interpret(pickles), self._interpret(pickles)
        if protocol != _PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError(
                f"{path} is of protocol {protocol!r:.40}, or holds big-endian numbers; save it again as safetensors"
            )
        self._views = self._state_dict(pickles)
        self._starts = self._find_storages(self._interpret(pickles), pickles.tell())
        for name, view in self._views.items():
            self._check_bounds(name, view)

    def _find_storages(self, keys: Any, start: int) -> dict[Storage, int]:
        """Byte offset of each storage: each is its number of elements (eight bytes), then the elements."""
        storages = {view.storage for view in self._views.values()}
        by_key = {storage.key: storage for storage in storages}
        announced = isinstance(keys, list) and all(isinstance(key, str) for key in keys) and sorted(keys)
        if len(by_key) != len(storages) or announced != sorted(by_key):
            raise CheckpointError(f"{self._path} is damaged: tensors and storages do not match; fetch it again")
        found, end = {}, self._path.stat().st_size
        with self._path.open("rb") as file:
            for key in keys:
                storage = by_key[key]
                file.seek(start)
                count = file.read(8)
                start += 8
                if len(count) != 8 or struct.unpack("<q", count)[0] != storage.size:
                    raise CheckpointError(f"{self._path} is truncated or damaged at storage {key}; fetch it again")
                found[storage] = start
                start += storage.size * storage.dtype.itemsize
        if start > end:
            raise CheckpointError(f"{self._path} is truncated: it has {end} of {start} bytes; fetch it again")
        return found
