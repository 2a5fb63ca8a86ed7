"""A tiny real model, served on a real socket."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from jaxpool import LLM
from jaxpool.errors import EngineError
from jaxpool_serving.app import init_app
from jaxpool_serving.options import Options
from jaxpool_serving.state import MODELS as LOADED

if TYPE_CHECKING:
    from jaxpool.engine.buckets import Bucket
    from jaxpool.engine.engine import Engine, Row

MODELS = Path(__file__).parents[1] / "data" / "models"


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """bert-cls: three labels; small limits, so that its whole grid compiles in a few seconds."""
    with LLM(str(MODELS / "bert-cls"), max_model_len=48, max_num_batched_tokens=192, compile="ahead") as llm:
        yield llm


@contextlib.asynccontextmanager
async def serving(
    llm: LLM | Callable[[], LLM], *, name: str = "bert", ready: bool = True, **options: Any
) -> AsyncIterator[TestClient]:
    """A client of a server that listens on a free port of this machine."""
    app = init_app({name: llm}, Options(**options))
    async with TestClient(TestServer(app)) as client:
        if ready:
            await app[LOADED][name]
        yield client


class TamperedEngine:
    """The real engine behind two faults: a row with ``poison`` fails its batch, ``hold`` stops them all."""

    poison = 99

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.spec, self.buckets, self.cost, self.adapters = engine.spec, engine.buckets, engine.cost, None
        self.under_way = engine.under_way
        self.batches: list[list[Row]] = []  # every batch that came in
        self.used: list[Bucket] = []  # and its bucket
        self.prefixes = None  # of one that reads every text whole
        self.hold = False
        self._held: list[tuple[Future[np.ndarray], Sequence[Row], Bucket, np.ndarray | None]] = []

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Nothing is computed inside, whatever comes in."""
        self.hold = True
        try:
            yield
        finally:
            self.release()

    @property
    def usable(self) -> tuple[Bucket, ...]:
        return self.engine.usable

    @property
    def begun(self) -> int:
        return self.engine.begun

    def check_process(self) -> None:
        """As the real engine."""

    def submit(self, rows: Sequence[Row], bucket: Bucket, places: np.ndarray | None = None) -> Future[np.ndarray]:
        self.batches.append(list(rows))
        self.used.append(bucket)
        answer: Future[np.ndarray] = Future()
        self._held.append((answer, rows, bucket, places))
        if not self.hold:
            self.release()
        return answer

    def release(self) -> None:
        """Compute what was held, and hold no more."""
        self.hold, held, self._held = False, self._held, []
        for answer, rows, bucket, places in held:
            if any(self.poison in row.ids for row in rows):
                answer.set_exception(EngineError("logits are not finite"))
                continue
            computed = self.engine.submit(rows, bucket, places)
            computed.add_done_callback(lambda done, to=answer: to.set_result(done.result()))

    def close(self) -> None:
        """The real engine is shared by all tests and stays open."""


@pytest.fixture
def tampered(llm: LLM) -> LLM:
    """The same model with a `TamperedEngine`."""
    twin = copy.copy(llm)
    twin.engine = TamperedEngine(llm.engine)  # type: ignore[assignment]
    return twin
