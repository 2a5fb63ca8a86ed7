"""Tensors in a torch ``.bin`` file (a zip with a pickle inside), without torch, trusting nobody.

Python's unpickler can call anything that a file names. This one is a small stack machine over the opcodes
that ``torch.save`` writes for a dictionary of tensors; globals stay plain symbols,
and the only calls it knows are those in :func:`_call`. Everything else is refused by name. Values are read
later, straight from the zip.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxpool.errors import CheckpointError

_STORAGE_DTYPES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
_REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
_ORDERED_DICT = "collections.OrderedDict"
_ALLOWED_GLOBALS = {*_STORAGE_DTYPES, _REBUILD_TENSOR, _REBUILD_PARAMETER, _ORDERED_DICT}

# A state dict takes about 200 bytes of pickle per tensor, so this is some hundred thousand tensors. The
# machine below allocates in proportion to the length of the pickle and to nothing that the pickle says.
MAX_PICKLE_BYTES = 64 << 20


class _Refused(Exception):  # noqa: N818 (an answer, turned into CheckpointError where the file is known)
    """The pickle does something that a dictionary of tensors does not need."""


@dataclass(frozen=True, slots=True)
class _Symbol:
    """A global that the pickle names; never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat array: the zip record ``key`` read as ``size`` elements of ``dtype``."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor: strides and offset (in elements) over a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """One ``.bin`` file written by ``torch.save``.

    Raises:
        CheckpointError: the file is truncated, hostile, not a zip, or no dict of tensors.
    """

    _starts: dict[Storage, int]

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._records = {info.filename: info for info in archive.infolist()}
                self._root = self._find_root()
                pickled = archive.read(self._stored(self._root + "data.pkl", MAX_PICKLE_BYTES))
                order = self._root + "byteorder"
                if order in self._records and archive.read(self._stored(order, 16)) != b"little":
                    raise CheckpointError(f"{path} holds big-endian tensors; save it again as safetensors")
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(self._not_a_zip(error)) from error
        self._views = self._state_dict(pickled)
        with path.open("rb") as file:
            self._starts = {view.storage: self._start(file, view.storage) for view in self._views.values()}
        for name, view in self._views.items():
            self._check_bounds(name, view)

    def _find_root(self) -> str:
        roots = [name.removesuffix("data.pkl") for name in self._records if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(f"{self._path} is a zip but not one that torch.save writes (no data.pkl)")
        return roots[0]

    def _stored(self, record: str, limit: int | None = None) -> zipfile.ZipInfo:
        info = self._records.get(record)
        if info is None:
            raise CheckpointError(f"{self._path} is damaged: its record {record} is missing; fetch it again")
        if info.compress_type != zipfile.ZIP_STORED or (limit is not None and info.file_size > limit):
            raise CheckpointError(f"{self._path} has a compressed or oversized record {record}; torch writes none")
        return info

    def _not_a_zip(self, error: Exception) -> str:
        with self._path.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04":
            return f"{self._path} is truncated or damaged ({error}); fetch it again"
        return (
            f"{self._path} is neither in the zip format of torch 1.6 and newer nor in the one before it; "
            "load it once with torch and save it with safetensors.torch.save_file"
        )

    def _interpret(self, pickled: bytes | BinaryIO) -> Any:
        try:
            return interpret(pickled)
        except _Refused as refusal:
            raise CheckpointError(f"{self._path} is refused: {refusal}; do not trust this checkpoint") from None
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{self._path} has a damaged pickle ({error}); fetch it again") from error

    def _state_dict(self, pickled: bytes | BinaryIO) -> dict[str, _View]:
        state = self._interpret(pickled)
        if not isinstance(state, dict):
            raise CheckpointError(f"{self._path} holds no dictionary of tensors but a {type(state).__name__}")
        for name, value in state.items():
            if not isinstance(value, _View):
                raise CheckpointError(
                    f"{self._path} holds {name} of type {type(value).__name__} where a tensor is expected; "
                    "save only the model's state_dict()"
                )
        return state

    def _start(self, file: BinaryIO, storage: Storage) -> int:
        """Byte offset of a storage in the file, behind the zip's local header (which torch pads)."""
        info = self._stored(f"{self._root}data/{storage.key}")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise CheckpointError(f"{self._path} is damaged at record {info.filename}; fetch it again")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        needed = storage.size * storage.dtype.itemsize
        if needed > info.file_size or start + needed > self._path.stat().st_size:
            raise CheckpointError(
                f"{self._path}: storage {storage.key} claims {needed} bytes, but its record has "
                f"{info.file_size}; the file is truncated or hostile"
            )
        return start

    def _check_bounds(self, name: str, view: _View) -> None:
        ints = (view.offset, *view.shape, *view.strides)
        sound = len(view.shape) == len(view.strides) and min(ints) >= 0
        if sound and 0 not in view.shape:
            sound = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides)) < view.storage.size
        if not sound:
            raise CheckpointError(
                f"{self._path}: tensor {name} claims shape {view.shape}, strides {view.strides} and offset "
                f"{view.offset}, which its storage of {view.storage.size} elements cannot hold"
            )

    def names(self) -> Iterable[str]:
        """Names of all tensors in the file."""
        return self._views.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._views[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Stored type of a tensor."""
        return self._views[name].storage.dtype

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The slice ``index`` of a tensor: reads from its first element to its last, then picks by stride."""
        view = self._views[name]
        shape = tuple(part.stop - part.start for part in index)
        first = view.offset + sum(part.start * stride for part, stride in zip(index, view.strides))
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, view.strides))
        itemsize = view.storage.dtype.itemsize
        offset = self._starts[view.storage] + first * itemsize
        try:
            flat = np.fromfile(self._path, view.storage.dtype, span, offset=offset)
        except OSError as error:
            raise CheckpointError(f"tensor {name} in {self._path} cannot be read: {error}") from error
        if flat.size != span:
            raise CheckpointError(f"{self._path} ends in the middle of tensor {name}; fetch it again")
        if prod(shape) == span and view.strides == _row_major(view.shape):
            return flat.reshape(shape)
        strides = tuple(stride * itemsize for stride in view.strides)
        return np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False).copy()

    def close(self) -> None:
        """Nothing is held between two reads."""


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def interpret(pickled: bytes | BinaryIO) -> Any:
    """Run the pickle on a stack machine that knows dictionaries, tuples, lists, scalars and :func:`_call`.

    An open file is left standing behind the pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, argument, _ in pickletools.genops(pickled):
        arg: Any = argument
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack[-1]
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(arg)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(arg)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                items = stack[-count:]
                del stack[-count:]
                stack.append(tuple(items))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND":
                value = stack.pop()
                _expect(stack[-1], list).append(value)
            case "APPENDS":
                values = since_mark()
                _expect(stack[-1], list).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict)[_expect(key, str)] = value
            case "SETITEMS":
                flat = since_mark()
                for key, value in zip(flat[::2], flat[1::2], strict=True):
                    _expect(stack[-1], dict)[_expect(key, str)] = value
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                stack.append(_symbol(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_symbol(f"{_expect(module, str)}.{_expect(name, str)}"))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_call(function, args))
            case "BUILD":  # sets the attribute _metadata of an ordered dictionary, which nobody needs
                stack.pop()
                _expect(stack[-1], dict)
            case other:
                raise _Refused(f"its pickle uses the instruction {other}, which no dictionary of tensors needs")
    raise ValueError("it does not end")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _symbol(name: str) -> _Symbol:
    if name not in _ALLOWED_GLOBALS:
        raise _Refused(f"its pickle names {name}, which is not among what tensors need")
    return _Symbol(name)


def _storage(reference: Any) -> Storage:
    kind, storage_type, key, _device, size, *part = _expect(reference, tuple)
    if part not in ([], [None]):  # before torch 1.6 a storage could be part of another one
        raise _Refused("it has a storage inside another storage")
    dtype = _STORAGE_DTYPES.get(_expect(storage_type, _Symbol).name)
    if kind != "storage" or dtype is None or _expect(size, int) < 0:
        raise TypeError("a reference to something that is no storage")
    return Storage(_expect(key, str), dtype, size)


def _call(function: Any, args: Any) -> Any:
    """The only calls there are: an empty dictionary, a tensor over a storage, a parameter (its tensor)."""
    name = _expect(function, _Symbol).name
    _expect(args, tuple)
    if name == _ORDERED_DICT and args in ((), ([],)):
        return {}
    if name == _REBUILD_TENSOR:
        storage, offset, shape, strides = args[:4]
        for number in (offset, *_expect(shape, tuple), *_expect(strides, tuple)):
            _expect(number, int)
        return _View(_expect(storage, Storage), offset, shape, strides)
    if name == _REBUILD_PARAMETER:
        return _expect(args[0], _View)
    raise _Refused(f"its pickle calls {name} in a way that torch.save does not write")
