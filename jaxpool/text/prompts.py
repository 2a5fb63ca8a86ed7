"""What a caller passes: the forms of a prompt (text, pair, token ids, dict) and ``tokenization_kwargs``."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpool.errors import ValidationError

NOT_A_PROMPT = "Prompt should be a string, list of tokens, or dictionary"
HARMLESS = (
    *("needs_detokenization", "return_tensors", "return_attention_mask", "return_token_type_ids", "verbose"),
    *("return_length", "return_special_tokens_mask", "return_offsets_mapping"),
)
"""Options of transformers' tokenizers that do not change what the model reads."""
KNOWN = (
    *("max_length", "padding", "truncation", "truncation_side", "add_special_tokens", "do_lower_case"),
    *("truncate_prompt_tokens", "pad_prompt_tokens"),
)
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


Prompts = str | Mapping[str, Any] | Iterable[Any]
"""What ``LLM`` takes: a prompt or several of them, in any container that has an order."""


def split(prompts: Any) -> Sequence[Any]:
    """One entry per prompt. A string, a dict and a list of integers are one prompt; nothing is an error.

    Several come as any iterable: a list, a generator, the keys of a dict, a numpy array (of two axes where it holds
    token ids), an Arrow array, a pandas Series; a DataFrame or Arrow table has them in the columns ``text`` and, for
    models of two texts, ``text_pair``.
    """
    if isinstance(prompts, str | bytes | Mapping):
        return [prompts]
    if isinstance(prompts, set | frozenset):
        raise TypeError("A set of prompts has no order to give the results in; pass a list, as sorted(...) makes.")
    if hasattr(prompts, "columns") and hasattr(prompts, "shape"):
        prompts = _rows(prompts)
    elif hasattr(prompts, "to_pylist"):  # Arrow's scalars are no Python values
        prompts = prompts.to_pylist()
    elif isinstance(prompts, np.ndarray) and prompts.ndim:
        prompts = prompts.tolist() if prompts.dtype.kind in "UOT" or prompts.ndim == 1 else list(prompts)
    elif not isinstance(prompts, list | tuple):
        try:
            prompts = list(prompts)
        except TypeError as error:
            raise TypeError(f"object of type {type(prompts).__name__!r} has no len()") from error  # vLLM's words
    if len(prompts) == 0:
        raise ValidationError("You must pass at least one prompt")
    if isinstance(prompts, list) and all(isinstance(item, int | np.integer) for item in prompts):
        return [prompts]
    return prompts


def _rows(frame: Any) -> list[Any]:
    """The rows of a pandas DataFrame or an Arrow table as prompts."""
    names = getattr(frame, "column_names", None) or list(frame.columns)
    if "text" not in names:
        raise ValidationError(
            f"The table has no column 'text'; its columns are {', '.join(map(str, names))}. Pass the one that holds "
            "the texts, as in llm.classify(table['body'])."
        )
    first, second = (list(split(frame[name])) if name in names else None for name in ("text", "text_pair"))
    if second is None:
        return first or []
    return [{"text": one, "text_pair": other} for one, other in zip(first or [], second)]


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
    if "prompt" in prompt or "text" in prompt:  # vLLM's word, and that of our server
        if "prompt" in prompt and "text" in prompt:
            raise ValidationError("The prompt has both 'prompt' and 'text'; give one of them.")
        text, pair = prompt.get("prompt", prompt.get("text")), prompt.get("text_pair")
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise TypeError("Prompt text should be a string")
        return TextPrompt(text, pair or None)  # transformers reads no pair where the second text is empty
    if "prompt_embeds" in prompt:
        raise ValidationError(
            "You must set `--enable-prompt-embeds` to input `prompt_embeds`.", parameter="prompt_embeds"
        )
    raise TypeError("Prompt dictionary must contain text, tokens, or embeddings")


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
        """Reads ``tokenization_kwargs``.

        Raises:
            ValidationError: a name that means nothing here, or a value that is not possible.
            TypeError: a count that is no whole number.
        """
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
        for name in HARMLESS:
            left.pop(name, None)
        padding = left.pop("padding", None)
        if padding == "max_length":
            pad = length
        elif padding not in (None, False, "do_not_pad", True, "longest"):  # prompts are padded by themselves
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
            raise ValidationError(
                f"tokenization_kwargs has {name}={value!r}, for which jaxpool has no use"
                + (f"; did you mean {near[0]!r}?" if (near := difflib.get_close_matches(name, KNOWN, n=1)) else ""),
                parameter=name,
            )
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
