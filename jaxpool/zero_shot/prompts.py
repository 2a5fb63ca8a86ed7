"""A question as a language model reads it: the prompt around each text, and the answers' tokens behind it.

A context and an answer are tokenised together, and cut where the context ends (as lm-evaluation-harness does): so a
leading space is where the model has learnt it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxpool.errors import ValidationError
from jaxpool.text import chat
from jaxpool.text.frames import Asking
from jaxpool.text.prompts import TextPrompt, parse
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.zero_shot.options import PROMPT, QUESTION, Question, fill, need
from jaxpool.zero_shot.tree import Tree, grow

_PROBE = "a short text"
"""The text around which answers are tokenised."""


Render = Callable[[list[Any], Mapping[str, Any]], list[str]]
"""Conversations, and further arguments of ``chat.render``, to texts."""

ANSWERED = {"add_generation_prompt": True, "variables": {"enable_thinking": False}}
"""How a conversation ends: Qwen 3 and others begin the answer at once where thinking is off."""


class Wording:
    """How one question is put to one language model.

    Args:
        tokenizer: of the model.
        question: labels and how they are asked for.
        asking: how the model was trained to be asked, or None.
        render: makes the texts of conversations; None: the tokenizer's own template does, here and now.

    Attributes:
        tree: its answers.

    Raises:
        ValidationError: the question cannot be asked so.
    """

    def __init__(
        self, tokenizer: Tokenizer, question: Question, asking: Asking | None = None, render: Render | None = None
    ) -> None:
        multi = question.multi_label
        if asking is None or multi or question.prompt is not None:
            asking = Asking((QUESTION if multi else PROMPT) if question.prompt is None else question.prompt)
        self._asking = asking
        need(asking.prompt, "text", *["label"] * multi)
        if multi and question.examples:
            raise ValidationError(
                "examples do not go with multi_label; put them into the prompt.", parameter="examples"
            )
        self._tokenizer, self._question = tokenizer, question
        self.answers = question.answers if multi else question.labels
        self._shown = asking.between.join(fill(asking.label, label=asking.shown(label)) for label in self.answers)
        with tokenizer.reading() as vocabulary:
            self._vocabulary: Any = vocabulary
            self._is_chat = bool(vocabulary.chat_template)
        self._render = render or self._rendered
        self._gap = ""
        self._first: list[int] = [] if self._is_chat else self._beginning()
        [probe] = self._worded([_PROBE], question.labels[0])
        if _PROBE not in probe:
            raise ValidationError(
                "The chat template of this model drops the text, so nothing could be classified by it."
            )
        self._gap = "" if asking.opening else _gap(probe, self._ends_special(probe))
        self._cut, self.tree = self._grow(probe)

    def contexts(self, texts: Sequence[str], label: str = "") -> list[list[int]]:
        """Token ids of the prompt around each text, without an answer.

        Args:
            texts: as many as wanted.
            label: the one that is asked for, with ``multi_label``.

        Raises:
            ValidationError: a prompt and its answers are longer than the model reads.
        """
        encoded = self._ids([text.rstrip(" ") for text in self._worded(texts, label)])
        cut, most = self._cut, self._tokenizer.max_length
        found = []
        for index, ids in enumerate(encoded):
            length = len(self._first) + len(ids) + self.tree.depth
            if length > most:
                raise ValidationError(
                    f"Text {index} makes {length} tokens with its prompt and answers, but the model reads {most}; "
                    "shorten the text or the prompt.",
                    parameter="input_tokens",
                    value=length,
                )
            if cut and ids[len(ids) - len(cut) :] != cut:
                raise ValidationError(
                    "The tokens at the end of the prompt depend on the text; let the prompt end with a word or a line "
                    "break of its own.",
                    parameter="prompt",
                )
            found.append(self._first + ids[: len(ids) - len(cut)])
        return found

    def _worded(self, texts: Sequence[str], label: str) -> list[str]:
        examples, opening, closing = self._question.examples, self._asking.opening, self._asking.closing

        def asked(text: str) -> str:
            return fill(self._asking.prompt, text=self._asking.shown(text), label=label, labels=self._shown)

        if not self._is_chat:
            gap = "" if opening else _gap(asked(""), special=False)
            shots = "".join(f"{asked(one).rstrip(' ')}{opening}{gap}{name}{closing}\n\n" for one, name in examples)
            return [shots + asked(text) + opening for text in texts]
        shown: list[Any] = []
        for one, name in examples:
            answer = opening + self._asking.shown(name) + closing
            shown += [{"role": "user", "content": asked(one)}, {"role": "assistant", "content": answer}]
        asks = [[*shown, {"role": "user", "content": asked(text)}] for text in texts]
        return [text + opening for text in self._render(asks, ANSWERED)]

    def _rendered(self, conversations: list[Any], options: Mapping[str, Any]) -> list[str]:
        return [chat.render(self._vocabulary, one, **options) for one in conversations]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [one.ids for one in self._tokenizer.encode(texts, {"add_special_tokens": False})]

    def _beginning(self) -> list[int]:
        """Special tokens that the tokenizer puts before a text; those behind it would end the answer."""
        with_special = self._tokenizer.encode([_PROBE])[0].ids
        bare = self._ids([_PROBE])[0]
        starts = [i for i in range(len(with_special)) if with_special[i : i + len(bare)] == bare]
        return with_special[: starts[0]] if starts else []

    def _ends_special(self, text: str) -> bool:
        last = self._ids([text])[0][-1]
        backend, slow = self._vocabulary.backend, self._vocabulary.slow
        added = slow.added_tokens_decoder if backend is None else backend.get_added_tokens_decoder()
        return last in added

    def _grow(self, probe: str) -> tuple[list[int], Tree]:
        """The tokens of the context that answers may change, and the answers' tokens from there on."""
        context = probe.rstrip(" ")
        spelled = (self._asking.shown(answer) + self._asking.closing for answer in self.answers)
        base, *joint = self._ids([context, *(context + self._gap + one for one in spelled)])
        kept = min(_common(base, ids) for ids in joint)
        answers = [tuple(ids[kept:]) for ids in joint]
        seen: dict[tuple[int, ...], str] = {}
        for answer, tokens in zip(self.answers, answers):
            if not tokens:
                raise ValidationError(f"The label {answer!r} is no token of this model.", parameter="candidate_labels")
            if tokens in seen:
                raise ValidationError(
                    f"The labels {seen[tokens]!r} and {answer!r} are the same tokens to this model.",
                    parameter="candidate_labels",
                )
            seen[tokens] = answer
        if not kept and not self._first:
            raise ValidationError("The prompt is merged with its answers; let it end with a line break.")
        return base[kept:], grow(answers)


def text_of(prompt: Any) -> str:
    """The text of a prompt; ValidationError for a pair or token ids, which a prompt cannot be put around."""
    parsed = parse(prompt)
    if not isinstance(parsed, TextPrompt) or parsed.pair is not None:
        raise ValidationError(
            "With candidate_labels, pass texts: neither token ids nor pairs can be put into a prompt."
        )
    return parsed.text


def _gap(context: str, special: bool) -> str:
    """What stands between a context and its answer: a space, unless a line or a special token ends the context."""
    return "" if special or context.endswith(("\n", "\t")) else " "


def _common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
