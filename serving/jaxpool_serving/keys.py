"""What the application holds, each under one typed key."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from jaxpool.llm import LLM
    from jaxpool_serving.batcher import Batcher


@dataclass(frozen=True, slots=True)
class Options:
    """How the server behaves; every field is an option of ``jaxpool serve``.

    Attributes:
        api_keys: accepted bearer tokens, for everything but ``/health`` and ``/ready``; empty means open.
        max_inputs: most texts in one request.
        max_queued_texts: most texts admitted and not yet answered, all requests together; beyond it 429.
        max_body_bytes: largest request body; beyond it 413.
        tokenizer_threads: threads that tokenise.
        shutdown_timeout: seconds that requests in flight get after SIGTERM.
    """

    api_keys: tuple[str, ...] = ()
    max_inputs: int = 1024
    max_queued_texts: int = 4096
    max_body_bytes: int = 16 * 2**20
    tokenizer_threads: int = 2
    shutdown_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is loaded and warm, with its queue.

    Attributes:
        name: what requests say in ``model`` and responses carry.
        llm: the model.
        batcher: its queue.
    """

    name: str
    llm: LLM
    batcher: Batcher


OPTIONS = web.AppKey("OPTIONS", Options)
MODELS = web.AppKey("MODELS", dict[str, asyncio.Future[Served]])
"""Name -> a future, done when the model is warm or has failed to load. The first answers requests that name none."""
TOKENIZER_THREADS = web.AppKey("TOKENIZER_THREADS", Executor)
