"""Options of commands for labels of a caller's own; see ``jaxpool.zero_shot.options.Question``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jaxpool.errors import InputFileError
from jaxpool.files.input_files import TextFile, as_text

NAMES = ("candidate_labels", "prompt", "examples", "multi_label", "answers", "calibrate", "length_normalize")


def question_options(command: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = command.add_argument_group("labels of your own").add_argument
    about = "with commas between them, or a JSON array: for a language model, a model of entailment or an embedder"
    add("--candidate-labels", metavar="LABELS", type=_names, help=about)
    about = "what the model reads, with {text}, {labels} or {label} in it; @FILE reads it from a file"
    add("--prompt", metavar="TEXT", type=_prompt, help=about)
    add("--examples", metavar="FILE", type=_examples, help="texts with their labels, in columns text and label")
    add("--multi-label", action="store_true", help="ask for each label by itself; several may hold")
    add("--answers", metavar="NO,YES", type=_answers, help="what a language model answers then (default: No,Yes)")
    add("--calibrate", action="store_true", help="divide by each label's probability behind an empty text")
    add("--length-normalize", action="store_true", help="score the mean of a label's tokens, not their sum")


def question(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as ``LLM.classify`` takes it; empty for the model's own labels.

    Ends the process with exit code 2 where there are other options and no labels.
    """
    found = {name: value for name in NAMES if (value := getattr(args, name))}
    if found and not args.candidate_labels:
        names = [f"--{name.replace('_', '-')}" for name in NAMES[1:]]
        args.usage(f"{', '.join(names[:-1])} and {names[-1]} need --candidate-labels")
    return found


def _names(word: str) -> list[str]:
    if not word.startswith("["):
        return [name.strip() for name in word.split(",")]
    try:
        found: list[str] = json.loads(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no JSON array: {error}") from error
    return found


def _prompt(word: str) -> str:
    if not word.startswith("@"):
        return word
    try:
        return Path(word[1:]).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"cannot be read from {word[1:]}: {error}") from error


def _examples(word: str) -> list[tuple[str, str]]:
    columns, found = ("text", "label"), []
    try:
        with TextFile(Path(word), columns) as file:
            for row in file:
                if row.problem:
                    raise InputFileError(f"{file.place(row)}: {row.problem}")
                text, label = (as_text(value, repr(name)) for value, name in zip(row.values, columns))
                found.append((text, label))
    except InputFileError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return found


def _answers(word: str) -> tuple[str, str]:
    no, comma, yes = (part.strip() for part in word.partition(","))
    if not (no and comma and yes):
        raise argparse.ArgumentTypeError(f"must be two texts with a comma between them, not {word!r}")
    return no, yes
