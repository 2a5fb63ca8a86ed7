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
from jaxpool.ops.layout import Layout


class Segment(NamedTuple):
    """``repeats`` times the same ``period`` of kinds, from layer ``start`` on."""

    start: int
    period: int
    repeats: int


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
        for start, period, repeats in self.segments:
            for place in range(start, start + period):
                setattr(self, f"from{place}by{period}", stacked(partial(build, kinds[place]), repeats))


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
    are; a layout's past is of that form.

    Args:
        layers, x: as in ``scan_layers``.
        layout: where the texts lie.
        run: one layer's computation.
        last: the last layer's, where it differs: it may return another shape. Not while layers note.
    """
    groups = [([layers], len(jax.tree.leaves(layers)[0]))]
    if isinstance(layers, Groups):
        groups = [
            ([getattr(layers, f"from{start + i}by{period}") for i in range(period)], repeats)
            for start, period, repeats in layers.segments
        ]
    noted = []
    for number, (places, repeats) in enumerate(groups):
        past = [None] * len(places) if layout.past is None else layout.past[number]
        x, notes = _scan_segment(places, past, repeats, x, layout, run, last if number == len(groups) - 1 else None)
        noted.append(notes)
    if layout.notes is not None:
        layout.notes["layers"] = noted
    return x


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
