"""From a checkpoint's tensors to parameters on devices, one parameter at a time, nothing read twice.

Host memory stays near one parameter: each device's slice is assembled layer by layer in a buffer aligned such
that the CPU backend adopts it without a copy, and files are read in pieces of two megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from jaxpool.errors import WeightsError
from jaxpool_conversions.accounting import HEAD_BIAS, HEAD_KERNEL, Fill, Source, account, runs
from jaxpool_conversions.heads import FROM_2_WAY_SOFTMAX
from jaxpool_conversions.reader import Index, Reader
from jaxpool_conversions.rules import NO_HEAD, HeadSource, Table, Transpose

if TYPE_CHECKING:
    import jax

# XLA's CPU client takes over host memory without a copy from this alignment on.
_ALIGNMENT = 64
_PIECE_BYTES = 2 << 20
# A transposed copy in strips of this many rows stays in the cache: four times faster than at once.
_STRIP = 64

_FLOATS = tuple(np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))
# Bits that are all set exactly in infinities and NaNs.
_EXPONENT = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}


Place = Callable[[str, Any, Callable[[Any], np.ndarray]], Any]
"""Puts a parameter (path, target, what reads a slice of it) onto devices; not necessarily as one array."""


def place(_path: str, target: jax.ShapeDtypeStruct, read: Callable[[Any], np.ndarray]) -> jax.Array:
    """A parameter as one array, where its target says; without a sharding on the first device."""
    import jax

    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(target.shape, target.sharding or first, read)


def load(
    reader: Reader,
    table: Table,
    head: HeadSource,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    place: Place = place,
) -> dict[str, Any]:
    """Load every parameter.

    Args:
        reader: the checkpoint.
        table: the family's rules.
        head: from :func:`~jaxpool_conversions.heads.find_head`; fills ``head.out.kernel``
            (``[width, labels]``) and ``head.out.bias`` (zeros if the checkpoint has none). ``NO_HEAD`` for a model
            without one.
        targets: shape, dtype and sharding of each parameter, by dotted path. No sharding: the first device.
        place: puts each on its devices.

    Returns:
        What ``place`` made of the parameters, in the order of ``targets``.

    Raises:
        WeightsError: tensors and parameters do not match one to one, or a tensor is not finite, not a float,
            or beyond the range of the wanted dtype.
        CheckpointError: a file is damaged.
    """
    import jax

    shapes = {name: reader.shape(name) for name in reader.names()}
    accounts = account(shapes, table, head, {path: target.shape for path, target in targets.items()})
    _check_head(head, targets)
    used = {source.name for fill in accounts.fills.values() for source in fill.sources.values()}
    for name in sorted(used | {name for name in (head.weight, head.bias) if name}):
        _refuse_unless_float(name, reader.dtype(name))

    leaves: dict[str, Any] = {}
    previous = None
    for path, target in targets.items():
        slices = _Slices(reader, path, target, accounts.fills.get(path), head)
        leaf = place(path, target, slices)
        if previous is not None:
            jax.block_until_ready(previous)  # at most two parameters wait in host memory for their transfer
        leaves[path] = previous = leaf
    return leaves


class _Slices:
    """The slices of one parameter that its devices ask for, each assembled once although several may ask."""

    def __init__(
        self, reader: Reader, path: str, target: jax.ShapeDtypeStruct, fill: Fill | None, head: HeadSource
    ) -> None:
        self._reader, self._path, self._fill, self._head = reader, path, fill, head
        self._shape, self._dtype = target.shape, np.dtype(target.dtype)
        self._done: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def __call__(self, index: Index | None) -> np.ndarray:
        index = index or (slice(None),) * len(self._shape)
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, self._shape))
        if bounds not in self._done:
            self._done[bounds] = self._assemble(tuple(slice(*pair) for pair in bounds))
        return self._done[bounds]

    def _assemble(self, index: Index) -> np.ndarray:
        out = _aligned(tuple(part.stop - part.start for part in index), self._dtype)
        if self._fill is None:
            name = self._head.weight if self._path == HEAD_KERNEL else self._head.bias
            out[...] = _cast(_head_values(self._reader, self._head, name)[index], self._dtype, name or "")
        else:
            starts = [part.start for part in index[: self._fill.depth]]
            for row in np.ndindex(out.shape[: self._fill.depth]):
                source = self._fill.sources[tuple(start + i for start, i in zip(starts, row))]
                _copy(self._reader, source, index[self._fill.depth :], out[(*row, ...)])
        return out


def _copy(reader: Reader, source: Source, index: Index, out: np.ndarray) -> None:
    """Fill ``out`` with the slice ``index`` of a source after its steps, two megabytes at a time."""
    transposed = sum(isinstance(step, Transpose) for step in source.steps) % 2 == 1
    for wanted, place in runs(index, source.steps, reader.shape(source.name)):
        _copy_run(reader, source.name, wanted, out[place] if place else out, transposed=transposed)


def _copy_run(reader: Reader, name: str, wanted: Index, out: np.ndarray, *, transposed: bool) -> None:
    """Fill ``out`` with one slice of a source tensor."""
    if not wanted:
        out[...] = _cast(reader.read(name), out.dtype, name)
        return
    begin, end = wanted[0].start, wanted[0].stop
    row_bytes = prod(part.stop - part.start for part in wanted[1:]) * reader.dtype(name).itemsize
    rows = max(_STRIP if len(wanted) < 3 else 1, _PIECE_BYTES // max(1, row_bytes))
    for start in range(begin, end, rows):
        stop = min(start + rows, end)
        values = _cast(reader.read(name, (slice(start, stop), *wanted[1:])), out.dtype, name)
        if transposed and values.ndim == 2:
            _transpose(values, out[:, start - begin : stop - begin])
        elif transposed:
            for matrix, place in zip(values, out[start - begin : stop - begin]):
                _transpose(matrix, place)
        else:
            out[start - begin : stop - begin] = values


def _transpose(values: np.ndarray, out: np.ndarray) -> None:
    """``out[...] = values.T``, several times faster."""
    if out.dtype.itemsize == 2:  # numpy moves integers fast, the types of ml_dtypes one by one
        values, out = values.view(np.uint16), out.view(np.uint16)
    for row in range(0, len(values), _STRIP):
        out[:, row : row + _STRIP] = values[row : row + _STRIP].T


def _head_values(reader: Reader, head: HeadSource, name: str | None) -> np.ndarray:
    """The whole kernel (``[width, labels]``) or bias (``[labels]``) of the last linear layer of the head."""
    if name is None:
        return np.zeros(head.num_labels, np.float32)
    if head.rows is None:
        values = reader.read(name)
    else:
        rest = (slice(None),) * (len(reader.shape(name)) - 1)
        values = np.concatenate([reader.read(name, (slice(row, row + 1), *rest)) for row in head.rows])
        if head.method == FROM_2_WAY_SOFTMAX:
            values = values[1:].astype(np.float32) - values[:1].astype(np.float32)
    return values.T if name == head.weight else values


def _check_head(head: HeadSource, targets: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    kernel = targets.get(HEAD_KERNEL)
    if head == NO_HEAD and kernel is None:
        return
    if kernel is None or kernel.shape[-1:] != (head.num_labels,):
        raise WeightsError(
            f"{head.weight} yields {head.num_labels} labels, but the model's head has shape "
            f"{None if kernel is None else list(kernel.shape)}"
        )
    if head.bias is not None and HEAD_BIAS not in targets:
        raise WeightsError(f"the checkpoint has {head.bias}, but the model's head has no bias to put it in")


def _refuse_unless_float(name: str, dtype: np.dtype) -> None:
    if dtype not in _FLOATS:
        raise WeightsError(
            f"tensor {name} is stored as {dtype}, so the checkpoint is quantised or damaged; "
            "jaxpool reads weights in float32, float16, bfloat16 and float64"
        )


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """``values`` as ``dtype``, refused if any is not finite before or after."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.asarray(values, order="C").astype(dtype, copy=False)
    if not _all_finite(result):
        if _all_finite(np.asarray(values, order="C")):
            raise WeightsError(f"tensor {name} has values too large for {dtype}; choose dtype bfloat16 or float32")
        raise WeightsError(f"tensor {name} holds NaN or infinite values; the checkpoint is damaged")
    return result


def _all_finite(values: np.ndarray) -> bool:
    """Whether all values are finite, in one pass of memory bandwidth. ``values`` must be contiguous."""
    exponent = _EXPONENT.get(values.dtype)
    if exponent is not None:  # numpy has no fast arithmetic in 16 bits
        return not ((values.view(np.uint16) & exponent) == exponent).any()
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    return bool(np.isfinite(total)) or bool(np.isfinite(values).all())  # the sum of finite values may overflow


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at an address that the CPU backend adopts as it is."""
    size = prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
