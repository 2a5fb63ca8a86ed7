"""What validation showed, in words for people and as ``validation.json`` in the model's folder."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpool.training.metrics import Errors, Scores, measure

if TYPE_CHECKING:
    from jaxpool.checkpoints.labels import Problem

FILE = "validation.json"
_WIDEST = 12  # labels up to which the confusion is printed; the file has it always


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of a model on texts that it was not trained on.

    Attributes:
        how: how it was measured, as a phrase.
        problem: what the labels mean.
        labels: their names, in order.
        loss: mean cross entropy with the weights of the labels, or half the mean squared error of numbers.
        scores: the figures.
        warning: why the result is worth little, or an empty string.
    """

    how: str
    problem: Problem
    labels: tuple[str, ...]
    loss: float
    scores: Scores | Errors
    warning: str

    @staticmethod
    def of(
        how: str, problem: Problem, labels: tuple[str, ...], loss: float, targets: np.ndarray, logits_NC: np.ndarray
    ) -> Report:
        """Measures logits against ``Labelled.targets``."""
        scores = measure(targets, logits_NC, problem)
        return Report(how, problem, labels, loss, scores, _warning(scores, targets, labels, problem, loss))

    def save(self, folder: Path) -> None:
        """Writes ``validation.json``."""
        text = json.dumps(self.as_json(), ensure_ascii=False, indent=1, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    def as_json(self) -> dict[str, Any]:
        """Plain data; what is undefined (the recall of a label without texts) is null."""
        content: dict[str, Any] = {"measured": self.how, "problem": self.problem, "loss": round(self.loss, 6)}
        if isinstance(self.scores, Errors):
            return content | dataclasses.asdict(self.scores) | {"warning": self.warning}
        s = self.scores
        content |= {"texts": s.count, "accuracy": s.accuracy, "accuracy_interval": list(s.interval)}
        content |= {"macro_f1": s.macro_f1, "warning": self.warning}
        rows = zip(self.labels, s.precision, s.recall, s.f1, s.support)
        content["labels"] = [
            {"label": label, "precision": _known(p), "recall": _known(r), "f1": _known(f), "texts": count}
            for label, p, r, f, count in rows
        ]
        if s.confusion:
            content["confusion"] = {"rows": "true label", "columns": "predicted label", "texts": s.confusion}
        return content

    def lines(self) -> list[str]:
        """The same for a terminal."""
        if isinstance(self.scores, Errors):
            shown = [f"validation ({self.how}): {self.scores}"]
        else:
            s = self.scores
            low, high = s.interval
            shown = [
                f"validation ({self.how}): accuracy {s.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}), "
                f"macro-F1 {s.macro_f1:.4f}"
            ]
            wide = max(len("label"), *(len(label) for label in self.labels))
            shown.append(f"{'label':<{wide}}  precision  recall     F1  texts")
            for row in zip(self.labels, s.precision, s.recall, s.f1, s.support):
                shown.append(
                    f"{row[0]:<{wide}}  {_cell(row[1]):>9}  {_cell(row[2]):>6}  {_cell(row[3]):>5}  {row[4]:>5}"
                )
            if s.confusion and len(self.labels) <= _WIDEST:
                shown.append("confusion (rows: true label, columns: predicted, in the order above)")
                shown += [
                    f"{label:<{wide}}  " + " ".join(f"{count:>5}" for count in row)
                    for label, row in zip(self.labels, s.confusion)
                ]
        return shown + ([f"warning: {self.warning}"] if self.warning else [])


def _warning(
    scores: Scores | Errors, targets: np.ndarray, labels: tuple[str, ...], problem: Problem, loss: float
) -> str:
    """Whether the model does no better than one that has not read the texts."""
    if isinstance(scores, Errors):
        near = scores.r2 < 0.05
        return "the predictions are hardly better than the mean of all numbers (R² below 0.05)" if near else ""
    if problem == "multi":
        share_C = np.mean(targets > 0.5, axis=0)
        blind = float(sum(_entropy(np.array([share, 1 - share])) for share in share_C))
        if loss < 0.95 * blind:
            return ""
        return f"the loss is hardly better than that of the labels' frequencies ({blind:.4f}), whatever the text says"
    count_C = np.bincount(targets, minlength=len(labels))
    majority, chance = float(count_C.max() / count_C.sum()), 1 / np.count_nonzero(count_C)
    if scores.balanced_accuracy <= chance + 0.05:
        return f"recall by label is that of chance ({scores.balanced_accuracy:.4f} on average, chance {chance:.4f})"
    low, _ = scores.interval
    if low <= majority and scores.balanced_accuracy < max(0.75, 2 * chance):
        return (
            f"accuracy cannot be told from always answering {labels[int(count_C.argmax())]!r} ({majority:.4f}); give "
            "more texts, or check the labels"
        )
    return ""


def _entropy(shares: np.ndarray) -> float:
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
