"""Rows of conversion tables from pairs of module names: our path on one side, the checkpoint's on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxpool_conversions.rules import Rule, Transpose

TABLES = ("tokens", "positions", "types", "extra", "relative", "rotations")
"""Last part of the paths that are embeddings."""


def rows(names: Mapping[str, str], root: str = "backbone") -> tuple[Rule, ...]:
    """The rules of ``{our module: their module}``; paths that end in ``norm`` are norms, others linear layers."""
    return tuple(rule for ours, theirs in names.items() for rule in _kind(ours)(theirs, f"{root}.{ours}"))


def linear(source: str, target: str) -> tuple[Rule, ...]:
    """A ``torch.nn.Linear``."""
    return (
        Rule(f"{source}.weight", f"{target}.kernel", (Transpose(),)),
        Rule(f"{source}.bias", f"{target}.bias"),
    )


def norm(source: str, target: str) -> tuple[Rule, ...]:
    """A norm; checkpoints that came from TensorFlow say gamma and beta."""
    return (
        Rule(f"{source}.weight", f"{target}.scale"),
        Rule(f"{source}.bias", f"{target}.bias"),
        Rule(f"{source}.gamma", f"{target}.scale"),
        Rule(f"{source}.beta", f"{target}.bias"),
    )


def embedding(source: str, target: str) -> tuple[Rule, ...]:
    """A ``torch.nn.Embedding``."""
    return (Rule(f"{source}.weight", f"{target}.table"),)


def grouped(source: str, target: str) -> tuple[Rule, ...]:
    """A ``GroupedLinear``, kept as the checkpoint has it."""
    return Rule(f"{source}.weight", f"{target}.kernels"), Rule(f"{source}.bias", f"{target}.bias")


def _kind(path: str) -> Callable[[str, str], tuple[Rule, ...]]:
    last = path.rpartition(".")[2]
    return embedding if last in TABLES else norm if last.endswith("norm") else linear
