"""Texts that begin alike: who shares what, found by token ids alone, so it is always exact. numpy in, numpy out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 16
"""Tokens from one place to the next at which a text's beginning is compared with those of texts before it."""


class Owner(NamedTuple):
    """Whose a text is: only texts of an equal owner share anything.

    Attributes:
        tenant: as of a ``Row``.
        adapter: serial number of the adapter that computes it, which no other one ever has; 0 for none.
    """

    tenant: Hashable = None
    adapter: int = 0


NOBODY = Owner()


class Beginning(NamedTuple):
    """Tokens that texts begin with, and whose; what is computed of them is kept under this.

    Attributes:
        ids: int32 token ids, as bytes.
        owner: texts of others never see it.
    """

    ids: bytes
    owner: Owner = NOBODY

    @classmethod
    def of(cls, ids: np.ndarray, length: int, owner: Owner = NOBODY) -> Beginning:
        """The first ``length`` of a text's token ids."""
        return cls(np.asarray(ids[:length], np.int32).tobytes(), owner)

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids) // 4

    @property
    def tokens(self) -> np.ndarray:
        """The token ids, int32."""
        return np.frombuffer(self.ids, np.int32)


class Group(NamedTuple):
    """Texts (int64 indices) that share their first ``length`` tokens."""

    length: int
    texts: np.ndarray


class Sums(NamedTuple):
    """What a price needs of texts: how many, and the sums of their tokens and of the squares of those."""

    texts: int
    tokens: float
    squares: float


def divide(
    texts: Sequence[np.ndarray], limits: np.ndarray, worth: Callable[[int, Sums], tuple[float, int]]
) -> list[Group]:
    """Who should share which beginning; texts that should not are in no group, the others in one.

    Sorted, texts with a common beginning are neighbours, and what neighbours have in common makes a tree. From its
    leaves up each node either lets all its texts share what they have in common or leaves it to its children.

    Args:
        texts: int32 token ids of each.
        limits: most tokens of each that others may share.
        worth: told how many tokens some texts have in common, and their ``Sums``, it says what sharing would save
            (anything not positive: nothing), and how many of the tokens to share.
    """
    sortable = [ids.astype(">u4").tobytes() for ids in texts]
    order = np.array(sorted(range(len(texts)), key=sortable.__getitem__), np.int64)
    lengths = np.array([len(texts[i]) for i in order], np.float64)
    tokens, squares = (np.concatenate([[0.0], np.cumsum(y)]) for y in (lengths, lengths**2))
    sorted_limits = limits[order]
    open_nodes: list[tuple[int, int, float, list[tuple[int, int, int]]]] = []  # common, first, saved, groups
    done: list[tuple[int, int, int]] = []
    for stop in range(1, len(texts) + 1):
        shares = common(texts[order[stop - 1]], texts[order[stop]]) if stop < len(texts) else 0
        first, saved = stop - 1, 0.0
        groups: list[tuple[int, int, int]] = []
        while open_nodes and open_nodes[-1][0] > shares:
            shared, first, before, earlier = open_nodes.pop()
            saved, groups = saved + before, earlier + groups
            limit = int(sorted_limits[first:stop].min())
            sums = Sums(stop - first, tokens[stop] - tokens[first], squares[stop] - squares[first])
            best, length = worth(min(shared, limit), sums)
            if best > saved:
                saved, groups = best, [(length, first, stop)]
        if shares == 0:
            done += groups
        elif open_nodes and open_nodes[-1][0] == shares:
            _, start, before, earlier = open_nodes[-1]
            open_nodes[-1] = (shares, start, before + saved, earlier + groups)
        else:
            open_nodes.append((shares, first, saved, groups))
    return [Group(length, order[first:stop]) for length, first, stop in done]


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    shorter = min(len(one), len(other))
    differs = one[:shorter] != other[:shorter]
    first = int(differs.argmax()) if shorter else 0
    return first if shorter and differs[first] else shorter


class Recurring:
    """Remembers what texts began with, block by block, to tell what is worth computing once for those to come.

    Args:
        most: blocks that are remembered; those that came longest ago are forgotten.
    """

    def __init__(self, most: int = 1 << 16) -> None:
        self._most = most
        self._seen: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, ids: np.ndarray, owner: Owner) -> list[int]:
        """A text came: how often, this time included, one came that begins with its first block, its first two, …

        Blocks go by a hash of all that precedes them. Where two have the same one a count is wrong, never a score:
        what is computed is kept under the tokens themselves.
        """
        content, size = np.asarray(ids, np.int32).tobytes(), 4 * BLOCK
        chain, counts = hash(owner), []
        for start in range(0, len(content) - size + 1, size):
            chain = hash((chain, content[start : start + size]))
            counts.append(self._seen.pop(chain, 0) + 1)
            self._seen[chain] = counts[-1]
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return counts
