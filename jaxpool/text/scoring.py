"""Two texts as one prompt, for scores: a pair of the tokenizer's, one text, or what a score template makes of them.

A score template is a chat template that knows the roles ``query`` and ``document``, as vLLM's and those that
Sentence-Transformers saves with a CrossEncoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxpool.errors import ValidationError
from jaxpool.text import chat

if TYPE_CHECKING:
    from jaxpool.text.tokenizer import Tokenizer
    from jaxpool.text.vocabulary import Vocabulary

RESERVED = frozenset({"chat_template", "tools", "tokenize"})
"""Variables that a caller cannot set; vLLM's."""

SWITCHES = ("add_generation_prompt", "continue_final_message")
"""Variables that say how a conversation ends."""

BY_LIKENESS = ("embed", "token_embed")
"""Tasks whose results are compared, text by text; those of "classify" are scores of pairs."""

ONE_LABEL = "Scoring API is only enabled for num_labels == 1."
NO_SCORES = "This model does not support the Scoring API."
"""vLLM's words."""


@dataclass(frozen=True, slots=True)
class PairReading:
    """How a model reads two texts.

    Attributes:
        joined: end to end, as one text; else as the tokenizer makes pairs. A template goes before.
        template: Jinja, or the name of one of the tokenizer's; None for none.
        variables: what the template sees unless a caller says otherwise.
        content_format: as in ``chat.render``.
        special_tokens: whether the tokenizer adds its special tokens to what the template wrote.
    """

    joined: bool = False
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    content_format: chat.ContentFormat = "string"
    special_tokens: bool = True

    def tokenization(self, given: Mapping[str, Any] | None, options: ScoreOptions) -> dict[str, Any]:
        """``tokenization_kwargs`` of the prompts: where documents have a limit, pairs are cut at the document only."""
        found = dict(given or {})
        if self.template is not None:
            return found if self.special_tokens else {"add_special_tokens": False} | found
        cut = found.get("truncate_prompt_tokens")
        if options.max_tokens_per_doc and not self.joined and cut is not None and found.get("truncation_side") is None:
            del found["truncate_prompt_tokens"]
            found |= {"truncation": "only_second"} | ({"max_length": cut} if cut >= 0 else {})
        return found

    def prompts(
        self, tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str], options: ScoreOptions
    ) -> list[Any]:
        """What the model reads of pairs, one prompt each.

        Raises:
            ValidationError: the template fails.
        """
        if self.template is None:
            return pairs(first, second, joined=self.joined, variables=options.chat_template_kwargs)
        with tokenizer.reading() as vocabulary:
            return rendered(vocabulary, **self.question(first, second, options))

    def question(self, first: Sequence[str], second: Sequence[str], options: ScoreOptions) -> dict[str, Any]:
        """The arguments of ``rendered`` beside the tokenizer, plain enough for another process."""
        variables = {**self.variables, **options.chat_template_kwargs}
        switches = {name: bool(variables.pop(name)) for name in SWITCHES if name in variables}
        return {
            "conversations": [
                [{"role": "query", "content": one}, {"role": "document", "content": two}]
                for one, two in zip(matched(first, second), second, strict=True)
            ],
            "template": self.template,
            "content_format": self.content_format,
            "variables": variables,
            **switches,
        }


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What a caller may ask of scores beyond the texts.

    Attributes:
        max_tokens_per_query, max_tokens_per_doc: most tokens of a text on either side; 0 for no limit of its own.
        chat_template_kwargs: variables for a score template or a recipe's, ``instruction`` among them.
    """

    max_tokens_per_query: int = 0
    max_tokens_per_doc: int = 0
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, max_length: int) -> ScoreOptions:
        """From ``PoolingParams.extra_kwargs`` or a request's fields; ``instruction`` is short for a variable.

        Args:
            given: by name; what else is in it is for others.
            max_length: most tokens that the model reads.

        Raises:
            ValidationError: a limit is not possible, or a variable is not for callers.
        """
        given = given or {}
        limits = {}
        for name in ("max_tokens_per_query", "max_tokens_per_doc"):
            limits[name] = value = given.get(name) or 0
            if not isinstance(value, int) or value < 0:
                raise ValidationError(f"{name} must be a non-negative integer")
            if value >= max_length:
                raise ValidationError(f"{name} ({value}) must be less than max_model_len ({max_length}).")
        variables = given.get("chat_template_kwargs") or {}
        if not isinstance(variables, Mapping):
            raise ValidationError(f"chat_template_kwargs must be a dict of variables; found {variables!r}.")
        if given.get("instruction") is not None:
            variables = {"instruction": given["instruction"], **variables}
        if unexpected := RESERVED & variables.keys():
            raise ValidationError(
                "chat_template_kwargs contains reserved keys that conflict with fixed scorer arguments: "
                f"{sorted(unexpected)}"
            )
        return cls(**limits, chat_template_kwargs=variables)

    @property
    def limits(self) -> tuple[int, int]:
        """Most tokens on either side."""
        return self.max_tokens_per_query, self.max_tokens_per_doc


def check(task: str, labels: int) -> None:
    """Raises ValidationError where a model of this task and so many labels scores no pairs."""
    if task == "classify" and labels != 1:
        raise ValidationError(ONE_LABEL)
    if task not in (*BY_LIKENESS, "classify"):
        raise ValidationError(NO_SCORES)


def to_score(data_1: str | Sequence[str], data_2: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts on both sides of pairs to be scored: one for all of the other side, or as many.

    Raises:
        ValidationError: a side is empty, or their numbers do not match.
    """
    first, second = ([data] if isinstance(data, str) else list(data) for data in (data_1, data_2))
    if len(first) > 1 and len(first) != len(second):
        raise ValidationError("Input lengths must be either 1:1, 1:N or N:N")
    for texts, name in ((first, "text"), (second, "text_pair")):
        if not texts:
            raise ValidationError(f"At least one {name} element must be given")
    return first, second


def sides(
    tokenizer: Tokenizer, data_1: str | Sequence[str], data_2: str | Sequence[str], options: ScoreOptions
) -> list[list[str]]:
    """``to_score``, then ``shortened`` where ``options`` limit a side."""
    texts = list(to_score(data_1, data_2))
    if not any(options.limits):
        return texts
    with tokenizer.reading() as vocabulary:
        return shortened(vocabulary, texts, options)


def shortened(vocabulary: Vocabulary, sides: Sequence[Sequence[str]], options: ScoreOptions) -> list[list[str]]:
    """The beginnings of the texts on either side that have as many tokens as ``options`` allow."""
    return [
        [vocabulary.beginning(text, limit) for text in texts] if limit else list(texts)
        for texts, limit in zip(sides, options.limits, strict=True)
    ]


def matched(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """What of ``first`` goes with each of ``second``: the only one there, or its own."""
    return list(first) * (len(second) // len(first))


def pairs(
    first: Sequence[str], second: Sequence[str], *, joined: bool, variables: Mapping[str, Any] | None = None
) -> list[Any]:
    """A prompt for every text of ``second``: a pair, or ``joined`` to one text where a model reads but one.

    ``variables``, ``instruction`` among them, are for what a recipe puts around pairs.
    """
    if joined:
        return [one + two for one, two in zip(matched(first, second), second, strict=True)]
    more = {"variables": dict(variables)} if variables else {}
    return [{"prompt": one, "text_pair": two, **more} for one, two in zip(matched(first, second), second, strict=True)]


def rendered(tokenizer: chat.Templates, conversations: Sequence[Any], **options: Any) -> list[str]:
    """Several conversations as texts, one by one; the arguments are those of ``chat.render``."""
    return [chat.render(tokenizer, one, **options) for one in conversations]
