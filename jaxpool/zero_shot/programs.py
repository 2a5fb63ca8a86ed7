"""Programs that read answers: tokens and a tree in, one number per predicted token out.

Shape letters: B rows, T tokens, R hidden states that are read of a row, E predictions of a row.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import sharding
from jaxpool.engine.batches import Past
from jaxpool.engine.beginnings import NOBODY, Beginning, common
from jaxpool.engine.buckets import Batch, Bucket, grid, on_demand, plan
from jaxpool.engine.daemon_threads import DaemonThreads
from jaxpool.engine.engine import Engine
from jaxpool.engine.packing import seconds
from jaxpool.engine.prefixes import LEAST, rounded
from jaxpool.engine.programs import STACK_BYTES, abstract
from jaxpool.errors import EngineError
from jaxpool.models.language_head import answer_logits
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.zero_shot.tree import Piece

IN_FLIGHT = 2
"""Batches that the device has at once: one computes while the next is placed."""


class Inputs(NamedTuple):
    """One batch, all int32.

    Attributes:
        ids: ``[B, T]``, right-padded.
        lengths: ``[B]``, branches included; 1 for padding rows.
        positions, until: ``[B, T]``, as in ``Layout.branched``; both None where no row branches.
        reads: ``[B, R]``, index of each hidden state that is read.
        which: ``[B, E]``, which of those predicts.
        tokens: ``[B, E]``, what is predicted.
        absolute: bool ``[B]``, whether log-probabilities are wanted; None where logits will do for all rows.
        past: what all rows' texts begin with and the rows do not hold; None where they hold all.
    """

    ids: Any
    lengths: Any
    positions: Any
    until: Any
    reads: Any
    which: Any
    tokens: Any
    absolute: Any
    past: Past | None = None


class Shape(NamedTuple):
    """What a program is compiled for.

    Attributes:
        bucket: rows and tokens, and places for a shared beginning.
        reads, steps: R and E.
        branched: whether rows branch.
        absolute: whether log-probabilities may be wanted, or logits will do.
    """

    bucket: Bucket
    reads: int
    steps: int
    branched: bool
    absolute: bool


class AnswerPrograms:
    """The executables of one engine that read answers, each compiled when it is first needed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._futures: dict[Shape, Future[Any]] = {}
        self._lock = threading.Lock()
        self._compiler = DaemonThreads(1, "jaxpool-answers", STACK_BYTES)
        weakref.finalize(self, self._compiler.shutdown)
        mesh = engine.programs.mesh
        self._platform = mesh.devices.flat[0].platform
        most = max(bucket.tokens for bucket in engine.buckets)
        # Each text has a row of its own here: answers branch off its end.
        self._buckets = on_demand(grid(engine.spec.max_length, most, row_multiple=mesh.shape["data"]))

    @property
    def begun(self) -> int:
        """Programs whose compile has begun, or waits for its turn."""
        return len(self._futures)

    @property
    def ready(self) -> list[Shape]:
        """Those that are compiled."""
        with self._lock:
            return [shape for shape, one in self._futures.items() if one.done() and not _failed(one)]

    def start(self, shape: Shape) -> Future[Any]:
        """A program, as soon as it is compiled; they are compiled one after the other."""
        with self._lock:
            if shape not in self._futures or _failed(self._futures[shape]):
                self._futures[shape] = self._compiler.submit(self._compile, shape)
            return self._futures[shape]

    def close(self) -> None:
        """Compiles nothing more."""
        self._compiler.shutdown(cancel_futures=True)

    def run(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """For each piece float32 ``[steps]``: what each of its predictions scores.

        Args:
            pieces: none longer than the longest bucket; all of them branch, or none.

        Raises:
            EngineError: the engine is closed, or belongs to another process.
        """
        engine = self._engine
        engine.check_process()
        reads = _padded(max(len(piece.reads) for piece in pieces), 1)
        steps = _padded(max(len(piece.steps) for piece in pieces), 8)
        branched, absolute = pieces[0].until is not None, any(piece.absolute for piece in pieces)
        ready = {shape.bucket for shape in self.ready if shape[1:] == (reads, steps, branched, absolute)}
        found: list[np.ndarray] = [np.empty(0)] * len(pieces)
        waiting: deque[tuple[np.ndarray, jax.Array]] = deque()
        beginning, batches = self._planned(pieces, frozenset(ready))
        if beginning is not None:
            pieces = [piece.behind(beginning.length) for piece in pieces]
        for batch in [*batches, None]:
            if batch is not None:
                shape = Shape(batch.bucket, reads, steps, branched, absolute)
                waiting.append((batch.rows, self.compute([pieces[i] for i in batch.rows], shape, beginning)))
            while waiting and (batch is None or len(waiting) >= IN_FLIGHT):
                rows, out = waiting.popleft()
                for row, values in zip(rows, np.asarray(out)):
                    found[row] = values[: len(pieces[row].steps)].copy()
        return found

    def _planned(self, pieces: Sequence[Piece], ready: frozenset[Bucket]) -> tuple[Beginning | None, list[Batch]]:
        """The batches, and what all pieces begin with where computing that once costs less: the prompt, its examples.

        What the store has is taken, or as much as they have in common.
        """
        cost, prefixes = self._engine.cost, self._engine.prefixes
        lengths = np.array([len(piece.ids) for piece in pieces])
        found: tuple[Beginning | None, list[Batch]] = None, plan(lengths, self._buckets, cost, ready)
        if prefixes is None:
            return found
        first, limit = pieces[0].ids, min(piece.text for piece in pieces) - 1  # a text's last token is read
        shared = min(limit, *(common(first, piece.ids) for piece in pieces))
        known = prefixes.store.longest(first, NOBODY, shared)
        options = {Beginning.of(first, length) for length in rounded(shared) if length >= LEAST}
        least = seconds(found[1], cost, ready)
        there = ready | self._engine.programs.ready()
        for one in sorted(options if known is None else options | {known}):
            menu = [bucket for bucket in prefixes.menu(one.length) if bucket.segments == 1]
            if not menu or max(lengths) - one.length > max(bucket.length for bucket in menu):
                continue
            batches = plan(lengths - one.length, menu, cost, ready)
            new = [] if one in prefixes.store else [Batch(prefixes.program(one), np.empty(0, np.int64))]
            if (price := seconds([*batches, *new], cost, there)) < least:
                least, found = price, (one, batches)
        return found

    def compute(self, pieces: Sequence[Piece], shape: Shape, beginning: Beginning | None = None) -> jax.Array:
        """One batch, begun: float32 ``[rows, steps]`` of ``shape``, the pieces' rows first.

        Args:
            pieces: what the rows hold.
            shape: that they fit into.
            beginning: what comes before each, if the shape has places for it.

        Raises:
            EngineError: the engine is closed.
        """
        inputs, program = pad(pieces, shape), self.start(shape).result()
        if not (leaves := self._engine.leaves):
            raise EngineError("This LLM is closed; make a new one.")
        inputs = jax.device_put(inputs, self._shardings(shape))
        if beginning is not None and (prefixes := self._engine.prefixes) is not None:
            past, known = prefixes.computed(beginning, leaves)
            prefixes.saved += beginning.length * (len(pieces) - (not known))
            inputs = inputs._replace(past=past)
        found: jax.Array = program(leaves, inputs)
        return found

    def _shardings(self, shape: Shape) -> Inputs:
        """Of all inputs but the past."""
        rows = sharding.rows(self._engine.programs.mesh)
        tree, absolute = rows if shape.branched else None, rows if shape.absolute else None
        return Inputs(rows, rows, tree, tree, rows, rows, rows, absolute)

    def _compile(self, shape: Shape) -> Any:
        spec, mesh = self._engine.spec, self._engine.programs.mesh
        model = abstract(spec, Implementation({"cuda": "gpu", "rocm": "gpu"}.get(self._platform, self._platform)))
        treedef = jax.tree.structure(model)
        leaves = list(sharding.targets(model, mesh).values())
        shardings = self._shardings(shape)

        def run(leaves: list[jax.Array], inputs: Inputs) -> jax.Array:
            return answers(jax.tree.unflatten(treedef, leaves), inputs, spec)

        def numbers(*size: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((shape.bucket.rows, *size), jnp.int32)

        text = numbers(shape.bucket.length)
        tree = text if shape.branched else None
        steps, flags = numbers(shape.steps), jax.ShapeDtypeStruct((shape.bucket.rows,), jnp.bool_)
        absolute = flags if shape.absolute else None
        inputs = Inputs(text, numbers(), tree, tree, numbers(shape.reads), steps, steps, absolute)
        if shape.bucket.prefix:
            past, placed = self._engine.programs.past(shape.bucket.prefix)
            inputs, shardings = inputs._replace(past=past), shardings._replace(past=placed)
        jitted = jax.jit(
            run,
            in_shardings=([leaf.sharding for leaf in leaves], shardings),
            out_shardings=sharding.whole(mesh),
        )
        with jax.set_mesh(mesh):
            return jitted.lower(leaves, inputs).compile()


def answers(model: Any, inputs: Inputs, spec: Spec) -> jax.Array:
    """The forward: float32 ``[B, E]``."""
    if inputs.until is None:
        layout = Layout.padded(inputs.lengths, inputs.ids.shape[1])
    else:
        layout = Layout.branched(inputs.lengths, inputs.positions, inputs.until)
    if inputs.past is not None:
        layout = layout.behind(inputs.past.length, inputs.past.notes, inputs.past.reach)
    assert spec.language is not None
    with jax.default_matmul_precision("float32" if spec.dtype == "float32" else "default"):
        hidden_BTD = model.backbone(inputs.ids, None, layout)
        hidden_BRD = jnp.take_along_axis(hidden_BTD, inputs.reads[:, :, None], axis=1)
        asked = model, spec.language, hidden_BRD, inputs.which, inputs.tokens
        logits_BE = answer_logits(*asked, absolute=False)
        if inputs.absolute is None:
            return logits_BE
        return jnp.where(inputs.absolute[:, None], answer_logits(*asked, absolute=True), logits_BE)


def pad(pieces: Sequence[Piece], shape: Shape) -> Inputs:
    """One batch as numpy arrays; missing rows become length 1."""
    rows, length = shape.bucket.rows, shape.bucket.length
    ids, reads = np.zeros((rows, length), np.int32), np.zeros((rows, shape.reads), np.int32)
    which, tokens = (np.zeros((rows, shape.steps), np.int32) for _ in range(2))
    lengths = np.ones(rows, np.int32)
    positions = until = None
    if shape.branched:
        positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        until = np.full((rows, length), length, np.int32)
    for i, piece in enumerate(pieces):
        size = lengths[i] = len(piece.ids)
        ids[i, :size] = piece.ids
        reads[i, : len(piece.reads)] = piece.reads
        which[i, : len(piece.steps)], tokens[i, : len(piece.steps)] = zip(*piece.steps)
        if piece.positions is not None and piece.until is not None and positions is not None and until is not None:
            positions[i, :size] = piece.positions
            until[i, :size] = piece.until
    absolute = np.zeros(rows, bool) if shape.absolute else None
    if absolute is not None:
        absolute[: len(pieces)] = [piece.absolute for piece in pieces]
    return Inputs(ids, lengths, positions, until, reads, which, tokens, absolute)


def _failed(one: Future[Any]) -> bool:
    return one.cancelled() or (one.done() and one.exception() is not None)


def _padded(count: int, least: int) -> int:
    """The next power of two: few sizes, so few programs."""
    return max(least, 1 << (count - 1).bit_length())
