"""Answers of several tokens as one tree behind each text: what must be computed, and where each answer is read.

The last token of an answer is predicted, never read, so only the tokens before it are nodes; answers that begin alike
share them. An answer of one token needs no node at all: the text's own last token predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
        positions: of each token, as if its branch stood alone; None: the first is 0, and so on.
        until: index of the first token that does not see this one any more; None: every later one sees it.
        reads: indices of the tokens whose predictions are wanted.
        steps: ``(index into reads, token)`` of each prediction.
        places: index of each prediction among the tree's ``steps``.
    """

    ids: np.ndarray
    positions: np.ndarray | None
    until: np.ndarray | None
    reads: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    places: tuple[int, ...]


def together(context: Sequence[int], tree: Tree) -> Piece:
    """The whole tree behind one text, in one row that branches."""
    start = len(context)
    nodes = sorted({node for node, _ in tree.steps})
    slot = {node: i for i, node in enumerate(nodes)}
    ids = np.array([*context, *tree.tokens], np.int32)
    return Piece(
        ids,
        np.concatenate([np.arange(start), start - 1 + np.array(tree.depths, np.int64)]).astype(np.int32),
        np.concatenate([np.full(start, len(ids)), start + np.array(tree.ends, np.int64)]).astype(np.int32),
        tuple(start + node for node in nodes),
        tuple((slot[node], token) for node, token in tree.steps),
        tuple(range(len(tree.steps))),
    )


def apart(context: Sequence[int], tree: Tree) -> list[Piece]:
    """A row for each branch: for models that carry a state along the row, and trees too large for one."""
    inner = {parent for parent in tree.parents if parent >= 0}
    leaves = [node for node in range(len(tree.tokens)) if node not in inner] or [-1]
    done: set[int] = set()
    pieces = []
    for leaf in leaves:
        path: list[int] = []
        node = leaf
        while node >= 0:
            path.append(node)
            node = tree.parents[node]
        path.reverse()
        read = [node for node in (-1, *path) if node not in done]
        done |= set(read)
        slot = {node: i for i, node in enumerate(read)}
        at = {node: len(context) + i for i, node in enumerate(path)} | {-1: len(context) - 1}
        wanted = [(place, step) for place, step in enumerate(tree.steps) if step[0] in slot]
        pieces.append(
            Piece(
                np.array([*context, *(tree.tokens[node] for node in path)], np.int32),
                None,
                None,
                tuple(at[node] for node in read),
                tuple((slot[node], token) for _, (node, token) in wanted),
                tuple(place for place, _ in wanted),
            )
        )
    return pieces
