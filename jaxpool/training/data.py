"""Labelled text for training: one label a text, any number of labels, or a number; checked, split and dealt by seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from jaxpool.errors import InputFileError, ValidationError

if TYPE_CHECKING:
    from jaxpool.checkpoints.labels import Problem

Text = str | tuple[str, str]
"""A text, or a pair of them."""

Label = str | tuple[str, ...] | float
"""One label (``single``), all that hold (``multi``), or the number to predict (``regression``)."""

NUMBER = "value"
"""Name of the one label of a regression."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts with their labels.

    Attributes:
        texts: the texts, or pairs of texts.
        labels: equally many; what each of them is, ``problem`` says.
        name: what error messages call them, usually the file.
        problem: ``single``, ``multi`` or ``regression``.
        names: names of the labels, where they do not follow from ``labels`` (columns of a table, say).
    """

    texts: Sequence[Text]
    labels: Sequence[Label]
    name: str = "the data"
    problem: Problem = "single"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValidationError(f"{self.name} has {len(self.texts)} texts but {len(self.labels)} labels.")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> Labelled:
        """The given rows, in the given order."""
        return replace(self, texts=[self.texts[i] for i in rows], labels=[self.labels[i] for i in rows])

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the labels in the order of the logits."""
        if self.problem == "regression":
            return (NUMBER,)
        return self.names or label_order(self._each())

    def counts(self) -> dict[str, int]:
        """Number of texts per label, in ``order``; none for a regression."""
        if self.problem == "regression":
            return {}
        found = Counter(self._each())
        return {label: found[label] for label in self.order}

    def targets(self, order: Sequence[str]) -> np.ndarray:
        """What is to be predicted: int32 ``[N]`` positions in ``order``, else float32 ``[N, labels]``.

        Raises:
            InputFileError: a label that ``order`` lacks.
        """
        if self.problem == "regression":
            return np.array(self.labels, np.float32)[:, None]
        position = {label: i for i, label in enumerate(order)}
        unknown = [label for label in self._each() if label not in position]
        if unknown:
            raise InputFileError(
                f"{self.name} has the label {unknown[0]!r} ({unknown.count(unknown[0])} rows), which the training data "
                f"lacks; its labels are {', '.join(order)}."
            )
        if self.problem == "single":
            return np.array([position[str(label)] for label in self.labels], np.int32)
        target_NC = np.zeros((len(self), len(order)), np.float32)
        for row, labels in enumerate(self.labels):
            target_NC[row, [position[label] for label in _several(labels)]] = 1
        return target_NC

    def _each(self) -> list[str]:
        """Every label of every row."""
        if self.problem == "single":
            return [str(label) for label in self.labels]
        return [label for labels in self.labels for label in _several(labels)]


def _several(labels: Label) -> tuple[str, ...]:
    assert isinstance(labels, tuple)
    return labels


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Distinct labels, numbers by value, anything else by alphabet: the order of the logits."""
    distinct = sorted(set(labels))
    try:
        return tuple(sorted(distinct, key=int))
    except ValueError:
        return tuple(distinct)


def check(train: Labelled) -> None:
    """Refuses data that no classifier can be trained on.

    Raises:
        InputFileError: fewer than two labels, or a different label for almost every row (a wrong column, surely); a
            label that every or no text has, where there are several; numbers that are all the same.
    """
    if train.problem == "regression":
        values = np.array(train.labels, np.float64)
        if not np.isfinite(values).all():
            raise InputFileError(f"{train.name}: row {int(np.argmin(np.isfinite(values))) + 1} has no finite number.")
        if len(values) < 2 or np.ptp(values) == 0:
            raise InputFileError(f"{train.name} has one and the same number in all rows; there is nothing to learn.")
        return
    counts = train.counts()
    if len(counts) < 2:
        raise InputFileError(
            f"{train.name} has one label only ({next(iter(counts), 'none')!r}); a classifier needs at least two."
        )
    if train.problem == "multi":
        for label, count in counts.items():
            if count in (0, len(train)):
                raise InputFileError(
                    f"{train.name}: {'every' if count else 'no'} text has the label {label!r}; leave it out."
                )
    if len(counts) > 1000 or (train.problem == "single" and len(counts) > max(2, len(train) // 2)):
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
    _refuse_single_rows(data)
    rng = np.random.default_rng(seed)
    held = [rows[: min(len(rows) - 1, max(1, round(len(rows) * fraction)))] for rows in _strata(data, rng)]
    validation = np.sort(np.concatenate(held))
    training = np.setdiff1d(np.arange(len(data)), validation)
    return data.take(training), data.take(validation)


def folds(data: Labelled, most: int, seed: int, *, strict: bool = True) -> list[np.ndarray]:
    """Rows in 2 to ``most`` parts, every label dealt evenly among them; sorted row numbers per part.

    Raises:
        InputFileError: as ``split``; without ``strict``, such a label is in one part alone.
    """
    if strict:
        _refuse_single_rows(data)
    strata = _strata(data, np.random.default_rng(seed))
    least = min(map(len, strata)) if data.problem == "single" else len(data) // 2
    count = max(2, min(most, least))
    dealt = np.concatenate(strata)  # stratum after stratum, dealt on without a new start: parts of one size
    return [np.sort(dealt[start::count]) for start in range(count)]


def _refuse_single_rows(data: Labelled) -> None:
    for label, count in data.counts().items() if data.problem == "single" else ():
        if count < 2:
            raise InputFileError(
                f"{data.name} has {'a single row' if count else 'no row'} labelled {label!r}; give more, or a "
                "validation file of its own."
            )


def _strata(data: Labelled, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows by what must be spread evenly, each group shuffled: the label, the rarest label, or the size of a number."""
    if data.problem == "regression":
        groups = np.array_split(np.argsort(np.array(data.labels, np.float64), kind="stable"), math.ceil(len(data) / 10))
        return [rng.permutation(rows) for rows in groups]
    counts = data.counts()
    if data.problem == "multi":
        rarest = [min(_several(labels), key=lambda label: counts[label], default="") for labels in data.labels]
        return [rng.permutation(np.flatnonzero(np.array(rarest) == label)) for label in sorted(set(rarest))]
    names = np.array([str(label) for label in data.labels])
    return [rng.permutation(np.flatnonzero(names == label)) for label, count in counts.items() if count]
