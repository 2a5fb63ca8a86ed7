"""How close two implementations of the same model are: largest difference of logits, agreement of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Parity:
    """The comparison of two sets of logits.

    Attributes:
        texts: rows compared.
        max_difference: largest absolute difference of two logits; NaN where either holds one.
        agreement: share of rows with the same best label (for one label: the same sign), 0 to 1.
        worst: key of the row with the largest difference.
    """

    texts: int
    max_difference: float
    agreement: float
    worst: str

    def __str__(self) -> str:
        return (
            f"{self.texts} texts: max |Δlogit| {self.max_difference:.2e} (at {self.worst}), "
            f"labels agree on {self.agreement:.1%}"
        )


def compare(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> Parity:
    """Compare logits ``[labels]`` by key.

    Raises:
        ValueError: there is nothing to compare, or keys or numbers of labels differ.
    """
    if not ours or ours.keys() != theirs.keys():
        raise ValueError(f"the same keys are needed on both sides, at least one; got {len(ours)} and {len(theirs)}")
    left = np.stack([np.asarray(ours[key], np.float64) for key in ours])
    right = np.stack([np.asarray(theirs[key], np.float64) for key in ours])
    if left.shape != right.shape:
        raise ValueError(f"{left.shape[-1]} labels on one side, {right.shape[-1]} on the other")
    differences = np.abs(left - right).max(axis=1)
    worst = int(np.argmax(differences))  # NaN counts as largest
    same = (left > 0) == (right > 0) if left.shape[1] == 1 else left.argmax(1) == right.argmax(1)
    return Parity(len(ours), float(differences[worst]), float(same.mean()), list(ours)[worst])
