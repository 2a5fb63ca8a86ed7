"""The way back: parameters to Hugging Face tensors, and a checkpoint folder that other software reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpool.errors import WeightsError
from jaxpool_conversions import stacking
from jaxpool_conversions.accounting import HEAD_BIAS, HEAD_KERNEL, listed
from jaxpool_conversions.output_folder import copy_companions, new_folder
from jaxpool_conversions.rules import HeadSource, Part, Rule, Table, Transpose

if TYPE_CHECKING:
    import jax


def export(leaves: Mapping[str, np.ndarray | jax.Array], table: Table, head: HeadSource) -> dict[str, np.ndarray]:
    """Parameters under Hugging Face names: the inverse of :func:`~jaxpool_conversions.load.load`.

    Args:
        leaves: every parameter, by dotted path; stacked ones with the layer axis in front.
        table: the family's rules. Where several sources may fill a parameter, the first one is written.
        head: names of the last linear layer. One made from LM-head rows is written under
            ``table.head_names[0]``; the configuration must then not ask for rows again.

    Returns:
        Contiguous arrays in the leaves' dtype. Backbone names carry ``table.prefix``.

    Raises:
        WeightsError: a parameter has no rule, or parts of a fused tensor are missing.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    tensors: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, tuple[Part, np.ndarray]]] = {}
    written: set[str] = set()
    # modules beside the backbone, not in it
    outside = {name.split(".")[0] for name in table.head_names} | set(table.outside)
    for rule in (*table.rules, *table.head):
        again = bool(rule.expert or rule.first)  # experts and layers after the first, each by a row of its own
        paths = [path for path in arrays if stacking.split(path)[0] == rule.target and (again or path not in written)]
        written.update(paths)
        for name, values in (pair for path in paths for pair in _unstack(rule, path, arrays[path])):
            full = name if name.split(".")[0] in outside else table.prefix + name
            part, whole = _undo(rule, values)
            if part is None:
                tensors[full] = np.asarray(whole, order="C")
            else:
                parts.setdefault(full, {})[part.index] = (part, whole)
    for name, pieces in parts.items():
        tensors[name] = np.ascontiguousarray(_joined(name, [pieces[index] for index in sorted(pieces)]))
    tensors.update(_head_tensors(arrays, table, head))
    left = sorted(arrays.keys() - written - {HEAD_KERNEL, HEAD_BIAS})
    if left:
        raise WeightsError(f"{len(left)} parameters have no rule to be written by: {listed(left)}")
    return tensors


def save_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    tokenizer_folder: str | Path | None = None,
) -> None:
    """Write ``model.safetensors``, ``config.json`` and the tokenizer as one new folder, or nothing at all.

    Args:
        folder: the folder to make; must not exist, or be empty.
        tensors: from :func:`export`.
        config: contents of ``config.json``, ``architectures`` included.
        tokenizer_folder: checkpoint whose tokenizer files are copied along.

    Raises:
        CheckpointError: the folder exists or cannot be written (disk full, say).
    """
    from safetensors.numpy import save_file

    with new_folder(Path(folder)) as partial:
        (partial / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        # safetensors writes memory as it lies, so strides would be lost without a word; "format" is what
        # transformers looks at before it reads a file.
        contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
        save_file(contiguous, partial / "model.safetensors", metadata={"format": "pt"})
        if tokenizer_folder is not None:
            copy_companions(Path(tokenizer_folder), partial)


def _unstack(rule: Rule, path: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for place, name in stacking.sources(rule, path, values.shape):
        yield name, values[place]


def _undo(rule: Rule, values: np.ndarray) -> tuple[Part | None, np.ndarray]:
    """The source that a rule made ``values`` of, or the part of a source that is still to be joined."""
    for position, step in reversed(list(enumerate(rule.steps))):
        if isinstance(step, Transpose):
            values = values.swapaxes(-1, -2)
        elif position:
            raise WeightsError(f"the rule for {rule.source} takes a part after another step, which has no way back")
        else:
            return step, values
    return None, values


def _joined(name: str, pieces: list[tuple[Part, np.ndarray]]) -> np.ndarray:
    """The fused tensor of its parts, in order; group by group where they alternate."""
    first = pieces[0][0]
    units = [unit for part, _ in pieces for unit in range(part.index, part.index + part.width)]
    if units != list(range(first.count)):
        raise WeightsError(f"{name} needs {first.count} parts, but the parameters give {units}")
    axis, groups = first.axis, first.groups
    split = [
        values.reshape(*values.shape[:axis], groups, values.shape[axis] // groups, *values.shape[axis + 1 :])
        for _, values in pieces
    ]
    whole = np.concatenate(split, axis=axis + 1)
    return whole.reshape(*whole.shape[:axis], -1, *whole.shape[axis + 2 :])


def _head_tensors(arrays: Mapping[str, np.ndarray], table: Table, head: HeadSource) -> dict[str, np.ndarray]:
    if HEAD_KERNEL not in arrays:
        return {}
    from_rows = head.rows is not None
    weight = f"{table.head_names[0]}.weight" if from_rows else head.weight
    bias = weight.removesuffix(".weight") + ".bias" if from_rows or head.bias is None else head.bias
    tensors = {weight: np.asarray(arrays[HEAD_KERNEL].T, order="C")}
    # A head that came without a bias keeps none, unless it has learnt one since.
    if HEAD_BIAS in arrays and (head.bias is not None or arrays[HEAD_BIAS].any()):
        tensors[bias] = np.asarray(arrays[HEAD_BIAS], order="C")
    return tensors
