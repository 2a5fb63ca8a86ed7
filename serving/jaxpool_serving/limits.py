"""The options of ``jaxpool serve`` that bound what clients may cost, one row each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from jaxpool.commands.options import positive
from jaxpool_serving.keys import Options


def seconds(word: str) -> float:
    """A number of seconds (or milliseconds) above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        found = float(word)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {word!r}")
    return found


LIMITS: dict[str, tuple[str, Callable[[str], float], str]] = {
    "max_inputs": ("N", positive, "most texts of a request"),
    "max_text_chars": ("N", positive, "longest text in characters, even if it will be truncated"),
    "max_tokens_per_request": ("N", positive, "most tokens of a request"),
    "max_queued_texts": ("N", positive, "most unanswered texts; beyond it 429"),
    "max_queued_tokens": ("N", positive, "most tokens of those; beyond it 429"),
    "max_body_bytes": ("N", positive, "largest request body; beyond it 413"),
    "max_body_memory": ("N", positive, "most bytes of all bodies under way and answers not fetched; beyond it 503"),
    "max_connections": ("N", positive, "most connections; beyond it the longest idle one is closed"),
    "max_body_ratio": ("N", positive, "most bytes that one byte of a compressed body unpacks to; beyond it 413"),
    "body_timeout": ("SECONDS", seconds, "for a client to send a body; then 408"),
    "idle_timeout": (
        "SECONDS",
        seconds,
        "for a connection without a request, or without a reader; then it is closed",
    ),
    "request_timeout": ("SECONDS", seconds, "for an answer, where a request names no timeout; then 504"),
    "template_timeout": ("SECONDS", seconds, "for a chat template; then 504"),
    "tokenizer_timeout": ("SECONDS", seconds, "for the tokenizer, per piece of a request; then 504"),
    "shutdown_timeout": ("SECONDS", seconds, "for requests in flight after SIGTERM"),
    "max_wait_ms": ("MS", seconds, "that a text waits for company when the device is idle"),
}
"""Field of `Options` -> what its option takes, how that is read, and what it bounds."""


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Declare the options, under a heading of their own."""
    group, defaults = parser.add_argument_group("limits"), Options()
    for name, (takes, read, about) in LIMITS.items():
        default = getattr(defaults, name)
        shown = "none" if default is None else f"{default:.12g}"
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, metavar=takes, type=read, default=default, help=f"{about} (default: {shown})")
    about = "take bodies of Content-Encoding gzip or deflate; refused with 415 otherwise"
    group.add_argument("--compressed-bodies", action="store_true", help=about)


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as fields of `Options`."""
    return {name: getattr(args, name) for name in (*LIMITS, "compressed_bodies")}
