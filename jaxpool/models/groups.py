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

from jaxpool.models.layers import stacked
from jaxpool.models.parts import Stack, enter, leave
from jaxpool.ops.layout import Layout


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
    layout: Layout,
    run: Callable[..., jax.Array],
    last: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """Runs what :func:`grouped` made: ``x = run(layer, x, layout)``, each layer with its own past and notes.

    One period of each segment is compiled. What layers note becomes ``layout.notes["layers"]``, stacked as the layers
    are; a layout's past is of that form. Under a ``parts.Part`` only its layers run, and ``layers`` holds no others.

    Args:
        layers, x: as in ``scan_layers``.
        layout: where the texts lie.
        run: one layer's computation.
        last: the last layer's, where it differs: it may return another shape. Not while layers note.
    """
    if isinstance(layers, Groups):
        part, x = enter(layers, sum(one.period * one.repeats for one in layers.segments), x)
        found = [
            ([getattr(layers, name) for name in segment.names], its and its.repeats)
            for segment in layers.segments
            for its in (segment.within(part.first, part.end),)
        ]
    else:
        depth = len(jax.tree.leaves(layers)[0])
        part, x = enter(layers, depth, x)
        found = [([layers], depth)]
    noted = []
    for number, (places, repeats) in enumerate(found):
        past = [None] * len(places) if layout.past is None else layout.past[number]
        ending = last if part.end is None and number == len(found) - 1 else None
        if repeats:
            x, notes = _scan_segment(places, past, repeats, x, layout, run, ending)
            noted.append(notes)
    if layout.notes is not None:
        layout.notes["layers"] = noted
    return leave(part, x)


def _scan_segment(
    places: list[nnx.Module],
    past: list[Any],
    repeats: int,
    x: jax.Array,
    layout: Layout,
    run: Callable[..., jax.Array],
    last: Callable[..., jax.Array] | None,
) -> tuple[jax.Array, list[Any]]:
    def body(carry: jax.Array, step: tuple[list[nnx.Module], list[Any]]) -> tuple[jax.Array, list[Any]]:
        notes = []
        for layer, own in zip(*step):
            seen = layout.of_layer(own)
            carry = run(layer, carry, seen)
            notes.append(seen.notes)
        return carry, notes

    if last is None:
        return jax.lax.scan(body, x, (places, past))

    def by_index(carry: jax.Array, number: jax.Array) -> tuple[jax.Array, list[Any]]:
        return body(carry, jax.tree.map(lambda leaf: leaf[number], (places, past)))

    if repeats > 1:
        x = jax.lax.scan(by_index, x, jax.numpy.arange(repeats - 1))[0]
    *firsts, (final, own) = zip(*jax.tree.map(lambda leaf: leaf[repeats - 1], (places, past)))
    for layer, its in firsts:
        x = run(layer, x, layout.of_layer(its))
    return last(final, x, layout.of_layer(own)), []


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
