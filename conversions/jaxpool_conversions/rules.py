"""Conversion tables as data: one row per parameter, readable in both directions.

A rule maps a source tensor (Hugging Face name) to a parameter path. ``{layer}`` in the source captures the layer
index; the parameter is then a stacked leaf whose leading axis is the layer. ``{expert}`` captures the index into a
second stacked axis; a source that holds all experts of a layer at once is another rule for the same target. Because
sources are templates and not regular expressions, the same table also writes Hugging Face checkpoints (``export.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Transpose:
    """Swaps the last two axes: torch keeps ``[out, in]``, we keep ``[in, out]``."""


@dataclass(frozen=True, slots=True)
class Part:
    """Units ``index`` to ``index + width`` of ``count`` equal ones of the source along ``axis`` (a fused qkv, say).

    Where query, key and value alternate head by head, the axis is ``groups`` equal groups (heads), each of ``count``
    units; the part takes its units from every group, in order.
    """

    axis: int
    index: int
    count: int
    width: int = 1
    groups: int = 1


Step = Transpose | Part


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: ``source`` name template, ``target`` dotted parameter path, ``steps`` applied to the source in order.

    A ``copy`` is a tensor that some files hold beside the one it equals, and some instead of it: it counts only where
    no other row fills the parameter. Where a source holds the experts of a layer one below the other, each has a row
    of its own: ``expert`` says which, and ``steps`` take its part. Where ``{layer}`` counts groups of layers, each
    layer of a group has a row: the number means layer ``number * every + first``.
    """

    source: str
    target: str
    steps: tuple[Step, ...] = ()
    copy: bool = False
    expert: int | None = None
    every: int = 1
    first: int = 0


@dataclass(frozen=True, slots=True)
class Ignore:
    """Source tensors that are read by nobody on purpose; ``reason`` is printed by the conversion report."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Table:
    """All rows of one family.

    Attributes:
        prefix: what a checkpoint with a head puts before backbone names (``"bert."``); stripped per tensor, so
            bare backbones and mixed layouts load as well.
        other_prefixes: what other versions put there; stripped alike, never written.
        rules: backbone rows; sources without prefix.
        head: rows of the head without its last linear layer (a dense pooler, say); sources without prefix.
        head_names: top-level module names that may hold the last linear layer, in order of preference.
        outside: top-level modules of ``head`` that stand beside the backbone, so without prefix; those that
            ``head_names`` name do anyway.
        head_bias: source name of that layer's bias, where it is not called as the layer is.
        ignore: sources read by nobody.
        embedding: source name of the token embedding (rows for a tied LM head).
    """

    prefix: str
    rules: tuple[Rule, ...]
    head: tuple[Rule, ...] = ()
    head_names: tuple[str, ...] = ("score", "classifier")
    head_bias: str = ""
    outside: tuple[str, ...] = ()
    ignore: tuple[Ignore, ...] = ()
    embedding: str = ""
    other_prefixes: tuple[str, ...] = ()

    @property
    def prefixes(self) -> tuple[str, ...]:
        """All that may stand before a backbone name; nothing is the first."""
        return ("", self.prefix, *self.other_prefixes)


@dataclass(frozen=True, slots=True)
class HeadSource:
    """Where the last linear layer of the head comes from.

    Attributes:
        weight: full source name of the ``[labels, width]`` weight (or of the LM head / embedding, see ``rows``).
        bias: full source name of its bias, or None.
        num_labels: number of labels it yields.
        rows: None for an ordinary head; token ids whose LM-head rows become the head.
        method: how rows become the head: ``from_2_way_softmax`` (row[1] - row[0], one label) or
            ``no_post_processing`` (one label per row).
    """

    weight: str
    bias: str | None
    num_labels: int
    rows: tuple[int, ...] | None = None
    method: Literal["from_2_way_softmax", "no_post_processing"] | None = None


NO_HEAD = HeadSource("", None, num_labels=0)
"""The head of a model that embeds: there is none."""
