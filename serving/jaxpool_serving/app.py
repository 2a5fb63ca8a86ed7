"""``jaxpool serve``: builds the application, loads the model behind it, runs it until a signal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool.options import model_options, positive
from jaxpool_serving.batcher import Batcher
from jaxpool_serving.keys import OPTIONS, SERVED, TOKENIZER_THREADS, Options, Served
from jaxpool_serving.middleware import answer_errors, require_api_key
from jaxpool_serving.routes import routes

if TYPE_CHECKING:
    from jaxpool.llm import LLM

API_KEY = "JAXPOOL_API_KEY"
"""Environment variable that holds the key, so that it need not show in the process list."""


def init_app(llm: LLM | Callable[[], LLM], options: Options | None = None) -> web.Application:
    """The server as an aiohttp application; it can be mounted, tested or run by any aiohttp runner.

    Args:
        llm: a warm model, ``LLM(…, compile="ahead")``, which stays open when the application ends; or a
            function that opens one, called once, in a thread, when the application starts. Until it returns,
            ``/classify`` and ``/ready`` answer 503; the application closes what it opened.
        options: see `Options`.
    """
    options = options or Options()
    app = web.Application(middlewares=[answer_errors, require_api_key], client_max_size=options.max_body_bytes)
    app[OPTIONS] = options
    app.add_routes(routes)

    async def tokenizer_threads(app: web.Application) -> AsyncIterator[None]:
        with ThreadPoolExecutor(options.tokenizer_threads, thread_name_prefix="tokenizer") as threads:
            app[TOKENIZER_THREADS] = threads
            yield

    async def model(app: web.Application) -> AsyncIterator[None]:
        app[SERVED] = served = asyncio.get_running_loop().create_future()
        if callable(llm):
            _load_in_thread(llm, served, options)
        else:
            served.set_result(_serve(llm, options))
        yield
        # Handlers have drained by now (aiohttp cleans contexts up after them); what is left are batches whose
        # clients have gone.
        if served.done() and not served.cancelled() and not served.exception():
            await served.result().batcher.close()
            if callable(llm):
                served.result().llm.close()

    app.cleanup_ctx.extend([tokenizer_threads, model])
    return app


def _serve(llm: LLM, options: Options) -> Served:
    return Served(llm, Batcher(llm.engine, max_queued=options.max_queued_texts))


def _load_in_thread(open_llm: Callable[[], LLM], served: asyncio.Future[Served], options: Options) -> None:
    loop = asyncio.get_running_loop()

    def settle(result: Served | None, error: BaseException | None) -> None:
        if served.done():
            return
        if error is not None:
            served.set_exception(error)
        elif result is not None:
            served.set_result(result)

    def load() -> None:
        result, failure = None, None
        try:
            result = _serve(open_llm(), options)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is gone: stopped while loading
            loop.call_soon_threadsafe(settle, result, failure)

    # A daemon thread, not an executor: a stop during a compile of minutes must not wait for it.
    threading.Thread(target=load, name="load", daemon=True).start()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``jaxpool serve``."""
    parser.epilog = (
        "It listens at once and answers 503 until the model is warm (GET /ready says when). On SIGTERM it stops "
        "listening, answers what it has accepted and exits 0."
    )
    defaults = Options()
    model = model_options(parser)
    model("--max-model-len", metavar="N", type=positive, help="most tokens of a text (default: the model's limit)")
    model("--max-num-batched-tokens", metavar="N", type=positive, help="most tokens of a batch, padding included")
    http = parser.add_argument_group("server").add_argument
    http("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    http("--port", type=_port, default=8000, help="port, 0 for any free one (default: %(default)s)")
    http("--served-model-name", metavar="NAME", help="name in requests and responses (default: from --model)")
    http("--api-key", action="append", metavar="KEY", help=f"bearer token, repeatable (or {API_KEY}; default: none)")
    limits = parser.add_argument_group("limits").add_argument
    for option, default, about in (
        ("--max-inputs", defaults.max_inputs, "most texts of a request"),
        ("--max-queued-texts", defaults.max_queued_texts, "most unanswered texts; beyond it 429"),
        ("--max-body-bytes", defaults.max_body_bytes, "largest request body; beyond it 413"),
    ):
        limits(option, metavar="N", type=positive, default=default, help=f"{about} (default: {default})")
    limits(
        "--shutdown-timeout",
        metavar="SECONDS",
        type=float,
        default=defaults.shutdown_timeout,
        help="for requests in flight after SIGTERM (default: %(default)s)",
    )


def _port(word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word) < 2**16):
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, not {word!r}")
    return int(word)


def main(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; 0 after a clean stop.

    Raises:
        JaxpoolError: the model cannot be opened, or an API key is empty.
        OSError: the address cannot be listened on.
    """
    keys = tuple(args.api_key or [os.environ[name] for name in (API_KEY,) if name in os.environ])
    if "" in keys:  # a secret that was not there must not open the server
        raise ValidationError(f"An API key is empty; give --api-key or {API_KEY} a value, or leave both out.")
    options = Options(
        model_name=args.served_model_name or _name(args.model),
        api_keys=keys,
        max_inputs=args.max_inputs,
        max_queued_texts=args.max_queued_texts,
        max_body_bytes=args.max_body_bytes,
        shutdown_timeout=args.shutdown_timeout,
    )

    def open_llm() -> LLM:
        from jaxpool.llm import LLM

        return LLM(
            args.model,
            revision=args.revision,
            convert=args.convert,
            dtype=args.dtype,
            hf_overrides=args.hf_overrides,
            max_model_len=args.max_model_len,
            max_num_batched_tokens=args.max_num_batched_tokens,
            pooler_config={"task": "classify"},
            compile="ahead",
        )

    try:
        import uvloop
    except ImportError:
        loop_factory = None
    else:
        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loaded = runner.run(serve(init_app(open_llm, options), args.host, args.port))
    if not loaded:
        os._exit(0)  # the loading thread is deep in a compiler; ending the interpreter under it would crash
    return 0


async def serve(app: web.Application, host: str, port: int) -> bool:
    """Listen at once, load meanwhile; on SIGTERM or SIGINT stop listening, drain, close.

    A second signal ends the process at once.

    Returns:
        Whether the model had been loaded when the server stopped.
    """
    started = time.monotonic()
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)

    options = app[OPTIONS]
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=options.shutdown_timeout, access_log=None)
    # The address is taken before the model is: a port in use should not cost a load.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=1024)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        address = f"[{host}]" if family is socket.AF_INET6 else host
        _say(f"listening on http://{address}:{listening.getsockname()[1]}, loading {options.model_name}")
        served = app[SERVED]
        stopping = loop.create_task(stop.wait())
        first: set[asyncio.Future[Any]] = {served, stopping}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if served.done():
            served.result()  # raises what went wrong while loading
            _say(f"ready after {time.monotonic() - started:.1f} s")
        await stopping
        _say("stopping: finishing the requests in flight")
    finally:
        await runner.cleanup()
    return served.done()


def _say(what: str) -> None:
    print(f"jaxpool serve: {what}", file=sys.stderr, flush=True)


def _name(model: str | None) -> str:
    """``default``, a folder's own name, or the hub id: never a path of this machine."""
    if model is None:
        return "default"
    return Path(model).resolve().name if Path(model).exists() else model
