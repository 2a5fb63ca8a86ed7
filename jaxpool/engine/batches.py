"""Texts as the arrays of one batch: what a program takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpool.engine.buckets import Bucket
from jaxpool.ops.layout import Layout


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Past:
    """A beginning of texts, computed.

    Attributes:
        reach: places for its tokens.
        length: int32 scalar, how many it has.
        notes: what the layers noted of it, as ``models.groups`` stacks it.
    """

    reach: int = field(metadata={"static": True})
    length: Any
    notes: Any


class Inputs(NamedTuple):
    """One batch; B rows, T tokens, M texts of a row: 1 where padded.

    Attributes:
        ids: int32 ``[B, T]``.
        types: int32 ``[B, T]`` token types, or None for backbones without them.
        lengths: int32 ``[B, M]`` tokens of each text; where there is none 1 if padded, 0 if packed.
        activated: bool ``[B, M]``; whether the text wants the activation.
        starts: int32 ``[B, M]``, where in its row each text begins; None if padded: at 0.
        segments: int32 ``[B, T]``, the text that a token belongs to, from 1, 0 for padding; None if padded.
        slots: int32 ``[B, M]``, the adapter of each text, from 1, 0 for none; None for a model without adapters.
        past: what the rows' texts begin with and the rows do not hold; None where they hold all.
    """

    ids: Any
    types: Any
    lengths: Any
    activated: Any
    starts: Any = None
    segments: Any = None
    slots: Any = None
    past: Past | None = None

    @property
    def layout(self) -> Layout:
        """Where the texts lie."""
        if self.segments is None:
            layout = Layout.padded(self.lengths[:, 0], self.ids.shape[1])
        else:
            layout = Layout.packed(self.segments, self.starts, self.lengths)
        return layout if self.past is None else layout.behind(self.past.length, self.past.notes, self.past.reach)


def empty(bucket: Bucket, with_types: bool, with_slots: bool = False) -> Inputs:
    """A batch without texts, in numpy arrays."""
    tokens, texts = (bucket.rows, bucket.length), (bucket.rows, max(bucket.segments, 1))
    ids, types = np.zeros(tokens, np.int32), np.zeros(tokens, np.int32) if with_types else None
    slots = np.zeros(texts, np.int32) if with_slots else None
    if bucket.segments <= 1:
        return Inputs(ids, types, np.ones(texts, np.int32), np.zeros(texts, np.bool_), slots=slots)
    lengths, starts = np.zeros(texts, np.int32), np.zeros(texts, np.int32)
    return Inputs(ids, types, lengths, np.zeros(texts, np.bool_), starts, np.zeros(tokens, np.int32), slots)


def shapes(bucket: Bucket, with_types: bool, with_slots: bool = False) -> Inputs:
    """The same without values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), empty(bucket, with_types, with_slots))


def fill(
    texts: Sequence[np.ndarray],
    types: Sequence[np.ndarray | None],
    activated: Sequence[bool],
    bucket: Bucket,
    with_types: bool,
    places: Sequence[int] | np.ndarray | None = None,
    slots: Sequence[int] | None = None,
) -> tuple[Inputs, np.ndarray]:
    """One batch of texts.

    Args:
        texts: token ids of each.
        types: token types of each, or None for zeros.
        activated: whether each wants the activation.
        bucket: the shape.
        with_types: whether the backbone reads token types.
        places: the row of each text; None: each has its own. The caller sees to it that they fit.
        slots: the adapter of each text, from 1, 0 for none; None for a model without adapters.

    Returns:
        the batch, and int64 ``[texts, 3]``: row, place among the row's texts and first token of each text.
    """
    inputs = empty(bucket, with_types, slots is not None)
    where = np.zeros((len(texts), 3), np.int64)
    used, filled = [0] * bucket.rows, [0] * bucket.rows
    for i, ids in enumerate(texts):
        row = i if places is None else int(places[i])
        segment, start = used[row], filled[row]
        used[row], filled[row] = segment + 1, start + len(ids)
        where[i] = row, segment, start
        inputs.ids[row, start : filled[row]] = ids
        kinds = types[i]
        if inputs.types is not None and kinds is not None:
            inputs.types[row, start : filled[row]] = kinds
        if inputs.segments is not None:
            inputs.segments[row, start : filled[row]] = segment + 1
    inputs.lengths[where[:, 0], where[:, 1]] = [len(ids) for ids in texts]
    inputs.activated[where[:, 0], where[:, 1]] = activated
    if inputs.slots is not None:
        inputs.slots[where[:, 0], where[:, 1]] = slots
    if inputs.starts is not None:
        inputs.starts[where[:, 0], where[:, 1]] = where[:, 2]
    return inputs, where


def pad(
    rows: Sequence[np.ndarray],
    types: Sequence[np.ndarray | None],
    activated: Sequence[bool],
    bucket: Bucket,
    with_types: bool,
    slots: Sequence[int] | None = None,
) -> Inputs:
    """As ``fill``, one text to a row."""
    return fill(rows, types, activated, bucket, with_types, None, slots)[0]
