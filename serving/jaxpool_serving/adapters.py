"""Adapters of the served models: the options that name them, and loading them before the first request."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxpool.errors import ValidationError

if TYPE_CHECKING:
    from jaxpool.llm import LLM


@dataclass(frozen=True, slots=True)
class AdapterModule:
    """An adapter to serve.

    Attributes:
        name: what requests call it.
        path: folder or hub id.
        base: name of the served model that it belongs to; None for the first.
    """

    name: str
    path: str
    base: str | None = None


def add_adapter_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options, under a heading of their own."""
    add = parser.add_argument_group("adapters (LoRA)").add_argument
    add(
        "--lora-modules",
        nargs="+",
        type=module,
        default=[],
        metavar="NAME=PATH",
        help="PEFT adapters (folder or hub id) to serve beside the model, chosen by requests as their model",
    )
    add(
        "--allow-runtime-lora-updating",
        action="store_true",
        help="let requests load and unload adapters: /v1/load_lora_adapter, /v1/unload_lora_adapter",
    )


def module(word: str) -> AdapterModule:
    """One word of ``--lora-modules``: ``NAME=PATH``, or vLLM's JSON object with name, path and base_model_name.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if word.lstrip().startswith("{"):
        try:
            said = json.loads(word)
            return AdapterModule(said["name"], said["path"], said.get("base_model_name"))
        except (ValueError, KeyError) as error:
            raise argparse.ArgumentTypeError(f"needs name and path: {error}") from error
    name, _, path = word.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"must be NAME=PATH, not {word!r}")
    return AdapterModule(name, path)


def of_model(name: str, names: Sequence[str], modules: Iterable[AdapterModule]) -> list[AdapterModule]:
    """The adapters of the served model ``name``, one of ``names``.

    Raises:
        ValidationError: an adapter has the name of a model, or belongs to none.
    """
    found = []
    for one in modules:
        if one.name in names:
            raise ValidationError(f"--lora-modules {one.name}: there is a model of this name already.")
        if one.base is not None and one.base not in names:
            raise ValidationError(f"--lora-modules {one.name}: there is no model {one.base!r} to put it beside.")
        if (one.base or names[0]) == name:
            found.append(one)
    return found


def with_room(modules: Sequence[AdapterModule], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model, with room for these adapters if there are any."""
    if not modules:
        return dict(arguments)
    return {**arguments, "enable_lora": True, "max_loras": max(arguments["max_loras"], len(modules))}


def load_all(llm: LLM, modules: Iterable[AdapterModule]) -> None:
    """Loads adapters into a model; closes it where that fails.

    Raises:
        JaxpoolError: one cannot be read, or does not fit.
    """
    try:
        for one in modules:
            assert llm.engine.adapters is not None, "with_room has seen to it"
            llm.engine.adapters.add(one.name, one.path)
    except BaseException:
        llm.close()
        raise
