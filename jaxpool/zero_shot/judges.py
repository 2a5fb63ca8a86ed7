"""One question, three kinds of model: how well each label fits each text.

A language model gives the probability of the label's tokens behind a prompt; a model of entailment reads the text as
premise and the label as hypothesis (Yin et al. 2019, arXiv:1909.00161); an embedder compares both vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine.engine import Engine
from jaxpool.errors import EngineError, ValidationError
from jaxpool.outputs import ClassificationRequestOutput, PoolingOutput, PoolingRequestOutput
from jaxpool.params import PoolingParams
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.zero_shot.options import Question, fill, need
from jaxpool.zero_shot.programs import AnswerPrograms
from jaxpool.zero_shot.prompts import Wording, text_of
from jaxpool.zero_shot.tree import Piece, Tree, apart, together

HYPOTHESIS = "This example is {label}."
"""What a model of entailment is asked where the caller gives no prompt, as transformers' pipeline does."""

SHARPNESS = 20.0
"""Factor on cosines before their softmax: that with which Sentence-Transformers trains by default."""

Run = Callable[[Sequence[Any], PoolingParams], list[PoolingRequestOutput[PoolingOutput]]]
"""The engine's own task, for models that are no language models."""


class Judge:
    """Answers questions with one model; keeps its programs.

    Args:
        engine: the model.
        tokenizer: its tokenizer.
        ids: numbers of requests.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, ids: Iterator[int]) -> None:
        self._engine, self._tokenizer, self._ids = engine, tokenizer, ids
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
        scores, read = self._scores(question, [text_of(prompt) for prompt in prompts], run, tokenization_kwargs)
        if not np.isfinite(scores).all():
            text = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
            raise EngineError(f"The scores of prompt {text} are not finite: {scores[text].tolist()}.")
        probs, outputs = probabilities(question, scores), []
        for row, (param, ids) in enumerate(zip(params, read)):
            activated = param.use_activation is not False
            values = PoolingOutput((probs if activated else scores)[row].astype(np.float32))
            threshold = (0.5 if activated else 0.0) if question.multi_label else None
            base = PoolingRequestOutput(str(next(self._ids)), values, ids)
            outputs.append(ClassificationRequestOutput.from_base(base, question.labels, threshold))
        return outputs

    def _scores(
        self, question: Question, texts: list[str], run: Run, tokenization_kwargs: dict[str, Any] | None
    ) -> tuple[np.ndarray, list[list[int]]]:
        """How well labels fit texts, ``[texts, labels]`` in logarithms, and what was read of each text first."""
        spec = self._engine.spec
        if spec.language is not None:
            if tokenization_kwargs:
                raise ValidationError(
                    "tokenization_kwargs would cut the prompt, not the text; with a language model shorten the texts.",
                    parameter="tokenization_kwargs",
                )
            return self._by_answers(question, texts)
        if spec.task == "embed":
            return _by_similarity(question, texts, run)
        if spec.task == "classify":
            return _by_entailment(question, texts, run, spec)
        raise ValidationError(f"candidate_labels do not go with the task {spec.task!r}.", parameter="candidate_labels")

    def _by_answers(self, question: Question, texts: list[str]) -> tuple[np.ndarray, list[list[int]]]:
        wording = Wording(self._tokenizer, question)
        asked = [*texts, ""] if question.calibrate else texts
        named = question.labels if question.multi_label else ("",)
        rounds = [wording.contexts(asked, label) for label in named]
        contexts = [ids for one in rounds for ids in one]
        found = self._spelled(contexts, wording.tree, question)
        if question.multi_label:  # yes against no, [labels * texts]
            found = (found[:, 1] - found[:, 0]).reshape(len(named), len(asked)).T
        scores = found[:-1] - found[-1:] if question.calibrate else found
        return scores, rounds[0][: len(texts)]

    def _spelled(self, contexts: list[list[int]], tree: Tree, question: Question) -> np.ndarray:
        """Score of every answer behind every context: float64 ``[contexts, answers]``."""
        assert self.programs is not None
        spec, pieces, owners = self._engine.spec, [], []
        longest = self._engine.spec.max_length
        fits = all(len(context) + len(tree.tokens) <= longest for context in contexts)
        branches = bool(tree.tokens) and fits and _branches(spec)
        for owner, context in enumerate(contexts):
            mine: list[Piece] = [together(context, tree)] if branches else apart(context, tree)
            pieces += mine
            owners += [owner] * len(mine)
        absolute = any(len(answer) > 1 for answer in tree.answers)
        values = self.programs.run(pieces, absolute=absolute)
        steps = np.zeros((len(contexts), len(tree.steps)))
        for owner, piece, numbers in zip(owners, pieces, values):
            steps[owner, list(piece.places)] = numbers
        sums = np.stack([steps[:, list(answer)].sum(axis=1) for answer in tree.answers], axis=1)
        return sums / [len(answer) for answer in tree.answers] if question.length_normalize else sums


def probabilities(question: Question, scores: np.ndarray) -> np.ndarray:
    """float32 of the same shape: of labels that exclude one another, or each by itself."""
    if question.multi_label:
        return (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _branches(spec: Spec) -> bool:
    """Whether a row may branch: no state is carried along it, and no position depends on its whole length."""
    return spec.family.name == "decoder" and all(
        rope.kind not in ("dynamic", "longrope") for rope in getattr(spec.config, "ropes", ())
    )


def _by_entailment(question: Question, texts: list[str], run: Run, spec: Spec) -> tuple[np.ndarray, list[list[int]]]:
    names = [name.lower() for name in spec.labels]
    entails = next((i for i, name in enumerate(names) if name.startswith("entail")), None)
    denies = next((i for i, name in enumerate(names) if name.startswith(("contradict", "not"))), None)
    if entails is None:
        raise ValidationError(
            f"This classifier has labels of its own ({', '.join(spec.labels[:6])}) and none called 'entailment', so it "
            "cannot judge candidate_labels; use a model of entailment (NLI), a language model or an embedder.",
            parameter="candidate_labels",
        )
    question.refuse("a model of entailment", "examples", "length_normalize", "calibrate")
    if question.multi_label and denies is None:
        raise ValidationError(
            f"multi_label needs a label 'contradiction' or 'not_entailment' beside 'entailment'; this model has "
            f"{', '.join(spec.labels)}.",
            parameter="multi_label",
        )
    prompt = question.prompt or HYPOTHESIS
    need(prompt, "label")
    claims = [fill(prompt, label=label) for label in question.labels]
    found = run(
        [{"prompt": text, "text_pair": claim} for text in texts for claim in claims],
        PoolingParams(use_activation=False),
    )
    logits = np.stack([output.outputs.data for output in found]).reshape(len(texts), len(claims), -1)
    scores = logits[..., entails] - logits[..., denies] if question.multi_label else logits[..., entails]
    return scores, [output.prompt_token_ids for output in found[:: len(claims)]]


def _by_similarity(question: Question, texts: list[str], run: Run) -> tuple[np.ndarray, list[list[int]]]:
    question.refuse("an embedder", "examples", "length_normalize", "calibrate", "multi_label")
    prompt = question.prompt or "{label}"
    need(prompt, "label")
    claims = [fill(prompt, label=label) for label in question.labels]
    found = run([*texts, *claims], PoolingParams())
    vectors = np.stack([output.outputs.data for output in found])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores = SHARPNESS * vectors[: len(texts)] @ vectors[len(texts) :].T
    return scores, [output.prompt_token_ids for output in found[: len(texts)]]
