"""Answers a question about texts at once, whatever kind of model it is put to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxpool.engine.engine import Engine
from jaxpool.errors import EngineError, ValidationError
from jaxpool.outputs import ClassificationRequestOutput, PoolingOutput, PoolingRequestOutput
from jaxpool.params import PoolingParams
from jaxpool.text.frames import Asking
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.zero_shot.kinds import kind_of
from jaxpool.zero_shot.options import Question
from jaxpool.zero_shot.programs import AnswerPrograms
from jaxpool.zero_shot.prompts import text_of

Run = Callable[[Sequence[Any], PoolingParams], list[PoolingRequestOutput[PoolingOutput]]]
"""The engine's own task, for models that are no language models."""


class Judge:
    """Answers questions with one model; keeps its programs.

    Args:
        engine: the model.
        tokenizer: its tokenizer.
        ids: numbers of requests.
        asking: how it was trained to be asked; see ``Recipe``.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, ids: Iterator[int], asking: Asking | None = None) -> None:
        self._engine, self._tokenizer, self._ids, self._asking = engine, tokenizer, ids, asking
        self.programs = AnswerPrograms(engine) if engine.spec.language else None

    def __call__(
        self,
        question: Question,
        prompts: Sequence[Any],
        params: Sequence[PoolingParams],
        run: Run,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[ClassificationRequestOutput]:
        """One output per text: probabilities, or without the activation scores in logarithms.

        Args:
            question: labels and how they are asked for.
            prompts: texts.
            params: for each text, whether it is activated.
            run: see ``Run``.
            tokenization_kwargs: options of ``run``; a language model has none.

        Raises:
            ValidationError: the question does not fit the model.
            EngineError: a score is not finite.
        """
        spec, texts = self._engine.spec, [text_of(prompt) for prompt in prompts]
        if spec.language is not None and tokenization_kwargs:
            raise ValidationError(
                "tokenization_kwargs would cut the prompt, not the text; with a language model shorten the texts.",
                parameter="tokenization_kwargs",
            )
        kind = kind_of(question, spec, self._tokenizer, asking=self._asking)
        works = kind.work(texts)
        everything = [*kind.common, *itertools.chain.from_iterable(works)]
        if self.programs is not None:
            numbers = iter(self.programs.run(everything))
            ids = [work[0].ids[: work[0].text].tolist() for work in works]
        else:
            found = run(everything, kind.params)
            numbers = iter([output.outputs.data for output in found])
            starts = itertools.accumulate([len(kind.common), *map(len, works[:-1])])
            ids = [found[start].prompt_token_ids for start in starts]
        common = list(itertools.islice(numbers, len(kind.common)))
        scores = np.stack([kind.score(work, list(itertools.islice(numbers, len(work))), common) for work in works])
        if not np.isfinite(scores).all():
            text = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
            raise EngineError(f"The scores of prompt {text} are not finite: {scores[text].tolist()}.")
        probs, outputs = probabilities(question, scores), []
        for row, (param, read) in enumerate(zip(params, ids)):
            activated = param.use_activation is not False
            values = PoolingOutput((probs if activated else scores)[row].astype(np.float32))
            threshold = (0.5 if activated else 0.0) if question.multi_label else None
            base = PoolingRequestOutput(str(next(self._ids)), values, read)
            outputs.append(ClassificationRequestOutput.from_base(base, question.labels, threshold))
        return outputs


def probabilities(question: Question, scores: np.ndarray) -> np.ndarray:
    """float32 of the same shape: of labels that exclude one another, or each by itself."""
    if question.multi_label:
        return (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
