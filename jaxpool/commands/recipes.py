"""``jaxpool recipes``: the published models whose prompts and answers jaxpool knows."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the common ones."""


def main(_arguments: argparse.Namespace) -> int:
    """Prints a line a recipe: its name, what it is for, the names it goes by, and where it is written."""
    from jaxpool.checkpoints.recipes import RECIPES

    for recipe in RECIPES:
        names = ", ".join(f"{name}*" for name in recipe.models)
        print(f"{recipe.name:<22} {recipe.purpose}\n{'':<22} {names}\n{'':<22} {recipe.source}")
    return 0
