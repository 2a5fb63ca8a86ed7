"""Lazy reading of weights from a checkpoint folder: safetensors or torch ``.bin``, whole or sharded.

Nothing but headers is read until :meth:`Reader.read` asks for a slice, and then only the bytes of that slice.
What can be wrong with the files themselves is found when the folder is opened, before any memory is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from jaxpool.errors import CheckpointError
from jaxpool_conversions.torch_legacy import MAGIC, LegacyTorchFile
from jaxpool_conversions.torch_pickle import TorchFile

# Pages of a memory map count as resident for as long as the map lives, so it is closed after this many bytes;
# opening it again costs one parse of the header.
_BYTES_PER_MAP = 16 << 20

_DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "F64": np.dtype(np.float64),
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "I64": np.dtype(np.int64),
        "I32": np.dtype(np.int32),
        "I16": np.dtype(np.int16),
        "I8": np.dtype(np.int8),
        "U64": np.dtype(np.uint64),
        "U32": np.dtype(np.uint32),
        "U16": np.dtype(np.uint16),
        "U8": np.dtype(np.uint8),
        "BOOL": np.dtype(np.bool_),
    }
)

# In this order, as transformers does; each beside the index of its sharded form.
_WEIGHT_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_FOREIGN = {
    "*.gguf": "GGUF",
    "*.msgpack": "Flax msgpack",
    "*.h5": "TensorFlow",
    "*.pth": "original PyTorch",
    "*.pt": "original PyTorch",
    "adapter_model.*": "LoRA adapter",
}

Index = tuple[slice, ...]


class WeightFile(Protocol):
    """One file of tensors; :class:`Reader` joins several."""

    def names(self) -> Iterable[str]:
        """Names of all tensors in the file."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def dtype(self, name: str) -> np.dtype:
        """Stored type of a tensor; CheckpointError when numpy has none for it."""

    def read(self, name: str, index: Index) -> np.ndarray:
        """The slice ``index`` (one slice per axis, step 1, within bounds, not empty) of a tensor."""

    def close(self) -> None:
        """Give back memory; the next read opens the file again."""


class SafetensorsFile:
    """One ``.safetensors`` file.

    Raises:
        CheckpointError: the file is truncated, damaged, or its header does not agree with its size.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: Any = None
        self._bytes_through_map = 0
        handle = self._open()
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
        self._headers = {name: (tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}

    def _open(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self._path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self._path} is truncated or damaged and cannot be read as safetensors ({error}); fetch it again"
            ) from error

    def names(self) -> Iterable[str]:
        """Names of all tensors in the file."""
        return self._headers.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._headers[name][0]

    def dtype(self, name: str) -> np.dtype:
        """Stored type of a tensor."""
        stored = self._headers[name][1]
        if stored not in _DTYPES:
            raise CheckpointError(
                f"tensor {name} in {self._path} is stored as {stored}, which jaxpool does not read; "
                "use a checkpoint in float32, float16 or bfloat16"
            )
        return _DTYPES[stored]

    def read(self, name: str, index: Index) -> np.ndarray:
        """The slice ``index`` of a tensor, copied out of the memory map."""
        from safetensors import SafetensorError

        if self._map is None or self._bytes_through_map > _BYTES_PER_MAP:
            self._map = None  # closed first, so that two maps are never resident together
            self._map = self._open()
            self._bytes_through_map = 0
        try:
            values = self._map.get_slice(name)[index] if index else self._map.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"tensor {name} in {self._path} cannot be read: {error}") from error
        self._bytes_through_map += values.nbytes
        return values

    def close(self) -> None:
        """Drop the memory map."""
        self._map = None


class ArraysFile:
    """Tensors in memory, in the place of a file."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return self._tensors[name].dtype

    def read(self, name: str, index: Index) -> np.ndarray:
        """The slice ``index`` of a tensor."""
        return self._tensors[name][index].copy()

    def close(self) -> None:
        """Nothing to give back."""


class Reader:
    """All weights of a checkpoint folder under their Hugging Face names, read slice by slice.

    Looks for ``model.safetensors`` or its index, then any other ``*.safetensors``, then ``pytorch_model.bin``
    or its index. Usable as a context manager; not safe for use from two threads at once.

    Attributes:
        folder: the folder.
        files: the weight files in use.

    Raises:
        CheckpointError: no weights, or a file that is truncated, damaged, hostile or at odds with its index.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._sources: dict[str, WeightFile] = {}
        self._paths: dict[str, Path] = {}
        self._stored: dict[str, str] = {}  # name of a tensor -> its name in its file
        self._files: list[WeightFile] = []
        paths, promised = _find(self.folder)
        self.files = tuple(paths)
        for path in paths:
            self._add(path)
        self._check(promised)
        self._last = self._files[0]

    def _check(self, promised: Mapping[str, str]) -> None:
        if not self._sources:
            raise CheckpointError(f"{' and '.join(map(str, self.files))} hold no tensors; fetch the weights again")
        for name, shard in promised.items():
            if self._paths.get(name) != self.folder / shard:
                raise CheckpointError(
                    f"the index of {self.folder} says that {shard} holds tensor {name}, but it does not; "
                    "index and shards are from different checkpoints: fetch them again"
                )

    def attach(self, module: str, root: Path | None = None) -> None:
        """Reads the weights of a folder inside as well: those of ``2_Dense`` are named ``2_Dense.linear.weight``.

        ``root`` is where that folder lies, if it is not inside the checkpoint's own.

        Raises:
            CheckpointError: as when a checkpoint is opened.
        """
        for path in _find((root or self.folder) / module)[0]:
            self._add(path, f"{module}.")

    def replace(self, tensors: Mapping[str, np.ndarray], source: Path) -> None:
        """Puts tensors of ``source`` in the place of the checkpoint's own, or beside them where it has none.

        One is the same as another if its name ends with the other's: what stands before the backbone may differ.

        Raises:
            CheckpointError: a name could be that of several tensors.
        """
        file = ArraysFile(tensors)
        self._files.append(file)
        for name in tensors:
            same = [own for own in self._sources if f".{own}".endswith(f".{name}") or f".{name}".endswith(f".{own}")]
            if len(same) > 1:
                raise CheckpointError(f"{name} of {source} could be {' or '.join(same)} of {self.folder}")
            key = same[0] if same else name
            self._sources[key], self._paths[key], self._stored[key] = file, source, name

    def _add(self, path: Path, prefix: str = "") -> None:
        refuse_pointer(path)
        file: WeightFile = torch_file(path) if path.suffix == ".bin" else SafetensorsFile(path)
        self._files.append(file)
        for stored in file.names():
            name = prefix + stored
            if name in self._sources:
                raise CheckpointError(
                    f"tensor {name} is stored in both {self._paths[name]} and {path}; remove one file"
                )
            self._sources[name] = file
            self._paths[name], self._stored[name] = path, stored

    def names(self) -> frozenset[str]:
        """Names of all tensors of all files."""
        return frozenset(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; KeyError when there is none of that name."""
        return self._sources[name].shape(self._stored[name])

    def dtype(self, name: str) -> np.dtype:
        """Stored type of a tensor (``ml_dtypes.bfloat16`` for bf16); CheckpointError if there is none."""
        return self._sources[name].dtype(self._stored[name])

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Read a tensor, or the part of it that ``index`` selects, and nothing else.

        Args:
            name: the tensor.
            index: one slice per axis, step 1; None for the whole tensor.

        Returns:
            A fresh array in the stored type.

        Raises:
            CheckpointError: the bytes cannot be read.
        """
        shape = self.shape(name)
        wanted = index if index is not None else (slice(None),) * len(shape)
        if self._last is not self._sources[name]:  # the map of one file at a time
            self._last.close()
            self._last = self._sources[name]
        spans = [range(size)[part] for size, part in zip(shape, wanted, strict=True)]
        if 0 in map(len, spans):
            return np.empty([len(span) for span in spans], self.dtype(name))
        return self._sources[name].read(self._stored[name], tuple(slice(span[0], span[-1] + 1) for span in spans))

    def close(self) -> None:
        """Release all files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _find(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files of a folder, and what its index (if any) promises: tensor name -> file name."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; a checkpoint is a folder with config.json and weights")
    for single, index in _WEIGHT_FILES:
        if (folder / single).exists():
            return [folder / single], {}
        if (folder / index).exists():
            promised = _read_index(folder / index)
            return [folder / shard for shard in sorted(set(promised.values()))], promised
        if single.endswith(".safetensors"):
            others = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_"))
            if others:
                return others, {}
    found = [kind for pattern, kind in _FOREIGN.items() if any(folder.glob(pattern))]
    seen = f" (there are {' and '.join(dict.fromkeys(found))} weights, which jaxpool does not read)" if found else ""
    raise CheckpointError(
        f"no weights in {folder}: looked for model.safetensors, model.safetensors.index.json, *.safetensors, "
        f"pytorch_model.bin and pytorch_model.bin.index.json{seen}"
    )


def torch_file(path: Path) -> TorchFile:
    """A ``.bin`` file, in either of torch's two formats."""
    with path.open("rb") as file:
        return LegacyTorchFile(path) if file.read(len(MAGIC)) == MAGIC else TorchFile(path)


def _read_index(path: Path) -> dict[str, str]:
    """The weight map of an index file, every name in it checked to lie inside the folder and to exist.

    The *name* is checked and not what it resolves to: in the hub's cache files are links to ``../../blobs``.
    """
    try:
        promised = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not promised or not all(isinstance(shard, str) for shard in promised.values()):
            raise ValueError("its weight_map is empty or does not map names to files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not an index of weights ({error!r}); fetch it again") from error
    for shard in sorted(set(promised.values())):
        pure = PurePosixPath(shard)
        if pure.is_absolute() or ".." in pure.parts or any(c in shard for c in "\\:\0") or not pure.name:
            raise CheckpointError(f"{path} points outside its folder, to {shard!r}; do not trust this checkpoint")
        if pure.suffix != (".bin" if path.name.startswith("pytorch") else ".safetensors"):
            raise CheckpointError(f"{path} names {shard!r}, which is not a file of the format it indexes")
        if not (path.parent / shard).exists():
            raise CheckpointError(f"{path} names the shard {shard}, which is not in the folder; fetch it as well")
    return promised


def refuse_pointer(path: Path) -> None:
    """Say so when a file is what ``git clone`` leaves in place of large files."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer and not the weights themselves; run `git lfs pull` there")
