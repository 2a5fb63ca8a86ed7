"""Layers of several kinds, in whatever pattern: stacked by place in the period, scanned over periods.

A group holds the layers ``start, start + step, start + 2 * step ...`` under the name ``from<start>by<step>``, which is
all that conversion needs to know which layer of a checkpoint lies where.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxpool.models.layers import scan_layers, stacked
from jaxpool.models.parts import Stack, enter, leave


class Segment(NamedTuple):
    """``repeats`` times the same ``period`` of kinds, from layer ``start`` on."""

    start: int
    period: int
    repeats: int

    @property
    def names(self) -> tuple[str, ...]:
        """Those of its groups, one for each place in the period."""
        return tuple(f"from{self.start + place}by{self.period}" for place in range(self.period))

    def within(self, first: int, end: int | None) -> Segment | None:
        """What is left of it between two of the layers before which it may be cut; None if nothing is."""
        begin = max(0, first - self.start) // self.period
        stop = self.repeats if end is None else min(self.repeats, max(0, end - self.start) // self.period)
        return Segment(self.start + begin * self.period, self.period, stop - begin) if begin < stop else None


@cache
def segments(kinds: tuple[Hashable, ...]) -> tuple[Segment, ...]:
    """Cuts a sequence of layer kinds into repeating segments, such that the fewest layers are compiled.

    Eight times ``a`` is one segment of period 1; ``a b a b a b`` one of period 2; ``a a a b b b b`` two of period 1.
    """
    best: list[tuple[int, tuple[Segment, ...]]] = [(0, ())] * (len(kinds) + 1)
    for start in reversed(range(len(kinds))):
        options = []
        for period in range(1, len(kinds) - start + 1):
            end = start + period
            while True:  # every whole number of repeats that fits
                cost, rest = best[end]
                options.append((period + cost, (Segment(start, period, (end - start) // period), *rest)))
                if kinds[end : end + period] != kinds[start : start + period]:
                    break
                end += period
        best[start] = min(options, key=lambda option: (option[0], len(option[1])))
    return best[0][1]


class Groups(nnx.Module):
    """One stacked module per group; see the module docstring."""

    def __init__(self, build: Callable[[Any], nnx.Module], kinds: tuple[Hashable, ...]) -> None:
        self.segments = segments(kinds)
        for segment in self.segments:
            for place, name in enumerate(segment.names, segment.start):
                setattr(self, name, stacked(partial(build, kinds[place]), segment.repeats))


def grouped(build: Callable[[Any], nnx.Module], kinds: Sequence[Hashable]) -> nnx.Module:
    """Layers of the given kinds, to be run by :func:`scan_groups`; of one kind only: plainly ``stacked``."""
    kinds = tuple(kinds)
    return stacked(lambda: build(kinds[0]), len(kinds)) if len(set(kinds)) == 1 else Groups(build, kinds)


def scan_groups(
    layers: nnx.Module,
    x: jax.Array,
    run: Callable[..., jax.Array],
    per_layer: Any = None,
    last: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """As ``scan_layers``, for what :func:`grouped` made; compiles one period of each segment."""
    if not isinstance(layers, Groups):
        return scan_layers(layers, x, run, per_layer, last=last)
    depth = sum(period * repeats for _, period, repeats in layers.segments)
    part, x = enter(layers, depth, x)
    for segment in layers.segments:
        places = [getattr(layers, name) for name in segment.names]
        ending = last if part.end is None and segment == layers.segments[-1] else None
        if (its := segment.within(part.first, part.end)) is not None:
            x = _scan_segment(places, its, x, run, per_layer, ending)
    return leave(part, x)


def _scan_segment(
    places: list[nnx.Module],
    segment: Segment,
    x: jax.Array,
    run: Callable[..., jax.Array],
    per_layer: Any,
    last: Callable[..., jax.Array] | None,
) -> jax.Array:
    start, period, repeats = segment
    own = [
        jax.tree.map(lambda v, i=i: v[start + i : start + period * repeats : period], per_layer) for i in range(period)
    ]

    def body(carry: jax.Array, step: tuple[list[nnx.Module], list[Any]]) -> tuple[jax.Array, None]:
        for layer, values in zip(*step):
            carry = run(layer, carry, values)
        return carry, None

    if last is None:
        return jax.lax.scan(body, x, (places, own))[0]

    def by_index(carry: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        return body(carry, jax.tree.map(lambda leaf: leaf[number], (places, own)))

    if repeats > 1:
        x = jax.lax.scan(by_index, x, jax.numpy.arange(repeats - 1))[0]
    *firsts, (final, values) = zip(*jax.tree.map(lambda leaf: leaf[repeats - 1], (places, own)))
    for layer, its in firsts:
        x = run(layer, x, its)
    return last(final, x, values)


def cuts(stack: Stack) -> tuple[int, ...]:
    """Layers that a stage may begin with, 0 and the depth included: every one, or the first of every period."""
    if not isinstance(stack.layers, Groups):
        return tuple(range(stack.depth + 1))
    starts = (range(s.start, s.start + s.period * s.repeats, s.period) for s in stack.layers.segments)
    return (*(layer for found in starts for layer in found), stack.depth)


def held(stack: Stack, name: str, first: int, end: int) -> slice | None:
    """What the layers from ``first`` up to ``end`` hold of a parameter's leading axis; None if nothing.

    Args:
        stack: the layers.
        name: of the parameter, as a dotted path from ``stack.layers``.
        first, end: two of ``cuts``.
    """
    if stack.shared:
        return slice(None)
    if not isinstance(stack.layers, Groups):
        return slice(first, end)
    (segment,) = (one for one in stack.layers.segments if name.split(".")[0] in one.names)
    its = segment.within(first, end)
    if its is None:
        return None
    begin = (its.start - segment.start) // segment.period
    return slice(begin, begin + its.repeats)
