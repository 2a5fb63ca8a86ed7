"""What a caller passes: the forms of a prompt (text, pair, token ids, dict) and ``tokenization_kwargs``."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpool.errors import ValidationError

logger = logging.getLogger(__name__)

NOT_A_PROMPT = "Prompt should be a string, list of tokens, or dictionary"
NOT_INTEGERS = "Token prompt should be a list of integers"


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text, or two texts read together (a premise and a hypothesis, say)."""

    text: str
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    """Token ids as the model reads them; ``types`` are token type ids of the same length."""

    ids: list[int]
    types: list[int] | None = None


Prompt = TextPrompt | TokensPrompt


def split(prompts: Any) -> Sequence[Any]:
    """One entry per prompt. A string, a dict and a list of integers are one prompt; nothing is an error."""
    if isinstance(prompts, str | bytes | Mapping):
        return [prompts]
    if len(prompts) == 0:
        raise ValidationError("You must pass at least one prompt")
    if isinstance(prompts, list) and all(isinstance(item, int | np.integer) for item in prompts):
        return [prompts]
    return prompts


def parse(prompt: Any) -> Prompt:
    """Tells one prompt's form.

    Raises:
        TypeError: no form that we know.
        ValidationError: a form that jaxpool does not read (embeddings, images, audio).
    """
    if isinstance(prompt, str):
        return TextPrompt(prompt)
    if isinstance(prompt, list | tuple | np.ndarray):
        return TokensPrompt(integers(prompt))
    if isinstance(prompt, Mapping):
        return _parse_mapping(prompt)
    raise TypeError(NOT_A_PROMPT)


def _parse_mapping(prompt: Mapping[str, Any]) -> Prompt:
    if prompt.get("multi_modal_data"):
        raise ValidationError("jaxpool reads text only, but the prompt has multi_modal_data.")
    if "prompt_token_ids" in prompt:
        ids, types = integers(prompt["prompt_token_ids"]), prompt.get("token_type_ids")
        if types is None:
            return TokensPrompt(ids)
        types = integers(types)
        if len(types) != len(ids):
            raise ValidationError(
                f"The prompt has {len(ids)} prompt_token_ids but {len(types)} token_type_ids; give one each."
            )
        return TokensPrompt(ids, types)
    if "prompt" in prompt:
        text, pair = prompt["prompt"], prompt.get("text_pair")
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise TypeError("Prompt text should be a string")
        return TextPrompt(text, pair or None)  # transformers reads no pair where the second text is empty
    if "prompt_embeds" in prompt:
        raise ValidationError(
            "You must set `--enable-prompt-embeds` to input `prompt_embeds`.", parameter="prompt_embeds"
        )
    raise TypeError("Prompt dictionary must contain text, tokens, or embeddings")


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


def pairs(first: Sequence[str], second: Sequence[str], *, joined: bool) -> list[Any]:
    """A prompt for every text of ``second``: a pair, or ``joined`` to one text where a model reads but one."""
    first = list(first) * (len(second) // len(first))
    if joined:
        return [one + two for one, two in zip(first, second)]
    return [{"prompt": one, "text_pair": two} for one, two in zip(first, second)]


def integers(values: Any) -> list[int]:
    """``values`` as plain ints; whole floats count. TypeError for anything else, booleans included."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:  # ragged
        raise TypeError(NOT_INTEGERS) from error
    if array.ndim != 1 or isinstance(values, str | bytes):
        raise TypeError(NOT_INTEGERS)
    if array.dtype.kind in "iu":
        return array.tolist()
    if array.size == 0:
        return []
    if array.dtype.kind == "f" and bool((array == np.trunc(array)).all()):
        return [int(value) for value in values]
    if array.dtype.kind == "O" and all(type(value) is int for value in values):
        return list(values)  # beyond 64 bits: out of vocabulary, and reported as such
    raise TypeError(NOT_INTEGERS)


@dataclass(frozen=True, slots=True)
class Options:
    """One call's ``tokenization_kwargs``, understood.

    Attributes:
        truncate: keep at most so many tokens; None refuses prompts that are too long.
        side: which end is cut, "left" or "right"; None is the tokenizer's own.
        strategy: which text of a pair is cut: "longest_first", "only_first" or "only_second".
        pad: append padding up to so many tokens; they are ordinary tokens to the model.
        add_special_tokens: whether texts get the tokenizer's special tokens.
        lower: lower-case texts first.
    """

    truncate: int | None = None
    side: str | None = None
    pad: int | None = None
    add_special_tokens: bool = True
    lower: bool = False
    strategy: str = "longest_first"

    @classmethod
    def parse(cls, kwargs: Mapping[str, Any] | None, max_length: int, lower: bool = False) -> Options:
        """Reads ``tokenization_kwargs``; names that mean nothing here are logged once and ignored."""
        if not kwargs:
            return cls(lower=lower)
        left = dict(kwargs)
        length = left.pop("max_length", None)
        length = max_length if length is None else length
        pad = left.pop("pad_prompt_tokens", None)
        truncate = left.pop("truncate_prompt_tokens", None)
        side = left.pop("truncation_side", None)
        lower = bool(left.pop("do_lower_case", lower))
        special = bool(left.pop("add_special_tokens", True))
        left.pop("needs_detokenization", None)
        padding = left.pop("padding", None)
        if padding == "max_length":
            pad = length
        elif padding not in (None, False, "do_not_pad"):
            left["padding"] = padding
        truncation, strategy = left.pop("truncation", None), "longest_first"
        if truncation in (True, "longest_first", "only_first", "only_second"):
            truncate = length
            strategy = strategy if truncation is True else truncation
        elif truncation in (False, "do_not_truncate"):
            truncate = None
        elif truncation is not None:
            left["truncation"] = truncation
        for name, value in left.items():
            _warn_once(name, repr(value))
        if side not in (None, "left", "right"):
            raise ValidationError(
                "`truncation_side` must be either 'left' or 'right'.", parameter="truncation_side", value=side
            )
        truncate = _limit("truncate_prompt_tokens", truncate, max_length)
        pad = _limit("pad_prompt_tokens", pad, max_length)
        return cls(truncate, side, pad, special, lower, strategy)


def _limit(name: str, value: Any, max_length: int) -> int | None:
    """A token count: negative means ``max_length``, more is an error, anything but an int a TypeError."""
    if value is None:
        return None
    if value > max_length:
        raise ValidationError(
            f"{name}={value} cannot be greater than max_total_tokens = {max_length}. "
            f"Please request a smaller {'truncation' if name.startswith('trunc') else 'padding'} size.",
            parameter=name,
            value=value,
        )
    return max_length if value < 0 else operator.index(value)


@functools.cache
def _warn_once(name: str, value: str) -> None:
    logger.warning("Ignoring the tokenization option %s=%s: jaxpool has no use for it.", name, value)
