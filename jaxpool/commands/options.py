"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from jaxpool.engine_args import ARGUMENTS, Argument


def engine_options(*, without: Iterable[str] = (), every: bool = False) -> dict[str, Argument]:
    """The arguments of a model that a command takes as options: all that have one, but those it settles itself.

    With ``every``, arguments that are rarely needed are options, too.
    """
    return {name: one for name, one in ARGUMENTS.items() if (every or one.option) and name not in set(without)}


def model_options(
    command: argparse.ArgumentParser, arguments: Mapping[str, Argument], named: bool = True
) -> Callable[..., Any]:
    """Declares the options that say which model to open and how; returns ``add_argument`` of their group.

    Args:
        command: gets the options.
        arguments: from `engine_options`; ``model_arguments`` reads them back.
        named: whether there is an option ``--model``; False where the command has its own way to name one.
    """
    add = command.add_argument_group("model").add_argument
    if named:
        add("--model", help="checkpoint folder, converted store or hub id (default: the embedded model)")
    for name, argument in arguments.items():
        how = _reading(argument)
        about = argument.about + ", as a JSON object" * (how.get("type") is json_object)
        if argument.default_in_words:
            about += f" (default: {argument.default_in_words})"
        add(f"--{name.replace('_', '-')}", *argument.also, dest=name, default=argument.default, help=about, **how)
    return add


def model_arguments(args: argparse.Namespace, arguments: Iterable[str]) -> Any:
    """What the options of `model_options` say, as keyword arguments of ``LLM``."""
    return {name: getattr(args, name) for name in arguments}


def _reading(argument: Argument) -> dict[str, Any]:
    """How an option's words become a value of its argument's type."""
    kinds = get_args(argument.kind) or (argument.kind,)
    if argument.kind is bool:
        return {"action": "store_true"}
    if bool in kinds:  # --this and --no-this, or neither
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(argument.kind) is Literal or argument.choices:
        return {"choices": argument.choices or kinds, "metavar": argument.metavar or "HOW"}
    if argument.metavar == "BYTES":
        return {"type": size, "metavar": "BYTES"}
    if int in kinds:
        return {"type": positive, "metavar": argument.metavar or "N"}
    if any(get_origin(kind) is Mapping for kind in kinds):
        return {"type": json_object, "metavar": argument.metavar or "JSON"}
    return {"metavar": argument.metavar} if argument.metavar else {}


def positive(word: str) -> int:
    """An argument that is a whole number from 1 up."""
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, not {word!r}")
    return int(word)


def size(word: str) -> int:
    """An argument in bytes, as vLLM reads it: ``1K`` is 1024, ``1.5k`` 1500, and so on to T."""
    number, unit = (word[:-1], word[-1]) if word[-1:].isalpha() else (word, "")
    try:
        scale = (1024 if unit.isupper() else 1000) ** (" kmgt".index(unit.lower()) if unit else 0)
        found = float(number) * scale if unit.islower() else int(number) * scale
        if not 0 < found < float("inf"):
            raise ValueError(word)
        return int(found)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be bytes, such as 1000000000, 512M or 4G, not {word!r}") from None


def natural(word: str) -> int:
    """An argument that is a whole number from 0 up."""
    if not (word.isascii() and word.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 up, not {word!r}")
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


def long_text_options(command: argparse.ArgumentParser) -> None:
    """Declares what becomes of texts that are longer than the model reads; see ``jaxpool.text.windows.LongText``."""
    add = command.add_argument_group("long texts").add_argument
    add("--truncate", action="store_true", help="cut texts that are too long (short for --long-text truncate)")
    add(
        "--long-text",
        choices=("error", "truncate", "window"),
        default="error",
        help="refuse them, cut them, or read all of them in windows (default: error)",
    )
    add("--window", metavar="N", type=positive, help="tokens of a window (default: as many as the model reads)")
    add("--overlap", metavar="N", type=natural, help="tokens that neighbouring windows share (default: none)")
    add("--aggregate", choices=("mean", "max", "first"), help="of windows (default: mean; max for several labels)")


def long_texts(args: argparse.Namespace) -> dict[str, Any]:
    """What these options say, as ``truncate`` and ``windows`` of ``jaxpool.files.stream.classify``."""
    names = ("long_text", "window", "overlap", "aggregate")
    given = {name: getattr(args, name) for name in names if getattr(args, name) not in (None, "error")}
    if args.truncate or args.long_text == "truncate":
        if set(given) - {"long_text"} or args.long_text == "window":
            args.usage("--truncate and windows contradict each other")
        return {"truncate": True}
    if given and args.long_text != "window":
        args.usage("--window, --overlap and --aggregate belong to --long-text window")
    return {"windows": given or None}
