"""One question, three kinds of model: what must be computed for texts, and what the numbers say of labels.

A language model gives the probability of the label's tokens behind a prompt; a model of entailment reads the text as
premise and the label as hypothesis (Yin et al. 2019, arXiv:1909.00161); an embedder compares both vectors. Nothing is
computed here: ``judges`` does it at once, a server in the company of other requests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jaxpool.checkpoints.spec import Spec
from jaxpool.errors import ValidationError
from jaxpool.params import PoolingParams
from jaxpool.text.frames import Asking
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.zero_shot.options import Question, fill, need
from jaxpool.zero_shot.prompts import Render, Wording
from jaxpool.zero_shot.tree import Cutter, Limits, Piece

HYPOTHESIS = "This example is {label}."
"""What a model of entailment is asked where the caller gives no prompt, as transformers' pipeline does."""

SHARPNESS = 20.0
"""Factor on cosines before their softmax: that with which Sentence-Transformers trains by default."""


class Kind(Protocol):
    """How one kind of model answers one question.

    Attributes:
        params: how what is to be computed is computed.
        common: what is computed once for the question, whatever the texts are.
    """

    params: PoolingParams
    common: Sequence[Any]

    def work(self, texts: Sequence[str]) -> list[list[Any]]:
        """What is computed for each text: pieces of a language model, prompts of another.

        Raises:
            ValidationError: a text does not fit.
        """

    def score(self, work: Sequence[Any], values: Sequence[np.ndarray], common: Sequence[np.ndarray]) -> np.ndarray:
        """How well labels fit one text: float64 ``[labels]``, in logarithms.

        Args:
            work: of the text.
            values: what came of it.
            common: what came of ``common``.
        """


def kind_of(
    question: Question,
    spec: Spec,
    tokenizer: Tokenizer,
    *,
    asking: Asking | None = None,
    render: Render | None = None,
    reads: int = sys.maxsize,
    steps: int = sys.maxsize,
) -> Kind:
    """How this model answers a question.

    Args:
        question: labels and how they are asked for.
        spec, tokenizer: the model.
        asking: how it was trained to be asked; see ``Recipe``.
        render: see ``Wording``.
        reads, steps: of one row of a language model with labels of several tokens; see ``Limits``.

    Raises:
        ValidationError: the question does not fit the model.
    """
    if spec.language is not None:
        return ByAnswers(Wording(tokenizer, question, asking, render), question, spec, reads, steps)
    if spec.task == "embed":
        return ByLikeness(question)
    if spec.task == "classify":
        return ByEntailment(question, spec)
    raise ValidationError(f"candidate_labels do not go with the task {spec.task!r}.", parameter="candidate_labels")


class ByAnswers:
    """A language model: the labels' own tokens behind a prompt.

    Args:
        wording: the question as the model reads it.
        question: labels and how they are asked for.
        spec: the model.
        reads, steps: of one row; see ``Limits``.
    """

    def __init__(self, wording: Wording, question: Question, spec: Spec, reads: int, steps: int) -> None:
        self.params = PoolingParams()
        self._wording, self._question, tree = wording, question, wording.tree
        self._cutter = Cutter(tree, Limits(spec.max_length, reads, steps, branches(spec)))
        self._named = question.labels if question.multi_label else ("",)
        self.common: Sequence[Any] = self.work([""])[0] if question.calibrate else []

    def work(self, texts: Sequence[str]) -> list[list[Piece]]:
        """See ``Kind``."""
        rounds = [self._wording.contexts(texts, label) for label in self._named]
        return [[piece for one in asked for piece in self._cutter.pieces(one)] for asked in zip(*rounds)]

    def score(self, work: Sequence[Piece], values: Sequence[np.ndarray], common: Sequence[np.ndarray]) -> np.ndarray:
        """See ``Kind``."""
        scores = self._spelled(work, values)
        return scores - self._spelled(self.common, common) if self._question.calibrate else scores

    def _spelled(self, work: Sequence[Piece], values: Sequence[np.ndarray]) -> np.ndarray:
        tree = self._cutter.tree
        steps, row, left = np.zeros((len(self._named), len(tree.steps))), 0, len(tree.steps)
        for piece, numbers in zip(work, values, strict=True):
            steps[row, list(piece.places)] = numbers
            left -= len(piece.places)
            if not left:  # every prediction is there: the next piece is of another label
                row, left = row + 1, len(tree.steps)
        sums = np.stack([steps[:, list(answer)].sum(axis=1) for answer in tree.answers], axis=1)
        if self._question.length_normalize:
            sums = sums / [len(answer) for answer in tree.answers]
        return sums[:, 1] - sums[:, 0] if self._question.multi_label else sums[0]  # yes against no


def branches(spec: Spec) -> bool:
    """Whether a row may branch: no state is carried along it, and no position depends on its whole length."""
    return spec.family.name == "decoder" and all(
        rope.kind not in ("dynamic", "longrope") for rope in getattr(spec.config, "ropes", ())
    )


class ByEntailment:
    """A model of entailment: whether the text entails that a label holds.

    Args:
        question: labels and how they are asked for.
        spec: the model.
    """

    common: Sequence[Any] = ()

    def __init__(self, question: Question, spec: Spec) -> None:
        names = [name.lower() for name in spec.labels]
        entails = next((i for i, name in enumerate(names) if name.startswith("entail")), None)
        denies = next((i for i, name in enumerate(names) if name.startswith(("contradict", "not"))), None)
        if entails is None:
            raise ValidationError(
                f"This classifier has labels of its own ({', '.join(spec.labels[:6])}) and none called 'entailment', "
                "so it cannot judge candidate_labels; use a model of entailment (NLI), a language model or "
                "an embedder.",
                parameter="candidate_labels",
            )
        question.refuse("a model of entailment", "examples", "length_normalize", "calibrate")
        if question.multi_label and denies is None:
            raise ValidationError(
                f"multi_label needs a label 'contradiction' or 'not_entailment' beside 'entailment'; this model has "
                f"{', '.join(spec.labels)}.",
                parameter="multi_label",
            )
        self.params = PoolingParams(use_activation=False)
        self._claims = _claims(question, HYPOTHESIS)
        self._entails, self._denies = entails, denies if question.multi_label else None

    def work(self, texts: Sequence[str]) -> list[list[Any]]:
        """See ``Kind``."""
        return [[{"prompt": text, "text_pair": claim} for claim in self._claims] for text in texts]

    def score(self, work: Sequence[Any], values: Sequence[np.ndarray], common: Sequence[np.ndarray]) -> np.ndarray:
        """See ``Kind``."""
        logits = np.stack(values).astype(np.float64)
        entailed: np.ndarray = logits[:, self._entails]
        return entailed if self._denies is None else entailed - logits[:, self._denies]


class ByLikeness:
    """An embedder: the cosine between a text and a label.

    Args:
        question: labels and how they are asked for.
    """

    def __init__(self, question: Question) -> None:
        question.refuse("an embedder", "examples", "length_normalize", "calibrate", "multi_label")
        self.params = PoolingParams()
        self.common: Sequence[Any] = _claims(question, "{label}")

    def work(self, texts: Sequence[str]) -> list[list[Any]]:
        """See ``Kind``."""
        return [[text] for text in texts]

    def score(self, work: Sequence[Any], values: Sequence[np.ndarray], common: Sequence[np.ndarray]) -> np.ndarray:
        """See ``Kind``."""
        found: np.ndarray = SHARPNESS * _unit(np.stack(common)) @ _unit(values[0])
        return found.astype(np.float64)


def _claims(question: Question, default: str) -> list[str]:
    prompt = default if question.prompt is None else question.prompt
    need(prompt, "label")
    return [fill(prompt, label=label) for label in question.labels]


def _unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return found
