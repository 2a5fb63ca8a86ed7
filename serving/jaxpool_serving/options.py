"""The options of ``jaxpool serve`` that are not the model's: declared, read and checked."""

from __future__ import annotations

import argparse
import json
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jaxpool.commands.options import positive
from jaxpool.errors import ValidationError
from jaxpool.text.chat import ContentFormat
from jaxpool.text.chat_template import load

API_KEY = "JAXPOOL_API_KEY"
"""Environment variable with the keys, one a line: there they do not show in the process list."""
KEYFILE_PASSWORD = "JAXPOOL_SSL_KEYFILE_PASSWORD"
"""Environment variable with the password of an encrypted ``--ssl-keyfile``."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the server behaves; every field is an option of ``jaxpool serve``.

    Attributes:
        api_keys: accepted bearer tokens, for everything but `PROBES`; empty means open.
        guard_probes: whether `PROBES` need a key too.
        allowed_origins: origins whose pages may call from a browser (CORS), ``*`` for any; empty turns CORS off.
        allowed_methods: what those pages may send, ``*`` for any method.
        allowed_headers: headers they may send, ``*`` for any.
        allow_runtime_lora_updating: whether requests may load and unload adapters.
        enable_request_id_headers: whether responses carry ``X-Request-Id``.
        enable_prompt_tokens_details: whether ``usage`` tells how many tokens came from shared beginnings.
        access_log: file to append to, ``-`` for standard output; None for no access log.
        otlp_traces_endpoint: URL of an OpenTelemetry collector that gets a span per request, or None.
        aliases: other names of the first model, as good as its own.
        chat_template: Jinja template that goes before the tokenizer's own, or None.
        trust_request_chat_template: whether requests may bring templates of their own.
        chat_template_content_format: how templates want contents: "string", "openai" (lists of parts) or "auto".
        max_inputs: most texts in one request.
        max_text_chars: most characters (or token ids) of one text, even where it will be truncated.
        max_tokens_per_request: most tokens of one request, after truncation.
        max_windows_per_request: most windows into which the long texts of one request are cut, if it asks for that.
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
    allow_runtime_lora_updating: bool = False
    enable_request_id_headers: bool = False
    enable_prompt_tokens_details: bool = False
    access_log: str | None = None
    otlp_traces_endpoint: str | None = None
    aliases: tuple[str, ...] = ()
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    chat_template_content_format: ContentFormat = "auto"
    max_inputs: int = 1024
    max_text_chars: int = 500_000
    max_tokens_per_request: int = 500_000
    max_windows_per_request: int = 256
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


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options, under headings of their own."""
    keys = parser.add_argument_group("API keys").add_argument
    keys("--api-key", action="append", default=[], metavar="KEY", help="a bearer token to accept, repeatable")
    keys("--api-key-file", metavar="FILE", help=f"more of them, one a line (without either: from {API_KEY})")
    keys("--guard-probes", action="store_true", help="ask for a key at health, readiness and metrics too")
    tls = parser.add_argument_group("TLS").add_argument
    tls("--ssl-certfile", metavar="FILE", help="certificate chain in PEM; turns HTTPS on")
    tls("--ssl-keyfile", metavar="FILE", help=f"its private key (password: {KEYFILE_PASSWORD})")
    tls("--ssl-ca-certs", metavar="FILE", help="certificates that must have signed those of clients")
    requirements = "0 none, 1 optional, 2 required (default: 2 with --ssl-ca-certs, else 0)"
    tls("--ssl-cert-reqs", metavar="N", type=int, choices=(0, 1, 2), help=f"client certificates: {requirements}")
    pages = parser.add_argument_group("pages of other origins (CORS)").add_argument
    for name, about in (
        ("origins", "whose pages may call, * for any (default: none)"),
        ("methods", "what they may send (default: any)"),
        ("headers", "what they may send (default: any)"),
    ):
        default = () if name == "origins" else ("*",)
        pages(f"--allowed-{name}", metavar="A,B", type=_name_list, default=default, help=about)


def access_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as fields of `Options`.

    Raises:
        ValidationError: a key is empty, or none that a client could send; or there is no key where one was promised.
        OSError: the file of keys cannot be read.
    """
    names = ("guard_probes", "allowed_origins", "allowed_methods", "allowed_headers")
    return {"api_keys": _keys(args), **{name: getattr(args, name) for name in names}}


def tls_context(args: argparse.Namespace) -> ssl.SSLContext | None:
    """The certificates that the options name, TLS 1.2 or later; None for plain HTTP.

    Raises:
        ValidationError: files are missing, or do not fit together.
        OSError: a file cannot be read.
    """
    if args.ssl_certfile is None:
        if args.ssl_keyfile or args.ssl_ca_certs or args.ssl_cert_reqs:
            raise ValidationError("--ssl-keyfile, --ssl-ca-certs and --ssl-cert-reqs need --ssl-certfile.")
        return None
    for name in filter(None, (args.ssl_certfile, args.ssl_keyfile, args.ssl_ca_certs)):
        Path(name).open("rb").close()  # OpenSSL would not say which one cannot be read
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # with a function OpenSSL never asks at a terminal
        context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile, lambda: os.environ.get(KEYFILE_PASSWORD, ""))
        if args.ssl_ca_certs:
            context.load_verify_locations(args.ssl_ca_certs)
    except ssl.SSLError as error:
        reason = f"a file is not in PEM, or {KEYFILE_PASSWORD} is not the key's password"
        if error.reason:
            reason = error.reason.lower().replace("_", " ")
        message = f"--ssl-certfile, --ssl-keyfile and --ssl-ca-certs do not work together: {reason}."
        raise ValidationError(message) from error
    asked = 2 if args.ssl_ca_certs else 0
    context.verify_mode = ssl.VerifyMode(asked if args.ssl_cert_reqs is None else args.ssl_cert_reqs)
    return context


def _keys(args: argparse.Namespace) -> tuple[str, ...]:
    keys: list[str] = list(args.api_key)
    if args.api_key_file is not None:
        try:
            keys += (found := _lines(Path(args.api_key_file).read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            raise ValidationError(f"{args.api_key_file} is not text; write one API key a line, in ASCII.") from None
        if not found:
            raise ValidationError(f"{args.api_key_file} holds no API key; write one a line, or leave the option out.")
    elif not keys and API_KEY in os.environ:
        keys = _lines(os.environ[API_KEY]) or [""]
    if "" in keys:  # a secret that was not there must not open the server
        raise ValidationError(f"An API key is empty; give --api-key or {API_KEY} a value, or leave both out.")
    for number, key in enumerate(keys, 1):
        if not (key.isascii() and key.isprintable() and " " not in key):  # and never shown
            raise ValidationError(
                f"API key {number} of {len(keys)} holds a space, a control character or one that is not ASCII, which "
                "clients cannot send as a bearer token; use visible ASCII characters. A comment has a line of its own."
            )
    return tuple(keys)


def _lines(text: str) -> list[str]:
    """Lines that say something; ``#`` begins a comment."""
    return [word for line in text.splitlines() if (word := line.strip()) and not word.startswith("#")]


def _name_list(word: str) -> tuple[str, ...]:
    """A JSON list of strings, as vLLM has them, or names between commas."""
    if not word.lstrip().startswith("["):
        return tuple(name.strip() for name in word.split(",") if name.strip())
    try:
        found = json.loads(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
    if not all(isinstance(name, str) for name in found):
        raise argparse.ArgumentTypeError(f"must be a list of strings, not {word}")
    return tuple(found)


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
    "max_windows_per_request": ("N", positive, "most windows of a request's long texts (long_text: window)"),
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


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options, under a heading of their own."""
    group, defaults = parser.add_argument_group("limits"), Options()
    for name, (takes, read, about) in LIMITS.items():
        default = getattr(defaults, name)
        shown = "none" if default is None else f"{default:.12g}"
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, metavar=takes, type=read, default=default, help=f"{about} (default: {shown})")
    about = "take bodies of Content-Encoding gzip or deflate; refused with 415 otherwise"
    group.add_argument("--compressed-bodies", action="store_true", help=about)


def limit_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as fields of `Options`."""
    return {name: getattr(args, name) for name in (*LIMITS, "compressed_bodies")}


def add_template_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options, under a heading of their own."""
    chat = parser.add_argument_group("chat").add_argument
    chat("--chat-template", metavar="FILE", help="a Jinja template (or its text) that goes before the tokenizer's own")
    chat("--trust-request-chat-template", action="store_true", help="let requests bring templates of their own")
    about = "how templates want contents: string, openai (lists of parts), or auto, which looks (default: auto)"
    chat("--chat-template-content-format", metavar="HOW", choices=get_args(ContentFormat), default="auto", help=about)


def template_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as fields of `Options`.

    Raises:
        ValidationError: the template cannot be read, or is not well-formed.
    """
    return {
        "chat_template": args.chat_template and load(args.chat_template),
        "trust_request_chat_template": args.trust_request_chat_template,
        "chat_template_content_format": args.chat_template_content_format,
    }
