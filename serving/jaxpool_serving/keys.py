"""What the application holds, each under one typed key."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.record import Record

if TYPE_CHECKING:
    from jaxpool.llm import LLM
    from jaxpool.text.chat import ContentFormat
    from jaxpool_serving.batcher import Batcher
    from jaxpool_serving.rendering import Renderers
    from jaxpool_serving.tokenizer_threads import TokenizerThreads


@dataclass(frozen=True, slots=True)
class Options:
    """How the server behaves; every field is an option of ``jaxpool serve``.

    Attributes:
        api_keys: accepted bearer tokens, for everything but `PROBES`; empty means open.
        guard_probes: whether `PROBES` need a key too.
        allowed_origins: origins whose pages may call from a browser (CORS), ``*`` for any; empty turns CORS off.
        allowed_methods: what those pages may send, ``*`` for any method.
        allowed_headers: headers they may send, ``*`` for any.
        enable_request_id_headers: whether responses carry ``X-Request-Id``.
        access_log: file to append to, ``-`` for standard output; None for no access log.
        otlp_traces_endpoint: URL of an OpenTelemetry collector that gets a span per request, or None.
        chat_template: Jinja template that goes before the tokenizer's own, or None.
        trust_request_chat_template: whether requests may bring templates of their own.
        chat_template_content_format: how templates want contents: "string", "openai" (lists of parts) or "auto".
        max_inputs: most texts in one request.
        max_text_chars: most characters (or token ids) of one text, even where it will be truncated.
        max_tokens_per_request: most tokens of one request, after truncation.
        max_queued_texts: most texts admitted and not yet answered, all requests together; beyond it 429.
        max_queued_tokens: most tokens of those texts; beyond it 429.
        max_body_bytes: largest request body; beyond it 413.
        max_body_memory: most bytes of all bodies under way and of all answers not fetched yet; beyond it 503.
        max_connections: most connections; beyond it the one that is idle for longest is closed.
        compressed_bodies: whether bodies may be compressed; refused with 415 otherwise.
        max_body_ratio: most bytes that a byte of a compressed body may unpack to; beyond it 413.
        body_timeout: seconds that a client may take to send a body; after them 408.
        idle_timeout: seconds after which a connection is closed on which no request comes, or no answer is fetched.
        request_timeout: seconds after which a request that names no ``timeout`` is dropped, 504; None for never.
        template_timeout: seconds that a chat template may take; then 504, and its process is ended.
        tokenizer_timeout: seconds that the tokenizer may take for one piece of a request; then 504.
        max_wait_ms: milliseconds that a text waits for company when the device is idle.
        tokenizer_threads: threads that tokenise.
        shutdown_timeout: seconds that requests in flight get after SIGTERM.
    """

    api_keys: tuple[str, ...] = ()
    guard_probes: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    enable_request_id_headers: bool = False
    access_log: str | None = None
    otlp_traces_endpoint: str | None = None
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    chat_template_content_format: ContentFormat = "auto"
    max_inputs: int = 1024
    max_text_chars: int = 500_000
    max_tokens_per_request: int = 500_000
    max_queued_texts: int = 4096
    max_queued_tokens: int = 1_000_000
    max_body_bytes: int = 16 * 2**20
    max_body_memory: int = 256 * 2**20
    max_connections: int = 5000
    compressed_bodies: bool = False
    max_body_ratio: int = 100
    body_timeout: float = 30.0
    idle_timeout: float = 75.0
    request_timeout: float | None = None
    template_timeout: float = 5.0
    tokenizer_timeout: float = 30.0
    max_wait_ms: float = 0.0
    tokenizer_threads: int = 2
    shutdown_timeout: float = 60.0

    @property
    def texts_per_request(self) -> int:
        """A request larger than the queue would be answered 429 for ever."""
        return min(self.max_inputs, self.max_queued_texts)

    @property
    def tokens_per_request(self) -> int:
        """As `texts_per_request`, in tokens."""
        return min(self.max_tokens_per_request, self.max_queued_tokens)

    @property
    def body_memory(self) -> int:
        """A body larger than that would be answered 503 for ever."""
        return max(self.max_body_memory, self.max_body_bytes)


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
VERSION = importlib.metadata.version("jaxpool")
Observer = Callable[[web.Request, Record], None]
OBSERVERS = web.AppKey("OBSERVERS", list[Observer])
"""Called in order with every request that has been answered."""
PROBES = frozenset({"/health", "/ready", "/ping", "/metrics"})
"""Paths that orchestrators ask every few seconds."""
TOKENIZER_THREADS: web.AppKey[TokenizerThreads] = web.AppKey("TOKENIZER_THREADS")
RENDERERS: web.AppKey[Renderers] = web.AppKey("RENDERERS")
BODY_THREAD = web.AppKey("BODY_THREAD", Executor)
"""Where large bodies are unpacked and read, one after the other."""
