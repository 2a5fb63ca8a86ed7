"""Texts to labels, for a chunk at a time: what cannot be classified is told apart and stops nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpool.batch.questions import Asked
from jaxpool.text import aggregate, windows
from jaxpool.text.windows import Windowed
from jaxpool.zero_shot.options import Question

if TYPE_CHECKING:
    from jaxpool.batch.job import Settings
    from jaxpool.llm import LLM


@dataclass(slots=True)
class Prepared:
    """Tokenised texts of a chunk.

    Attributes:
        count: texts, refused ones included.
        at: index of each that is to be computed.
        prompts: their tokens.
        refused: index -> why the model cannot read it.
    """

    count: int
    at: list[int]
    prompts: list[Windowed]
    refused: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Labelled:
    """Scores of a chunk.

    Attributes:
        scores: float32 ``[texts, labels]``; NaN where there are none.
        scored: bool ``[texts]``; False for refused texts.
        refused: index -> why there are none.
        tokens: real tokens computed.
    """

    scores: np.ndarray
    scored: np.ndarray
    refused: dict[int, str]
    tokens: int


class Labeller:
    """A model with a job's settings.

    Args:
        llm: the model.
        settings: of the job.

    Attributes:
        labels: the model's.
        several: whether several of them may hold at once.
        threshold: what a score must exceed for its label to hold, where several may.
    """

    def __init__(self, llm: LLM, settings: Settings) -> None:
        spec = llm.engine.spec
        self._llm, self._long = llm, settings.long(spec.max_length)
        self.labels, self.several = llm.labels, spec.problem == "multi"
        self.activated = spec.use_activation and not settings.logits
        self.threshold = 0.5 if self.activated else 0.0
        self._how = self._long.aggregate_for(self.several) if self._long else "first"
        self._asked: Asked | None = None
        if (question := Question.of(settings.question or {})) is not None:
            self._asked, self.activated = Asked(llm, question), not settings.logits
            self.labels, self.several = question.labels, question.multi_label
            self.threshold = 0.5 if self.activated else 0.0

    def prepare(self, columns: Sequence[list[str]]) -> Prepared:
        """Tokenises texts: of one column, or pairs of two."""
        texts = columns[0]
        pairs = columns[1] if len(columns) > 1 else None
        at = list(range(len(texts)))
        prompts: list[Any] = list(texts)
        if pairs is not None:
            prompts = [{"prompt": text, "text_pair": pair} for text, pair in zip(texts, pairs)]
        try:
            return Prepared(len(texts), at, self._encode(prompts) if prompts else [])
        except (ValueError, TypeError):
            found = Prepared(len(texts), [], [])
            for index, prompt in zip(at, prompts):
                try:
                    [encoded] = self._encode([prompt])
                except (ValueError, TypeError) as error:
                    found.refused[index] = str(error)
                    continue
                found.at.append(index)
                found.prompts.append(encoded)
            return found

    def _encode(self, prompts: list[Any]) -> list[Windowed]:
        if self._asked is not None:
            return self._asked.encode(prompts)
        return windows.encode(self._llm.tokenizer, prompts, None, self._long)

    def compute(self, prepared: Prepared) -> Labelled:
        """Scores of what was prepared."""
        from jaxpool.engine.engine import Row

        rows = [one for text in prepared.prompts for one in text.windows]
        scores = np.full((prepared.count, len(self.labels)), np.nan, np.float32)
        scored = np.zeros(prepared.count, bool)
        refused = dict(prepared.refused)
        if rows:
            if self._asked is not None:
                values = self._asked.scores(prepared.prompts, self.activated)
            else:
                values = self._llm.engine.run([Row(row.ids, row.types, self.activated) for row in rows])
            if self._asked is None and len(rows) > len(prepared.prompts):
                values = aggregate.of_texts(values, prepared.prompts, self._how)
            at, finite = np.array(prepared.at), np.isfinite(values).all(1)
            scores[at[finite]] = values[finite]
            scored[at[finite]] = True
            refused |= dict.fromkeys(at[~finite].tolist(), "its scores are not finite: the dtype overflows")
        return Labelled(scores, scored, refused, sum(len(row.ids) for row in rows))

    def names(self, labelled: Labelled) -> list[str | None]:
        """The label of the highest score of each text; None where there are no scores."""
        best = np.where(labelled.scored, np.nan_to_num(labelled.scores, nan=-np.inf).argmax(1), -1)
        return [None if index < 0 else self.labels[index] for index in best.tolist()]

    def all_that_hold(self, labelled: Labelled) -> list[list[str] | None]:
        """Where several labels may hold, those of each text that do."""
        return [
            [self.labels[index] for index in np.flatnonzero(row > self.threshold)] if scored else None
            for row, scored in zip(labelled.scores, labelled.scored)
        ]
