"""The command ``jaxpool serve``."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpool.errors import ValidationError
from jaxpool.options import model_options, positive
from jaxpool_serving.app import init_app
from jaxpool_serving.keys import Options
from jaxpool_serving.limits import add_limits, limits
from jaxpool_serving.run import listen

if TYPE_CHECKING:
    from jaxpool.llm import LLM

API_KEY = "JAXPOOL_API_KEY"
"""Environment variable that holds the key, so that it need not show in the process list."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``jaxpool serve``."""
    parser.epilog = (
        "It listens at once and answers 503 until the model is warm (GET /ready says when). On SIGTERM it stops "
        "listening, answers what it has accepted and exits 0."
    )
    model = model_options(parser)
    model("--max-model-len", metavar="N", type=positive, help="most tokens of a text (default: the model's limit)")
    model("--max-num-batched-tokens", metavar="N", type=positive, help="most tokens of a batch, padding included")
    model("--tensor-parallel-size", metavar="N", type=positive, default=1, help="devices per copy (default: 1)")
    model("--data-parallel-size", metavar="N", type=positive, help="copies (default: as many as the devices allow)")
    http = parser.add_argument_group("server").add_argument
    http("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    http("--port", type=_port, default=8000, help="port, 0 for any free one (default: %(default)s)")
    http("--served-model-name", metavar="NAME", help="name in requests and responses (default: from --model)")
    http("--api-key", action="append", metavar="KEY", help=f"bearer token, repeatable (or {API_KEY}; default: none)")
    add_limits(parser)


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
        api_keys=keys,
        **limits(args),
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
            tensor_parallel_size=args.tensor_parallel_size,
            data_parallel_size=args.data_parallel_size,
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
        name = args.served_model_name or _name(args.model)
        loaded = runner.run(listen(init_app({name: open_llm}, options), args.host, args.port))
    if not loaded:
        os._exit(0)  # the loading thread is deep in a compiler; ending the interpreter under it would crash
    return 0


def _name(model: str | None) -> str:
    """``default``, a folder's own name, or the hub id: never a path of this machine."""
    if model is None:
        return "default"
    return Path(model).resolve().name if Path(model).exists() else model
