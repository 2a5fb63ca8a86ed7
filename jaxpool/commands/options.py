"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

DTYPES = ("auto", "float32", "bfloat16")


def model_options(command: argparse.ArgumentParser, named: bool = True, *, embeds: bool = False) -> Callable[..., Any]:
    """Declares the options that say which model to open and how; returns ``add_argument`` of their group.

    ``named`` is False where the model is a positional argument of the command; ``embeds`` is True where the command
    has a use for embeddings.
    """
    add = command.add_argument_group("model").add_argument
    if named:
        add("--model", help="checkpoint folder, converted store or hub id (default: the embedded model)")
    add("--revision", help="branch, tag or commit of a hub id")
    add(
        "--dtype",
        default="auto",
        choices=DTYPES,
        metavar="DTYPE",
        help=f"of the weights: {', '.join(DTYPES)} (default: auto)",
    )
    add(
        "--convert",
        default="auto",
        choices=("auto", "classify", "embed") if embeds else ("auto", "classify"),
        metavar="HOW",
        help="classify: make a classifier of a language model" + ("; embed: an embedder of any model" * embeds),
    )
    add("--hf-overrides", metavar="JSON", type=json_object, help="changes to config.json, a JSON object")
    return add


def positive(word: str) -> int:
    """An argument that is a whole number from 1 up."""
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, not {word!r}")
    return int(word)


def json_object(word: str) -> dict[str, Any]:
    """An argument that is a JSON object."""
    try:
        value = json.loads(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, not {word}")
    return value
