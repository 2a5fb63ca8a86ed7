"""Answers of several tokens as one tree behind each text: what must be computed, and where each answer is read.

The last token of an answer is predicted, never read, so only the tokens before it are nodes; answers that begin alike
share them. An answer of one token needs no node at all: the text's own last token predicts it.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Tree:
    """Answers as a tree.

    Attributes:
        tokens: token id of each node, in preorder.
        depths: how far each stands behind the text, from 1.
        ends: for each node, how many nodes stand before the first that does not descend from it.
        parents: index of the node before each, -1 for the text itself.
        steps: ``(node, token)``: a token that is predicted, and by which node (-1: by the text's last token).
        answers: for each answer the indices into ``steps`` that spell it.
    """

    tokens: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    parents: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def depth(self) -> int:
        """Most tokens that any branch adds to a text."""
        return max(self.depths, default=0)

    @property
    def absolute(self) -> bool:
        """Whether answers are comparable by log-probabilities alone; logits do where all have one token."""
        return any(len(answer) > 1 for answer in self.answers)


@dataclass(slots=True)
class _Node:
    token: int = -1
    children: dict[int, _Node] = field(default_factory=dict)


def grow(answers: Sequence[Sequence[int]]) -> Tree:
    """The tree of answers, each of at least one token."""
    root = _Node()
    for answer in answers:
        node = root
        for token in answer[:-1]:
            node = node.children.setdefault(token, _Node(token))
    tokens: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    parents: list[int] = []
    place: dict[tuple[int, ...], int] = {(): -1}
    # An explicit stack, not recursion: an answer may be longer than Python's.
    stack: list[tuple[_Node, tuple[int, ...], bool]] = [
        (child, (), False) for child in reversed(root.children.values())
    ]
    while stack:
        node, above, left = stack.pop()
        path = (*above, node.token)
        if left:
            ends[place[path]] = len(tokens)
            continue
        place[path] = len(tokens)
        tokens.append(node.token)
        depths.append(len(path))
        parents.append(place[above])
        ends.append(0)
        stack.append((node, above, True))
        stack += [(child, path, False) for child in reversed(node.children.values())]
    steps: dict[tuple[int, int], int] = {}
    spelled = []
    for answer in answers:
        found = [(place[tuple(answer[:i])], token) for i, token in enumerate(answer)]
        spelled.append(tuple(steps.setdefault(step, len(steps)) for step in found))
    return Tree(tuple(tokens), tuple(depths), tuple(ends), tuple(parents), tuple(steps), tuple(spelled))


@dataclass(frozen=True, slots=True)
class Piece:
    """One row of a batch: a text and the nodes behind it, or some of them.

    Attributes:
        ids: its tokens.
        text: how many of them are the text's; the others are nodes.
        positions: of each token, as if its branch stood alone; None: the first is 0, and so on.
        until: index of the first token that does not see this one any more; None: every later one sees it.
        reads: indices of the tokens whose predictions are wanted.
        steps: ``(index into reads, token)`` of each prediction.
        places: index of each prediction among the tree's ``steps``.
        absolute: whether log-probabilities are wanted, or logits will do.
        beginning: None: all of it is computed (a batcher asks).
    """

    ids: np.ndarray
    text: int
    positions: np.ndarray | None
    until: np.ndarray | None
    reads: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    places: tuple[int, ...]
    absolute: bool = True
    beginning: None = None

    def behind(self, begun: int) -> Piece:
        """What is left of it where the first tokens, fewer than the text's, are computed elsewhere."""
        return replace(
            self,
            ids=self.ids[begun:],
            text=self.text - begun,
            positions=None if self.positions is None else self.positions[begun:] - begun,
            until=None if self.until is None else self.until[begun:] - begun,
            reads=tuple(at - begun for at in self.reads),
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What one row may hold.

    Attributes:
        tokens: of the text and of the nodes behind it.
        reads, steps: hidden states that are read, and predictions.
        branches: whether a row may branch; else its nodes follow one another, as for models that carry a state along.
    """

    tokens: int
    reads: int = sys.maxsize
    steps: int = sys.maxsize
    branches: bool = True


class Cutter:
    """Makes the rows of texts behind which a tree stands.

    Args:
        tree: what follows each text.
        limits: of a row.
    """

    def __init__(self, tree: Tree, limits: Limits) -> None:
        self.tree, self.limits = tree, limits
        self._groups: dict[int, list[tuple[list[int], list[int]]]] = {}

    def pieces(self, context: Sequence[int]) -> list[Piece]:
        """The rows of one text: one where the tree fits, else several, in which no prediction is made twice.

        Args:
            context: the text's tokens; with the longest branch they are within ``limits.tokens``.
        """
        room = min(self.limits.tokens - len(context), len(self.tree.tokens))
        if room not in self._groups:
            self._groups[room] = _groups(self.tree, self.limits, room)
        return [_piece(context, self.tree, *group, self.limits.branches) for group in self._groups[room]]


def _groups(tree: Tree, limits: Limits, room: int) -> list[tuple[list[int], list[int]]]:
    """Nodes, in preorder and with all before them, and places of predictions, for each row of so many nodes."""
    nodes: dict[int, None] = {}
    places: list[int] = []
    readers: set[int] = set()
    found = []
    # in preorder of the readers: a row without branches ends just where a branch does
    for place in sorted(range(len(tree.steps)), key=lambda place: (tree.steps[place][0], place)):
        reader = tree.steps[place][0]
        path = _path(tree, reader)
        more = [node for node in path if node not in nodes]
        follows = limits.branches or not more or not nodes or path[-len(more) - 1 : -len(more)] == [max(nodes)]
        fits = len(nodes) + len(more) <= room and len(places) < limits.steps
        if places and not (follows and fits and len(readers | {reader}) <= limits.reads):
            found.append((sorted(nodes), places))
            nodes, places, readers, more = {}, [], set(), path
        nodes.update(dict.fromkeys(more))
        readers.add(reader)
        places.append(place)
    return [*found, (sorted(nodes), places)]


def _path(tree: Tree, node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = tree.parents[node]
    return path[::-1]


def _piece(context: Sequence[int], tree: Tree, nodes: Sequence[int], places: Sequence[int], branches: bool) -> Piece:
    """One row of a group."""
    start = len(context)
    ids = np.array([*context, *(tree.tokens[node] for node in nodes)], np.int32)
    at = {-1: start - 1} | {node: start + i for i, node in enumerate(nodes)}
    readers = sorted({tree.steps[place][0] for place in places})
    slot = {node: i for i, node in enumerate(readers)}
    positions = until = None
    if branches and tree.tokens:
        depths = [start - 1 + tree.depths[node] for node in nodes]
        ends = [start + bisect.bisect_left(nodes, tree.ends[node]) for node in nodes]
        positions = np.array([*range(start), *depths], np.int32)
        until = np.array([*([len(ids)] * start), *ends], np.int32)
    steps = tuple((slot[node], token) for node, token in (tree.steps[place] for place in places))
    reads = tuple(at[node] for node in readers)
    return Piece(ids, start, positions, until, reads, steps, tuple(places), tree.absolute)
