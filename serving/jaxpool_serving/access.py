"""The options of ``jaxpool serve`` that say who may call, and over what connection."""

from __future__ import annotations

import argparse
import json
import os
import ssl
from pathlib import Path
from typing import Any

from jaxpool.errors import ValidationError

API_KEY = "JAXPOOL_API_KEY"
"""Environment variable with the keys, one a line: there they do not show in the process list."""
KEYFILE_PASSWORD = "JAXPOOL_SSL_KEYFILE_PASSWORD"
"""Environment variable with the password of an encrypted ``--ssl-keyfile``."""


def add_access(parser: argparse.ArgumentParser) -> None:
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
        pages(f"--allowed-{name}", metavar="A,B", type=_names, default=default, help=about)


def access(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as fields of `Options`.

    Raises:
        ValidationError: a key is empty, or none that a client could send; or there is no key where one was promised.
        OSError: the file of keys cannot be read.
    """
    names = ("guard_probes", "allowed_origins", "allowed_methods", "allowed_headers")
    return {"api_keys": _keys(args), **{name: getattr(args, name) for name in names}}


def tls(args: argparse.Namespace) -> ssl.SSLContext | None:
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


def _names(word: str) -> tuple[str, ...]:
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
