"""The command ``jaxpool fit``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
from typing import Any

from jaxpool.training.fit import KINDS, fit
from jaxpool.training.recipe import FEW, Recipe


class _OneDevice(argparse.Action):
    """Refuses what only a finished model can be spread by."""

    def __call__(self, parser: argparse.ArgumentParser, _args: Any, _values: Any, option: str | None = None) -> None:
        parser.error(
            f"argument {option}: training runs on one device; give it where the trained model is used: jaxpool "
            "classify, batch or serve"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``jaxpool fit``."""
    from_recipe = argparse.SUPPRESS  # absent means: what Recipe says
    add = parser.add_argument
    add("train", metavar="TRAIN", help="labelled texts: .jsonl, .json, .csv or .tsv, also .gz; .parquet")
    add("output", metavar="OUTPUT", help="folder to write the checkpoint to; must not exist")
    add("--model", help="folder or hub id to start from, with or without a head (default: the embedded model)")
    add("--validation", metavar="FILE", help="held-out texts (default: a cross-validation, or a part of TRAIN)")
    add("--validation-fraction", type=float, help="hold out so much of TRAIN instead of a cross-validation")
    add("--text-column", default="text", help="column or field of the text (default: text)")
    add("--pair-column", help="column or field of a second text, for a model of pairs")
    add(
        "--label-column",
        action="append",
        help="column or field of the label, of a list of labels, or of a number (default: label); given several "
        "times: a column of 0 and 1 for each of several labels",
    )
    add(
        "--problem",
        choices=("auto", *KINDS),
        default="auto",
        help="what labels mean: one a text, several a text, or a number (default: auto, as they look)",
    )
    add("--pipeline-parallel-size", "--tensor-parallel-size", action=_OneDevice, help=argparse.SUPPRESS)
    add("--resume", action="store_true", help="go on where an interrupted training of the same kind stood")
    frozen = parser.add_mutually_exclusive_group()
    for what, note in (
        ("backbone", "solve the head alone: fast"),
        ("embeddings", "keep the token table as it is"),
        ("nothing", f"train all weights: the default for more than {FEW} texts, or where --epochs is given"),
    ):
        frozen.add_argument(
            f"--freeze-{what}", dest="freeze", action="store_const", const=what, default=from_recipe, help=note
        )
    for name, kind, note in (
        ("lora", int, "train a PEFT adapter of this rank, which OUTPUT will hold; the weights stay as they are"),
        ("contrast", int, f"steps on pairs before the head is solved (default: 60 for up to {FEW} texts)"),
        ("epochs", int, "most passes over the data (default: 3, or what makes 300 steps, 30 at most)"),
        ("batch-size", int, "texts per step (default: 32)"),
        ("learning-rate", float, "peak rate (default: 5e-5; 2e-4 with --lora)"),
        ("warmup", float, "share of the steps in which the rate rises (default: 0.1)"),
        ("weight-decay", float, "on matrices, not on biases and norms (default: 0.01)"),
        ("clip", float, "largest norm of a gradient (default: 1)"),
        ("label-smoothing", float, "probability spread over all labels (default: 0)"),
        (
            "patience",
            int,
            "stop after so many epochs in which neither loss nor macro-F1 improves (default: a third, 2 at least)",
        ),
        ("folds", int, "parts of a cross-validation, 0 for none (default: 5 for few texts)"),
        ("max-length", int, "cut longer texts to so many tokens (default: 512 or the model's limit)"),
        ("seed", int, "decides head, order and split (default: 0)"),
    ):
        add(f"--{name}", type=kind, default=from_recipe, help=note)
    add("--schedule", choices=("linear", "cosine"), default=from_recipe, help="how the rate falls (default: linear)")
    add(
        "--balanced",
        action=argparse.BooleanOptionalAction,
        default=from_recipe,
        help="weigh texts by inverse label frequency (default: where one label is three times as frequent)",
    )


def main(args: argparse.Namespace) -> int:
    """Runs ``jaxpool fit``; errors are JaxpoolErrors for the caller to print."""
    chosen = {field.name for field in dataclasses.fields(Recipe)} & vars(args).keys()
    columns = args.label_column or ["label"]
    fitted = fit(
        args.model,
        args.train,
        args.output,
        validation=args.validation,
        validation_fraction=args.validation_fraction,
        text_column=args.text_column,
        label_column=columns if len(columns) > 1 else columns[0],
        pair_column=args.pair_column,
        problem=args.problem,
        recipe=Recipe(**{name: getattr(args, name) for name in chosen}),
        resume=args.resume,
    )
    print("\n".join(fitted.report.lines()))
    return 0


class _Callable(types.ModuleType):
    """This module has the name of the public function ``jaxpool.commands.fit``, so it can be called as that."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from jaxpool.training.from_texts import fit as public

        return public(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
