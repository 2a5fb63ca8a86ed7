"""The command ``jaxpool serve``."""

from __future__ import annotations

import argparse
import asyncio
import atexit
import logging
import os
import ssl
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpool.commands.options import engine_options, model_arguments, model_options
from jaxpool.commands.vllm_options import add_vllm_arguments, without_effect
from jaxpool.engine.daemon_threads import at_work
from jaxpool.errors import ValidationError
from jaxpool.params import PoolerConfig
from jaxpool_serving.access import set_api_keys
from jaxpool_serving.adapters import add_adapter_arguments, load_all, of_model, with_room
from jaxpool_serving.app import init_app
from jaxpool_serving.logs import STDOUT, log_as_json
from jaxpool_serving.models import still_loading
from jaxpool_serving.options import (
    Options,
    access_options,
    add_access_arguments,
    add_limit_arguments,
    add_template_arguments,
    limit_options,
    template_options,
    tls_context,
)
from jaxpool_serving.run import listen

if TYPE_CHECKING:
    from jaxpool.llm import LLM

log = logging.getLogger("jaxpool.serving")

MODEL = engine_options(without={"chat_template"}, every=True)
MODEL["compile"] = replace(MODEL["compile"], default="behind", choices=("behind", "ahead"))
"""Argument of a model -> its option; no request ever waits for a compile."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``jaxpool serve``."""
    parser.epilog = (
        "It listens at once and answers 503 until the model is warm (GET /ready says when). On SIGTERM it stops "
        "listening, answers what it has accepted and exits 0."
    )
    parser.add_argument("positional", nargs="?", metavar="MODEL", help="the same as --model MODEL")
    model = model_options(parser, MODEL, named=False)
    about = "checkpoint folder, converted store or hub id; repeated, as NAME=MODEL, it serves several"
    model("--model", action="append", metavar="MODEL", help=f"{about} (default: the embedded model)")
    http = parser.add_argument_group("server").add_argument
    http("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    http("--port", type=_port, default=8000, help="port, 0 for any free one (default: %(default)s)")
    about = "names in requests, the first in responses (default: from --model)"
    http("--served-model-name", metavar="NAME", nargs="+", default=(), help=about)
    http("--config", metavar="FILE", help="YAML file of options; those on the command line go before it")
    http("--uds", metavar="PATH", help="Unix socket to listen on, instead of host and port")
    add_adapter_arguments(parser)
    add_access_arguments(parser)
    add_template_arguments(parser)
    watch = parser.add_argument_group("observability").add_argument
    watch(
        "--access-log",
        metavar="FILE",
        default=STDOUT,
        help="a JSON line per request; - for standard output, 'off' for none (default: -)",
    )
    watch("--enable-request-id-headers", action="store_true", help="send X-Request-Id with responses")
    about = "tell in usage how many tokens were computed before"
    watch("--enable-prompt-tokens-details", action="store_true", help=about)
    watch("--otlp-traces-endpoint", metavar="URL", help="OpenTelemetry collector that gets a span per request")
    add_limit_arguments(parser)
    add_vllm_arguments(parser)


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
    models, aliases = served_models(args)
    pooler = _pooler(args)
    adapters = {name: of_model(name, [*models], args.lora_modules) for name in models}
    ignored = without_effect(args)
    certificates = tls_context(args)
    options = Options(
        access_log=None if args.access_log == "off" else args.access_log,
        enable_request_id_headers=args.enable_request_id_headers,
        enable_prompt_tokens_details=args.enable_prompt_tokens_details,
        otlp_traces_endpoint=args.otlp_traces_endpoint,
        allow_runtime_lora_updating=args.allow_runtime_lora_updating,
        aliases=aliases,
        **access_options(args),
        **template_options(args),
        **limit_options(args),
    )
    own = {"pooler_config": pooler, "chat_template": options.chat_template}
    log_as_json()
    if ignored:
        log.info("accepted without effect: %s", "; ".join(f"{name} ({why})" for name, why in ignored.items()))

    def open_llm(name: str) -> LLM:
        from jaxpool.llm import LLM

        llm = LLM(models[name], **with_room(adapters[name], model_arguments(args, MODEL)) | own)
        load_all(llm, adapters[name])
        return llm

    try:
        import uvloop
    except ImportError:
        loop_factory = None
    else:
        loop_factory = uvloop.new_event_loop
    app = init_app({name: partial(open_llm, name) for name in models}, options)

    def reload() -> ssl.SSLContext | None:
        renewed = tls_context(args)
        set_api_keys(app, access_options(args)["api_keys"])
        return renewed

    code = 1
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(listen(app, args.host, args.port, uds=args.uds, tls=certificates, reload=reload))
        code = 0
    finally:
        if still_loading(app) or at_work():  # deep in native code; ending the interpreter under it would crash
            atexit.register(os._exit, code)
    return 0


def _models(args: argparse.Namespace) -> list[str] | None:
    if args.positional is None:
        return args.model
    if args.model:
        raise ValidationError(f"Say the model once: {args.positional} or --model {args.model[0]}.")
    return [args.positional]


def served_models(args: argparse.Namespace) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Name -> checkpoint of each model, and the first one's other names.

    Raises:
        ValidationError: as `named_models`; or a model stands among the names.
    """
    words, (first, *others) = _models(args), tuple(args.served_model_name) or (None,)
    if others and not words:
        raise ValidationError("Say the model before --served-model-name, or as --model: all that follows it are names.")
    return named_models(words, first), tuple(dict.fromkeys(name for name in others if name != first))


def _pooler(args: argparse.Namespace) -> PoolerConfig:
    try:
        return PoolerConfig(**(args.pooler_config or {}))
    except TypeError as error:  # the name of a field
        raise ValidationError(f"--pooler-config: {error}") from error


def named_models(words: Sequence[str] | None, served_as: str | None) -> dict[str, str | None]:
    """Served name -> checkpoint, as ``--model`` (once, or several times) and ``--served-model-name`` say.

    Raises:
        ValidationError: two models have one name, or one name is given to several models.
    """
    found: dict[str, str | None] = {}
    given: Sequence[str | None] = words or [None]
    for word in given:
        name, model = _named_model(word)
        if name in found:
            raise ValidationError(f"Two models are called {name!r}; say --model NAME={model} with another name.")
        found[name] = model
    if served_as is None:
        return found
    if len(found) > 1:
        raise ValidationError("--served-model-name names one model; with several, say --model NAME=MODEL for each.")
    [model] = found.values()
    return {served_as: model}


def _named_model(word: str | None) -> tuple[str, str | None]:
    if word is not None and "=" in word and not Path(word).exists():
        name, _, model = word.partition("=")
        if not name or not model:
            raise ValidationError(f"--model {word}: say NAME=MODEL, with both.")
        return name, model
    return _default_name(word), word


def _default_name(model: str | None) -> str:
    """``default``, a folder's own name, or the hub id: never a path of this machine."""
    if model is None:
        return "default"
    return Path(model).resolve().name if Path(model).exists() else model
