"""Labelled text for training: read from files, checked, split by seed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpool.errors import InputFileError, ValidationError
from jaxpool.files.input_files import TextFile


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts with one label each.

    Attributes:
        texts: the texts.
        labels: their labels, equally many.
        name: what error messages call them, usually the file.
    """

    texts: Sequence[str]
    labels: Sequence[str]
    name: str = "the data"

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValidationError(f"{self.name} has {len(self.texts)} texts but {len(self.labels)} labels.")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> Labelled:
        """The given rows, in the given order."""
        return Labelled([self.texts[i] for i in rows], [self.labels[i] for i in rows], self.name)

    def counts(self) -> dict[str, int]:
        """Number of texts per label, in ``label_order``."""
        found = Counter(self.labels)
        return {label: found[label] for label in label_order(self.labels)}

    def indices(self, order: Sequence[str]) -> np.ndarray:
        """Position of every row's label in ``order``, int32.

        Raises:
            InputFileError: a label that ``order`` lacks.
        """
        position = {label: i for i, label in enumerate(order)}
        unknown = [label for label in self.labels if label not in position]
        if unknown:
            raise InputFileError(
                f"{self.name} has the label {unknown[0]!r} ({unknown.count(unknown[0])} rows), which the training data "
                f"lacks; its labels are {', '.join(order)}."
            )
        return np.array([position[label] for label in self.labels], np.int32)


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Distinct labels, numbers by value, anything else by alphabet: the order of the logits."""
    distinct = sorted(set(labels))
    try:
        return tuple(sorted(distinct, key=int))
    except ValueError:
        return tuple(distinct)


def read_labelled(path: str | os.PathLike[str], text_column: str = "text", label_column: str = "label") -> Labelled:
    """Reads labelled text from ``.jsonl``, ``.csv`` or ``.tsv`` (also ``.gz``).

    Raises:
        InputFileError: what ``TextFile`` refuses, an empty text or label, a label that is no string or whole number, no
            rows.
    """
    texts, labels = [], []
    options = ("--text-column", "--label-column")
    with TextFile(Path(path), (text_column, label_column), options=options) as file:
        for row in file:
            text, label = row.values
            if not isinstance(text, str) or not text.strip():
                raise InputFileError(
                    f"{file.place(row)}: {text_column!r} is {text!r}; it must be a text that is not empty"
                )
            if not isinstance(label, str | int) or not str(label).strip():
                raise InputFileError(
                    f"{file.place(row)}: {label_column!r} is {label!r}; a label is a string or a whole number"
                )
            texts.append(text)
            labels.append(str(label))
    if not texts:
        raise InputFileError(f"{path} holds no labelled texts")
    return Labelled(texts, labels, str(path))


def check(train: Labelled) -> None:
    """Refuses data that no classifier can be trained on.

    Raises:
        InputFileError: fewer than two labels, or a different label for almost every row (a wrong column, surely).
    """
    counts = train.counts()
    if len(counts) < 2:
        raise InputFileError(
            f"{train.name} has one label only ({next(iter(counts), 'none')!r}); a classifier needs at least two."
        )
    if len(counts) > 1000 or len(counts) > max(2, len(train) // 2):
        raise InputFileError(
            f"{train.name} has {len(counts)} different labels in {len(train)} rows; is the label column the right one?"
        )


def split(data: Labelled, fraction: float, seed: int) -> tuple[Labelled, Labelled]:
    """Training and validation part: of every label the same ``fraction`` (at least one row) is held out.

    Raises:
        ValidationError: a fraction outside (0, 1).
        InputFileError: a label with a single row, which cannot be on both sides.
    """
    if not 0 < fraction < 1:
        raise ValidationError(f"validation_fraction must lie between 0 and 1; got {fraction}.")
    rng = np.random.default_rng(seed)
    names = np.array(data.labels)
    held: list[np.ndarray] = []
    for label, count in data.counts().items():
        if count < 2:
            raise InputFileError(
                f"{data.name} has a single row labelled {label!r}; give more, or a validation file of its own."
            )
        rows = rng.permutation(np.flatnonzero(names == label))
        held.append(rows[: min(count - 1, max(1, round(count * fraction)))])
    validation = np.sort(np.concatenate(held))
    training = np.setdiff1d(np.arange(len(data)), validation)
    return data.take(training), data.take(validation)
