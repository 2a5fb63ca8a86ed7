"""The way back for adapters: factors beside parameters to the tensors of a PEFT folder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxpool_conversions import stacking
from jaxpool_conversions.export import export
from jaxpool_conversions.rules import HeadSource, Part, Rule, Table

_PREFIX = "base_model.model."
# Routers choose rather than compute, and transformers' Mamba reads the weight of dt_proj itself, past any adapter.
_LEFT_OUT = (".router.", ".shared_gate.", ".experts.", ".mamba.step.")

Pair = tuple[np.ndarray, np.ndarray]


def adapted_kernels(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Paths of the kernels that an adapter is trained for: every linear layer of the backbone's stacked layers."""
    return [
        path
        for path, shape in shapes.items()
        if path.startswith("backbone.") and path.endswith(".kernel") and len(shape) == 3
        if not any(part in path for part in _LEFT_OUT) and _rule(path, table) is not None
    ]


def adapter_tensors(
    factors: Mapping[str, Pair], heads: Mapping[str, np.ndarray], table: Table, head: HeadSource
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The tensors of an adapter, and the rank of each module.

    Layers that a checkpoint keeps as one (query, key and value, say) share one update there: its A is theirs on top of
    one another, and its B has a block for each.

    Args:
        factors: left ``[layers, in, r]`` and right ``[layers, r, out]`` of each kernel, by path.
        heads: every parameter of the head.
        table, head: of the family and the checkpoint.
    """
    parts: dict[str, list[tuple[Part | None, np.ndarray, np.ndarray]]] = {}
    for path, (left, right) in factors.items():
        rule = _rule(path, table)
        assert rule is not None, "adapted_kernels has left it out"
        part = next((step for step in rule.steps if isinstance(step, Part)), None)
        for layer in range(len(left)):
            module = table.prefix + stacking.source(rule, path, (layer,)).removesuffix(".weight")
            parts.setdefault(module, []).append((part, left[layer].T, right[layer].T))
    tensors, ranks = {}, {}
    for module, pieces in parts.items():
        a = np.concatenate([piece[1] for piece in pieces])
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = _blocks(pieces)
        ranks[module] = len(a)
    tensors |= {_PREFIX + name: tensor for name, tensor in export(heads, table, head).items()}
    return tensors, ranks


def saved_modules(heads: Mapping[str, np.ndarray], table: Table, head: HeadSource) -> list[str]:
    """The modules of a head, as PEFT's ``modules_to_save`` names them."""
    names = {name.removeprefix(table.prefix) for name in export(heads, table, head)}
    return sorted({name.split(".")[0] for name in names})


def _rule(path: str, table: Table) -> Rule | None:
    """The rule that a kernel is written by: the first, as in ``export``; None for what has none, or two captures."""
    target = stacking.split(path)[0]
    rule = next((one for one in table.rules if one.target == target), None)
    return rule if rule is not None and rule.source.endswith(".weight") and stacking.depth(rule) == 1 else None


def _blocks(pieces: list[tuple[Part | None, np.ndarray, np.ndarray]]) -> np.ndarray:
    """B of the modules that a checkpoint keeps as one, ``[out, sum of ranks]``: each in its own rows and columns."""
    if pieces[0][0] is None:
        return np.ascontiguousarray(pieces[0][2])
    first, b = pieces[0][0], pieces[0][2]
    size = len(b) * first.count // first.width
    units = np.arange(size).reshape(first.groups, first.count, -1)
    whole = np.zeros((size, sum(len(a) for _, a, _ in pieces)), np.float32)
    column = 0
    for part, a, b in pieces:
        assert part is not None, "a module is kept whole or in parts"
        rows = units[:, part.index : part.index + part.width].reshape(-1)
        whole[rows, column : column + len(a)] = b
        column += len(a)
    return whole
