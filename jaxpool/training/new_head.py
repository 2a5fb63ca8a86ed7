"""Opens a checkpoint for training: with its own head if the labels are the same, else with a new one.

A new head is presented as if it were stored in the checkpoint. Everything after that (strict accounting, loading,
export) is the ordinary way and knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.checkpoints.labels import PROBLEM_TYPES, Problem, problem_of
from jaxpool.checkpoints.spec import Spec, resolve
from jaxpool.errors import MissingHeadError
from jaxpool.training import averaging
from jaxpool_conversions.families import Family, HeadStyle, find
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.heads import find_head
from jaxpool_conversions.reader import Index, Reader
from jaxpool_conversions.rules import HeadSource

_SPREAD = 0.02  # standard deviation of fresh weights, as in BERT and GPT-2
_LINEAR = 0.1  # factor on a pooled vector at which tanh is still nearly a straight line


class ReaderWithHead(Reader):
    """A checkpoint whose head is replaced or added; all other tensors are read from the files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._fresh: dict[str, np.ndarray] = {}

    def add_head(self, family: Family, style: HeadStyle, labels: int, width: int, seed: int) -> None:
        """A new last linear layer, and what else of the head the style has and the checkpoint lacks."""
        rng = np.random.default_rng(seed)
        name = family.table.head_names[0]
        self._fresh[f"{name}.weight"] = rng.normal(0, _SPREAD, (labels, width)).astype(np.float32)
        if family.head_bias:
            self._fresh[f"{name}.bias"] = np.zeros(labels, np.float32)
        dense, norm = style.dense is not None, style.norm_eps is not None
        # A pooler of pretraining was made for another task, and a random one hides half of what the vector says.
        straight = style.dense == "tanh"
        kernel = _LINEAR * np.eye(width) if straight else rng.normal(0, _SPREAD, (width, width))
        fill = {
            "head.dense.kernel": kernel if dense else None,
            "head.dense.bias": np.zeros(width) if dense and style.dense_bias else None,
            "head.norm.scale": np.ones(width) if norm else None,
            "head.norm.bias": np.zeros(width) if norm and style.norm_bias else None,
        }
        # Where a module has several names (gamma, weight), one of them is enough.
        present = super().names()
        for target, values in fill.items():
            names = [rule.source for rule in family.table.head if rule.target == target]
            stored = {prefix + name for name in names for prefix in family.table.prefixes} & present
            if names and values is not None and (not stored or (straight and "dense" in target)):
                name = next(iter(sorted(stored)), family.table.prefix + names[0])
                self._fresh[name] = values.astype(np.float32)

    def add(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Further tensors, as if they were stored."""
        self._fresh |= tensors

    def names(self) -> frozenset[str]:
        """Names of all tensors, the fresh ones included."""
        return super().names() | self._fresh.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """As in the base class."""
        return self._fresh[name].shape if name in self._fresh else super().shape(name)

    def dtype(self, name: str) -> np.dtype:
        """As in the base class."""
        return self._fresh[name].dtype if name in self._fresh else super().dtype(name)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """As in the base class."""
        if name not in self._fresh:
            return super().read(name, index)
        return self._fresh[name][index if index is not None else ...].copy()


def open_for_training(
    folder: Path,
    config: Any,
    labels: Sequence[str],
    seed: int,
    tokenizer_limit: int | None,
    *,
    problem: Problem = "single",
    average: bool = False,
) -> tuple[ReaderWithHead, Spec, bool]:
    """Opens a checkpoint of any head for these labels.

    Args:
        folder: the checkpoint.
        config: its transformers config; its labels are replaced where the head is, and what they mean.
        labels: names of the labels.
        seed: of a fresh head.
        tokenizer_limit: the tokenizer's own maximum length.
        problem: what the labels mean.
        average: adds the layer of ``jaxpool.training.averaging``, for models that it suits; the head is
            a fresh one then.

    Returns:
        The reader (to be closed), the float32 classifier it will fill, and whether its head is fresh.
    """
    same = set(config.id2label.values()) == set(labels) and len(config.id2label) == len(labels)
    same = same and problem_of(config) == problem and not average
    if average:
        config.num_hidden_layers += 1
    if not same:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    for stale in ("classifier_from_token", "method"):  # what is trained is an ordinary head
        if hasattr(config, stale):
            delattr(config, stale)
    config.problem_type = PROBLEM_TYPES[problem]
    # Whatever it was, what is trained classifies texts; some backbones differ by that (Longformer).
    kind = find(config.model_type, (config.architectures or [None])[0])
    config.architectures = [f"{kind.prefix_class}ForSequenceClassification"]
    reader, fresh = ReaderWithHead(folder), False

    def source(family: Family, _: int | None, width: int) -> HeadSource:
        nonlocal fresh
        if same:
            try:
                return find_head(reader, family.table, num_labels=len(labels), width=width)
            except MissingHeadError:
                pass
        reader.add_head(family, family.head(Fields(config)), len(labels), width, seed)
        fresh = True
        return find_head(reader, family.table, num_labels=len(labels), width=width)

    try:
        spec = resolve(
            config, source, folder=folder, convert="classify", dtype="float32", tokenizer_limit=tokenizer_limit
        )
        if average:
            reader.add(averaging.tensors(spec, config.num_hidden_layers - 1, seed))
    except BaseException:
        reader.close()
        raise
    return reader, spec, fresh
