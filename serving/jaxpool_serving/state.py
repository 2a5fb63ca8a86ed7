"""What the application and every request carry, each under one typed key."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.options import Options

if TYPE_CHECKING:
    from jaxpool.checkpoints.adapters import Answers
    from jaxpool.checkpoints.spec import Spec
    from jaxpool.engine.adapters import Loaded
    from jaxpool.llm import LLM
    from jaxpool.zero_shot.kinds import Kind
    from jaxpool.zero_shot.options import Question
    from jaxpool_serving.batching.batcher import Batcher
    from jaxpool_serving.chat_rendering import Renderers
    from jaxpool_serving.tokenization import TokenizerThreads

MAX_ID = 256
"""Characters of a request id that are logged and sent back; a longer one is cut."""
CLIENT_LEFT = 499
"""The status on record for a request whose client left before the answer; nothing is sent."""


@dataclass(slots=True)
class RequestRecord:
    """One request, filled in on its way. Durations are seconds.

    Attributes:
        request_id: the header ``X-Request-Id``, else what the body says, else random.
        method: of the request.
        path: as requested, decoded, without the query.
        route: the resource that answered, such as ``/classify``; ``unknown`` where there is none.
        time: when it arrived, Unix seconds.
        arrived: the same on the monotonic clock.
        status: of the answer.
        total: from arrival to the answer.
        model: served name; None where no model was used.
        texts: prompts admitted.
        tokens: of all prompts, after truncation and padding.
        tokenise: in the tokenizer's threads, the wait for a thread included.
        queue: from then until the last of its texts went to the device.
        device: from then until the last result came back.
        trace_id: hexadecimal, where a trace is taken.
    """

    request_id: str
    method: str
    path: str
    route: str
    time: float = field(default_factory=time.time)
    arrived: float = field(default_factory=monotonic)
    status: int = CLIENT_LEFT
    total: float = 0.0
    model: str | None = None
    texts: int = 0
    tokens: int = 0
    tokenise: float = 0.0
    queue: float = 0.0
    device: float = 0.0
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is loaded and warm, with its queue.

    Attributes:
        name: what requests say in ``model`` and responses carry.
        llm: the model.
        batcher: its queue.
        questions: how it answers those that were asked before, the last one used last.
        adapter: what it answers with, where a request named one; ``name`` is the adapter's then.
        base: the model's own name where ``name`` is an adapter's.
    """

    name: str
    llm: LLM
    batcher: Batcher
    questions: dict[Question, Kind] = field(default_factory=dict)
    adapter: Loaded | None = None
    base: str | None = None

    @property
    def answers(self) -> Spec | Answers:
        """What has its ``labels``, its ``activation`` and its ``problem``."""
        return self.llm.engine.spec if self.adapter is None else self.adapter.answers


OPTIONS = web.AppKey("OPTIONS", Options)
MODELS = web.AppKey("MODELS", dict[str, asyncio.Future[ServedModel]])
"""Name -> a future, done when the model is warm or has failed to load. The first answers requests that name none."""
VERSION = importlib.metadata.version("jaxpool")
Observer = Callable[[web.Request, RequestRecord], None]
OBSERVERS = web.AppKey("OBSERVERS", list[Observer])
"""Called in order with every request that has been answered."""
PROBES = frozenset({"/health", "/ready", "/ping", "/metrics"})
"""Paths that orchestrators ask every few seconds."""
TOKENIZER_THREADS: web.AppKey[TokenizerThreads] = web.AppKey("TOKENIZER_THREADS")
RENDERERS: web.AppKey[Renderers] = web.AppKey("RENDERERS")
BODY_THREAD = web.AppKey("BODY_THREAD", Executor)
"""Where large bodies are unpacked and read, one after the other."""
RECORD = web.RequestKey("RECORD", RequestRecord)
