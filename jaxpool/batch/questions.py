"""Labels of a caller's own, for a chunk of texts at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpool.text.windows import Windowed

if TYPE_CHECKING:
    from jaxpool.llm import LLM
    from jaxpool.zero_shot.options import Question


class Asked:
    """A question put to a model.

    Args:
        llm: the model.
        question: labels and how they are asked for.

    Raises:
        ValidationError: the question does not fit the model.
    """

    def __init__(self, llm: LLM, question: Question) -> None:
        from jaxpool.zero_shot.kinds import kind_of
        from jaxpool.zero_shot.programs import AnswerPrograms

        self._engine, self._tokenizer, self._question = llm.engine, llm.tokenizer, question
        self._kind = kind_of(question, llm.engine.spec, llm.tokenizer, asking=llm.asking)
        self._programs = AnswerPrograms(llm.engine) if llm.engine.spec.language is not None else None

    def encode(self, texts: Sequence[str]) -> list[Windowed]:
        """What is computed for each text, as its windows."""
        works = self._kind.work(texts)
        rows = iter(self._rows([one for work in works for one in work]))
        found = [list(itertools.islice(rows, len(work))) for work in works]
        return [Windowed(list(work[0].ids), work) for work in found]

    def scores(self, prompts: Sequence[Windowed], activated: bool) -> np.ndarray:
        """float32 ``[texts, labels]`` of what ``encode`` made: probabilities, or scores in logarithms."""
        from jaxpool.zero_shot.judges import probabilities

        values: Iterator[np.ndarray] = iter(self._run([row for prompt in prompts for row in prompt.windows]))
        each = (list(itertools.islice(values, len(prompt.windows))) for prompt in prompts)
        found = np.stack([self._kind.score(p.windows, one, self._common) for p, one in zip(prompts, each)])
        return probabilities(self._question, found) if activated else found.astype(np.float32)

    @functools.cached_property
    def _common(self) -> list[np.ndarray]:
        """What is the same for all texts; nothing, mostly."""
        common = self._rows(self._kind.common)
        return self._run(common) if common else []

    def _rows(self, work: Sequence[Any]) -> list[Any]:
        return list(work) if self._programs is not None else self._tokenizer.encode(work)

    def _run(self, rows: list[Any]) -> list[np.ndarray]:
        if self._programs is not None:
            return self._programs.run(rows)
        from jaxpool.engine.engine import Row

        params, spec = self._kind.params, self._engine.spec
        activated = spec.use_activation if params.use_activation is None else params.use_activation
        return list(self._engine.run([Row(row.ids, row.types, activated) for row in rows]))
