"""A language model as a server's batcher sees it: rows of several requests, programs of a fixed set, no compile later.

Whatever is asked, rows are cut so that they fit one of two kinds of programs: labels of one token, of which logits of a
text's last token are enough, and all others.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from jaxpool.engine.buckets import Bucket, CostModel, essential, grid
from jaxpool.engine.daemon_threads import DaemonThreads
from jaxpool.engine.engine import Engine
from jaxpool.errors import EngineError
from jaxpool.zero_shot.kinds import branches
from jaxpool.zero_shot.programs import AnswerPrograms, Shape
from jaxpool.zero_shot.tree import Piece

READS, STEPS = 32, 64
"""Hidden states that are read of a row, and predictions: 20 labels of 1 to 4 tokens fit. More labels take more rows."""

ONE_TOKEN = (1, 64)
"""The same where every label has one token."""


class Rows(NamedTuple):
    """What a batcher asks about results: they are arrays of different lengths."""

    per_token: bool = True


class AnswerEngine:
    """Computes batches of pieces, as an ``Engine`` does of texts; its methods are those that a batcher calls.

    Args:
        engine: the language model.

    Attributes:
        buckets: the shapes it may compute.
        spec: see ``Rows``.
        prefixes: None: it keeps no beginnings of texts.
    """

    prefixes = None

    def __init__(self, engine: Engine) -> None:
        self._engine, self._sealed = engine, False
        self._programs = AnswerPrograms(engine)
        mesh = engine.programs.mesh
        most = max(bucket.tokens for bucket in engine.buckets)
        shapes = grid(engine.spec.max_length, most, row_multiple=mesh.shape["data"], per_octave=2, row_factor=4)
        self.buckets = tuple(sorted(shapes))
        self.spec = Rows()
        self._branched = branches(engine.spec)
        self._threads = DaemonThreads(2, "jaxpool-answers-run")  # one pads while the other computes
        weakref.finalize(self, self._threads.shutdown)
        self._device = threading.Lock()

    @property
    def cost(self) -> CostModel:
        """Predicted seconds of a batch."""
        return self._engine.cost

    @property
    def begun(self) -> int:
        """Compiles begun or waiting so far; never grows once it is warm."""
        return self._programs.begun

    @property
    def usable(self) -> tuple[Bucket, ...]:
        """The buckets that cost no compile; before ``warm``, all of them."""
        if not self._sealed:
            return self.buckets
        ready = set(self._programs.ready)
        return tuple(bucket for bucket in self.buckets if self._any(bucket) in ready)

    def compiling(self) -> list[Future[Any]]:
        """One future per program, those that any row needs first."""
        first = essential(self.buckets)
        order = [*first, *(bucket for bucket in self.buckets if bucket not in first)]
        return [self._programs.start(kind(bucket)) for kind in (self._any, self._one_token) for bucket in order]

    def warm(self, everything: bool = False) -> None:
        """Begins to compile all programs; returns when no row has to wait for one, or when ``everything`` is there."""
        futures = self.compiling()
        self._sealed = True
        for one in futures if everything else futures[: len(essential(self.buckets))]:
            one.result()

    def check_process(self) -> None:
        """As of an ``Engine``."""
        self._engine.check_process()

    def submit(self, rows: Sequence[Piece], bucket: Bucket, places: np.ndarray | None = None) -> Future[list[Any]]:
        """Queues one batch.

        Args:
            rows: pieces that fit into the bucket, made with the limits of this module.
            bucket: one of ``usable``.
            places: None.

        Returns:
            A future of float32 ``[steps]`` of each piece; EngineError where the engine is closed.
        """
        self.check_process()
        try:
            return self._threads.submit(self._run, rows, bucket)
        except RuntimeError:
            future: Future[list[Any]] = Future()
            future.set_exception(EngineError("the engine is closed"))
            return future

    def close(self) -> None:
        """Finishes what was submitted, compiles and takes nothing more."""
        self._programs.close()
        self._threads.shutdown()

    def _run(self, rows: Sequence[Piece], bucket: Bucket) -> list[Any]:
        shape, small = self._any(bucket), self._one_token(bucket)
        if not any(piece.absolute for piece in rows) and (not self._sealed or small in self._programs.ready):
            shape = small
        with self._device:
            values = np.asarray(self._programs.compute(rows, shape))
        return [one[: len(piece.steps)].copy() for one, piece in zip(values, rows)]

    def _any(self, bucket: Bucket) -> Shape:
        return Shape(bucket, READS, STEPS, branched=self._branched, absolute=True)

    def _one_token(self, bucket: Bucket) -> Shape:
        return Shape(bucket, *ONE_TOKEN, branched=False, absolute=False)
