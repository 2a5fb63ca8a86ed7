"""A part of a model's layers: what one stage of a pipeline runs of a model that knows nothing of stages.

The functions that run stacked layers (``layers.scan_layers``, ``groups.scan_groups``) ask here which of them are
wanted, and what enters the first. What a model computes before its layers is thereby dead in every stage but the first,
what follows them is never reached in any but the last, and what all layers share (rotations, biases) each stage
computes for itself. So a model can be cut if all its layers run in one scan, whatever surrounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
from flax import nnx


class Stack(NamedTuple):
    """Layers that were asked to run.

    Attributes:
        layers: from ``layers.stacked`` or ``groups.grouped``.
        depth: how many run, one after another.
        shared: whether some depths share weights.
        hidden: shape and dtype of what goes from one to the next.
    """

    layers: nnx.Module
    depth: int
    shared: bool
    hidden: jax.ShapeDtypeStruct


class Part:
    """Layers ``first`` up to, not including, ``end``; None: all that follow, and what follows them.

    Args:
        first, end: depths, from 0.
        entering: the hidden states that enter layer ``first``, unless that is 0.

    Attributes:
        stacks: filled by whatever ran under it.
    """

    def __init__(self, first: int = 0, end: int | None = None, entering: jax.Array | None = None) -> None:
        self.first, self.end, self.entering = first, end, entering
        self.stacks: list[Stack] = []

    def of(self, values: Any) -> Any:
        """What these layers have of values whose leading axis is the depth: a tree of arrays, a tuple, or None."""
        if self.first == 0 and self.end is None:
            return values
        if isinstance(values, tuple):
            return values[self.first : self.end]
        return jax.tree.map(lambda v: v[self.first : self.end], values)

    def run(self, compute: Callable[[], jax.Array]) -> jax.Array:
        """What ``compute`` returns, its layers limited to these; or, unless they are the last, what leaves them."""
        token = _PART.set(self)
        try:
            return compute()
        except _Left as left:
            return left.x
        finally:
            _PART.reset(token)


class _Left(Exception):  # noqa: N818 - none of them
    """Ends a computation where its part ends."""

    def __init__(self, x: jax.Array) -> None:
        self.x = x


_PART: ContextVar[Part | None] = ContextVar("part", default=None)
_WHOLE = Part()


def enter(layers: nnx.Module, depth: int, x: jax.Array, *, shared: bool = False) -> tuple[Part, jax.Array]:
    """Which of the layers are to run, and what enters them in place of ``x``; arguments as for ``Stack``."""
    part = _PART.get()
    if part is None:
        return _WHOLE, x
    part.stacks.append(Stack(layers, depth, shared, jax.ShapeDtypeStruct(x.shape, x.dtype)))
    return part, x if part.entering is None else part.entering


def leave(part: Part, x: jax.Array) -> jax.Array:
    """``x``, what the layers returned; where others follow them, nothing else is computed."""
    if part.end is None:
        return x
    raise _Left(x)
