"""Adapters beside the weights (LoRA, Hu et al. 2021, arXiv:2106.09685): small factors in slots, chosen text by text.

Every linear layer and token embedding built within ``sized`` has ``slots`` places for adapters; a forward within
``chosen`` adds to each text what its adapter says. Neither has to be handed through the families.

Shape letters as in ``layers.py``; S slots, I and O inputs and outputs, r rank, M texts of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.errors import ValidationError
from jaxpool.ops.layout import Layout

NOT_TOKENS = (
    "Adapters cannot be served beside this model: it has layers that are not applied to each token of a text. "
    "Put one adapter into the weights instead: merge_lora=…"
)


@dataclass(frozen=True, slots=True)
class AdapterSizes:
    """How much room there is.

    Attributes:
        slots: adapters at a time.
        rank: the largest of theirs.
        labels: most labels of their heads.
    """

    slots: int
    rank: int
    labels: int


class Chosen(NamedTuple):
    """The adapter of every text: int32 ``[B, M]``, from 1; 0 for none."""

    slots_BM: jax.Array  # noqa: N815 - shape letters
    layout: Layout

    def of(self, x: jax.Array) -> jax.Array:
        """The adapters of ``x``, int32 ``[B, T]`` or ``[B, M]``, whichever ``x`` begins with; ``[B, 1]`` if padded.

        Raises:
            ValidationError: ``x`` has other leading axes.
        """
        rows, width = self.slots_BM.shape[0], self.layout.width
        if x.ndim < 2 or x.shape[0] != rows:
            raise ValidationError(NOT_TOKENS)
        if not self.layout.is_packed:
            return self.slots_BM
        if x.shape[1] not in (width, self.slots_BM.shape[1]):
            raise ValidationError(NOT_TOKENS)
        return self.layout.spread(self.slots_BM) if x.shape[1] == width else self.slots_BM


_SIZES: ContextVar[AdapterSizes | None] = ContextVar("sizes", default=None)
_CHOSEN: ContextVar[Chosen | None] = ContextVar("chosen", default=None)


@contextmanager
def sized(sizes: AdapterSizes | None) -> Iterator[None]:
    """Layers built inside have room for adapters."""
    token = _SIZES.set(sizes)
    try:
        yield
    finally:
        _SIZES.reset(token)


@contextmanager
def chosen(slots_BM: jax.Array | None, layout: Layout) -> Iterator[None]:
    """Layers called inside apply these adapters; None: nobody has one."""
    token = _CHOSEN.set(None if slots_BM is None else Chosen(slots_BM, layout))
    try:
        yield
    finally:
        _CHOSEN.reset(token)


class LowRank(nnx.Module):
    """What adapters add to one layer: ``(y + x @ a @ b) * (1 + stretch) + bias``; zeros are no adapter.

    ``stretch`` is DoRA's (Liu et al. 2024, arXiv:2402.09353): it concerns the weights, so it comes before biases.
    """

    def __init__(
        self,
        sizes: AdapterSizes,
        shape: tuple[int, int],
        axes: tuple[str | None, str | None],
        dtype: jnp.dtype,
        units: int | None,
    ) -> None:
        def zeros(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
            return nnx.Param(jnp.zeros((sizes.slots, *shape), dtype), axes=(None, *axes), units=units)

        (n_in, n_out), (in_axis, out_axis) = shape, axes
        self.a = zeros((n_in, sizes.rank), (in_axis, None))
        self.b = zeros((sizes.rank, n_out), (None, out_axis))
        self.stretch, self.bias = zeros((n_out,), (out_axis,)), zeros((n_out,), (out_axis,))

    def __call__(self, x: jax.Array, y: jax.Array, own_bias: jax.Array | None) -> jax.Array:
        """The layer's output with its bias, of its input ``x`` ``[B, T, …, I]`` and ``y = x @ kernel``."""
        now = _CHOSEN.get()
        if now is None:
            return y if own_bias is None else y + own_bias
        slot = now.of(x)
        if now.layout.is_packed:
            one_hot = _one_hot(slot, len(self.a), x.dtype)
            h = jnp.einsum("bt...i,sir,bts->bt...sr", x, self.a[...], one_hot, optimize=[(0, 1), (0, 1)])
        else:
            a_BIr = _gathered(self.a[...], slot[:, 0])
            h = jnp.einsum("b...i,bir->b...r", x, a_BIr) * _has(slot, x)
        return self._added(h, y, own_bias, slot, packed=now.layout.is_packed)

    def of_table(self, index_BT: jax.Array, y_BTD: jax.Array) -> jax.Array:
        """The same for a table of embeddings, whose input is an index."""
        now = _CHOSEN.get()
        if now is None:
            return y_BTD
        slot = now.of(index_BT)
        h_BTr = self.a[...][jnp.maximum(slot - 1, 0), index_BT] * _has(slot, y_BTD)
        if now.layout.is_packed:
            h_BTr = h_BTr[:, :, None, :] * _one_hot(slot, len(self.a), y_BTD.dtype)[..., None]
        return self._added(h_BTr, y_BTD, None, slot, packed=now.layout.is_packed)

    def _added(
        self, h: jax.Array, y: jax.Array, own_bias: jax.Array | None, slot: jax.Array, *, packed: bool
    ) -> jax.Array:
        """``h`` is ``[B, T, …, r]``, or ``[B, T, …, S, r]`` where packed, zero but for each token's own slot."""
        stretch, bias = self.stretch[...], self.bias[...]
        if packed:
            one_hot = _one_hot(slot, len(self.a), y.dtype)
            y = y + jnp.einsum("b...sr,sro->b...o", h, self.b[...])
            stretch, bias = one_hot @ stretch, one_hot @ bias
        else:
            y = y + jnp.einsum("b...r,bro->b...o", h, _gathered(self.b[...], slot[:, 0]))
            has = (slot > 0).astype(y.dtype)
            stretch, bias = (_gathered(v, slot[:, 0])[:, None] * has[:, :, None] for v in (stretch, bias))
        between = (1,) * (y.ndim - 3)
        stretch, bias = (v.reshape(*v.shape[:2], *between, v.shape[-1]) for v in (stretch, bias))
        return y * (1 + stretch) + (bias if own_bias is None else own_bias + bias)


def room(
    shape: tuple[int, int], axes: tuple[str | None, str | None], dtype: jnp.dtype, units: int | None = None
) -> Any:
    """Room for adapters of a layer ``[in, out]`` that is being built; None outside ``sized``."""
    sizes = _SIZES.get()
    return None if sizes is None else LowRank(sizes, shape, axes, dtype, units)


def _gathered(values: jax.Array, slot_B: jax.Array) -> jax.Array:
    """Each row's own, ``[S, …] -> [B, …]``; of rows without an adapter anything."""
    return jnp.take(values, jnp.maximum(slot_B - 1, 0), axis=0, mode="clip")


def _has(slot: jax.Array, x: jax.Array) -> jax.Array:
    """1 where a token has an adapter and 0 where it has none, to be multiplied with ``[B, T, …]``."""
    return (slot > 0).astype(x.dtype).reshape(*slot.shape, *(1,) * (x.ndim - 2))


def _one_hot(slot: jax.Array, n_slots: int, dtype: Any) -> jax.Array:
    return jax.nn.one_hot(slot - 1, n_slots, dtype=dtype)  # zeros for -1
