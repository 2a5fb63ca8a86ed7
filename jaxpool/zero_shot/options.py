"""What a caller asks who names labels: the arguments of ``LLM.classify`` that go with ``candidate_labels``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from jaxpool.errors import ValidationError

PLACES = re.compile(r"\{(text|labels|label)\}")
"""What a prompt may hold: the text, one label, or all of them."""

PROMPT = "Which of these labels fits the text best: {labels}?\n\nText: {text}\n\nLabel:"
QUESTION = 'Does the label "{label}" fit the text? Answer {labels}.\n\nText: {text}\n\nAnswer:'
"""Prompts of language models where the caller gives none, for one label of several and for each by itself."""


class CandidateLabels(TypedDict, total=False):
    """Arguments of ``LLM.classify`` for labels that the caller names; see ``Question``."""

    candidate_labels: Sequence[str] | None
    prompt: str | None
    examples: Sequence[tuple[str, str]] | None
    length_normalize: bool
    calibrate: bool
    multi_label: bool
    answers: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """One call's labels and how they are asked for.

    Attributes:
        labels: their names, in the order of the probabilities.
        prompt: what the model reads. ``{text}`` stands for the text, ``{labels}`` for all labels, ``{label}`` for one
            (for models of entailment and similarity, and with ``multi_label``). None is a default.
        examples: ``(text, label)`` pairs that come before the text; for language models.
        length_normalize: whether a label scores the mean log-probability of its tokens, not their sum.
        calibrate: whether a label's probability is divided by that behind an empty text (Zhao et al. 2021,
            arXiv:2102.09690).
        multi_label: whether each label is asked for by itself, so that several may hold, or none.
        answers: the two answers to such a question, of a language model: no and yes.
    """

    labels: tuple[str, ...]
    prompt: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    length_normalize: bool = False
    calibrate: bool = False
    multi_label: bool = False
    answers: tuple[str, str] = ("No", "Yes")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Question | None:
        """Reads the arguments; None where no labels are asked for.

        Raises:
            TypeError: there is no such argument.
            ValidationError: an argument is wrong, or of no use without ``candidate_labels``.
        """
        known = CandidateLabels.__annotations__
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"LLM.classify() got an unexpected keyword argument {name!r}{hint}")
        named = given.get("candidate_labels")
        if named is None:
            idle = [name for name, value in given.items() if value not in (None, False)]
            if idle:
                raise ValidationError(
                    f"{idle[0]} is of use with candidate_labels only; name the labels.", parameter=idle[0]
                )
            return None
        labels = _labels(named)
        return cls(
            labels,
            _prompt(given.get("prompt")),
            _examples(given.get("examples"), labels),
            length_normalize=_flag("length_normalize", given),
            calibrate=_flag("calibrate", given),
            multi_label=_flag("multi_label", given),
            answers=_answers(given.get("answers") or ("No", "Yes")),
        )

    @property
    def size(self) -> int:
        """Characters around each text, about, and of all labels."""
        shown = sum(len(text) + len(label) for text, label in self.examples) + sum(map(len, self.labels))
        return (1 + len(self.examples)) * len(self.prompt or "") + shown

    def refuse(self, kind: str, *names: str) -> None:
        """Raise ValidationError if one of the arguments is set, which a model of this kind has no use for."""
        for name in names:
            if getattr(self, name):
                raise ValidationError(f"{name} is for language models; this is {kind}.", parameter=name)


def fill(prompt: str, **values: str) -> str:
    """``prompt`` with its places taken; what stands in a text is never a place."""
    return PLACES.sub(lambda place: values.get(place[1], place[0]), prompt)


def need(prompt: str, *places: str) -> None:
    """Raise ValidationError unless every place stands in ``prompt``."""
    for place in places:
        if f"{{{place}}}" not in prompt:
            raise ValidationError(
                f"The prompt needs {{{place}}} where the {place} belongs; found {prompt[:60]!r}.", parameter="prompt"
            )


def _labels(named: Any) -> tuple[str, ...]:
    if isinstance(named, str) or not isinstance(named, Sequence):
        raise ValidationError(
            f"candidate_labels should be a list of texts; found {named!r}.", parameter="candidate_labels"
        )
    labels: list[str] = []
    for label in named:
        if not isinstance(label, str) or not label.strip():
            raise ValidationError(
                f"A candidate label is a text that is not empty; found {label!r}.", parameter="candidate_labels"
            )
        if label in labels:
            raise ValidationError(f"The candidate label {label!r} is named twice.", parameter="candidate_labels")
        labels.append(label)
    if not labels:
        raise ValidationError("candidate_labels is empty; name at least one label.", parameter="candidate_labels")
    return tuple(labels)


def _prompt(prompt: Any) -> str | None:
    if not isinstance(prompt, str | None):
        raise ValidationError(f"The prompt should be a text; found {prompt!r}.", parameter="prompt")
    return prompt


def _examples(examples: Any, labels: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for example in examples or ():
        if isinstance(example, str) or len(example) != 2 or not all(isinstance(part, str) for part in example):
            raise ValidationError(
                f"An example is a pair of texts (text, label); found {example!r}.", parameter="examples"
            )
        text, label = example
        if label not in labels:
            raise ValidationError(
                f"An example has the label {label!r}, which is none of candidate_labels.", parameter="examples"
            )
        found.append((text, label))
    return tuple(found)


def _answers(answers: Any) -> tuple[str, str]:
    if (
        isinstance(answers, str)
        or len(answers) != 2
        or not all(isinstance(one, str) and one.strip() for one in answers)
    ):
        raise ValidationError(f"answers should be two texts, (no, yes); found {answers!r}.", parameter="answers")
    no, yes = answers
    return no, yes


def _flag(name: str, given: Mapping[str, Any]) -> bool:
    value = given.get(name)
    if not isinstance(value, bool | None):
        raise ValidationError(f"{name} should be True or False; found {value!r}.", parameter=name)
    return bool(value)
