"""Texts longer than the model reads: refused, cut, or read in windows whose results are put together again.

Every window has the special tokens of a whole text. Of a pair the longer side is cut into windows, and each of them
reads the shorter side whole. The last window is moved back, so that it is as long as the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from jaxpool.errors import ValidationError
from jaxpool.text.prompts import TextPrompt, TokensPrompt, parse
from jaxpool.text.tokenizer import Encoded, Tokenizer
from jaxpool.text.vocabulary import check_unicode

HOW = ("error", "truncate", "window")
AGGREGATES = ("mean", "max", "first")


class LongTextOptions(TypedDict, total=False):
    """What a caller may say of long texts; see `LongText`."""

    long_text: Literal["error", "truncate", "window"] | None
    window: int | None
    overlap: int | None
    aggregate: Literal["mean", "max", "first"] | None


@dataclass(frozen=True, slots=True)
class LongText:
    """What becomes of a text that is longer than the model reads.

    Attributes:
        long_text: "error" refuses it, "truncate" cuts it as the tokenizer does, "window" reads all of it.
        window: tokens of a window, special ones included; None is the longest that the model reads.
        overlap: tokens of a text that neighbouring windows share.
        aggregate: how scores of windows become one: "mean" (every token of the text weighs the same), "max" (of every
            label), "first" (window); None is max where several labels may hold and mean elsewhere.
    """

    long_text: str = "error"
    window: int | None = None
    overlap: int = 0
    aggregate: str | None = None

    @classmethod
    def of(
        cls, options: LongTextOptions | Mapping[str, Any], longest: int, unknown: str = "Unexpected"
    ) -> LongText | None:
        """What ``options`` say, checked, for a model that reads ``longest`` tokens; None where they say nothing.

        Raises:
            TypeError: an option has another name; the sentence begins with ``unknown``.
            ValidationError: a value is wrong, or belongs to "window" and that was not asked for.
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if names := sorted(options.keys() - LongTextOptions.__annotations__.keys()):
            raise TypeError(f"{unknown} keyword argument {names[0]!r}")
        if not given:
            return None
        found = cls(**given)
        for name, choices in (("long_text", HOW), ("aggregate", (*AGGREGATES, None))):
            value = getattr(found, name)
            if value not in choices:
                words = ", ".join(repr(choice) for choice in choices if choice)
                raise ValidationError(f"{name} must be one of {words}, not {value!r}.", parameter=name)
        if found.long_text != "window" and given.keys() - {"long_text"}:
            name = sorted(given.keys() - {"long_text"})[0]
            raise ValidationError(f"{name} has a meaning with long_text='window' only.", parameter=name)
        for name, least in (("window", 1), ("overlap", 0)):
            value = getattr(found, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValidationError(f"{name} must be a whole number from {least} up, not {value!r}.", parameter=name)
        if found.window is not None and found.window > longest:
            raise ValidationError(
                f"window={found.window} is more than the {longest} tokens that this model reads.", parameter="window"
            )
        return found

    def aggregate_for(self, several: bool) -> str:
        """The aggregate in use; ``several`` says whether several labels may hold at once."""
        return self.aggregate or ("max" if several else "mean")


@dataclass(frozen=True, slots=True)
class Windowed:
    """One prompt as the model reads it, in one or more windows.

    Attributes:
        ids: of the whole prompt, special tokens included, however many.
        windows: what is computed; one, which has all of ``ids``, where the prompt fits.
        starts: position in ``ids`` of the first token of each window that belongs to the cut side.
        cut: where the cut side begins and ends in ``ids``; the other positions are read by every window.
    """

    ids: list[int]
    windows: list[Encoded]
    starts: list[int] = field(default_factory=list)
    cut: tuple[int, int] = (0, 0)

    def owned(self) -> list[tuple[int, int]]:
        """Of each window the positions in ``ids`` that it alone answers for, cut in mid-overlap; they tile ``ids``."""
        if len(self.windows) == 1:
            return [(0, len(self.ids))]
        room = len(self.windows[0].ids) - (len(self.ids) - (self.cut[1] - self.cut[0]))
        edges = [(after + before + room) // 2 for before, after in zip(self.starts, self.starts[1:])]
        return list(zip([0, *edges], [*edges, len(self.ids)]))

    def weights(self) -> np.ndarray:
        """Share of each window in the tokens of the cut side, float64, 1 in all."""
        if len(self.windows) == 1:
            return np.ones(1)
        first, last = self.cut
        counts = np.array([min(stop, last) - max(start, first) for start, stop in self.owned()], np.float64)
        return counts / counts.sum()


def encode(
    tokenizer: Tokenizer,
    prompts: Sequence[Any],
    tokenization_kwargs: Mapping[str, Any] | None,
    long: LongText | None,
    *,
    first: int = 0,
    total: int | None = None,
) -> list[Windowed]:
    """`Tokenizer.encode`, with long prompts as ``long`` says; ``first`` and ``total`` as there.

    Raises:
        TypeError, ValidationError: as there; also where a pair's shorter side leaves a window no room, and for
            token ids that would have to be cut into windows (nobody knows which of them are special).
    """
    if long is None or long.long_text == "error":
        return [_whole(one) for one in tokenizer.encode(prompts, tokenization_kwargs, first=first, total=total)]
    kwargs = dict(tokenization_kwargs or {})
    if kwargs.get("truncate_prompt_tokens") is not None or kwargs.get("truncation"):
        raise ValidationError(f"long_text={long.long_text!r} and a truncation of its own contradict each other.")
    if long.long_text == "truncate":
        cut = kwargs | {"truncate_prompt_tokens": -1}
        return [_whole(one) for one in tokenizer.encode(prompts, cut, first=first, total=total)]
    size = long.window or tokenizer.max_length
    parsed = [parse(prompt) for prompt in prompts]
    texts = [prompt for prompt in parsed if isinstance(prompt, TextPrompt)]
    special = bool(kwargs.get("add_special_tokens", True))
    layouts = iter(_layouts(tokenizer, texts, special, bool(kwargs.get("do_lower_case", tokenizer.lower))))
    drafts = [
        _cut(next(layouts), size, long.overlap) if isinstance(prompt, TextPrompt) else _uncut(prompt, size)
        for prompt in parsed
    ]
    encoded = iter(tokenizer.encode([window for draft in drafts for window in draft.windows]))
    return [replace(draft, windows=[next(encoded) for _ in draft.windows]) for draft in drafts]


def _whole(one: Encoded) -> Windowed:
    return Windowed(one.ids, [one])


def _uncut(prompt: TokensPrompt, size: int) -> Windowed:
    if len(prompt.ids) > size:
        raise ValidationError(
            f"Token ids cannot be read in windows ({len(prompt.ids)} of them, a window has {size}): nobody knows "
            "which of them are special. Send the text, or cut them yourself."
        )
    return Windowed(prompt.ids, [_tokens(prompt.ids, prompt.types)])


def _tokens(ids: list[int], types: list[int] | None) -> Any:
    """A prompt for `Tokenizer.encode`, which checks it."""
    return {"prompt_token_ids": ids} | ({"token_type_ids": types} if types and any(types) else {})


class _Layout(NamedTuple):
    """Ids and types (or None) of a text of any length, and which of its two sides each token is; -1: special."""

    ids: np.ndarray
    types: np.ndarray | None
    sides: np.ndarray


def _cut(layout: _Layout, size: int, overlap: int) -> Windowed:
    """The prompts of the windows of one text."""
    ids, types, sides = layout
    if len(ids) <= size:
        return Windowed(ids.tolist(), [_tokens(ids.tolist(), None if types is None else types.tolist())])
    longer = 1 if (sides == 1).sum() > (sides == 0).sum() else 0
    first, last = (int(edge) for edge in np.flatnonzero(sides == longer)[[0, -1]])
    last += 1
    room = size - (len(ids) - (last - first))
    if room <= overlap:
        raise ValidationError(
            f"A window of {size} tokens has room for {max(room, 0)} tokens of this text beside what every window "
            f"repeats, and neighbours are to share {overlap}; ask for longer windows or less overlap.",
            parameter="window",
        )
    starts = [*range(first, last - room, room - overlap), last - room]
    windows = []
    for start in starts:
        kept = np.r_[0:first, start : start + room, last : len(ids)]
        windows.append(_tokens(ids[kept].tolist(), None if types is None else types[kept].tolist()))
    return Windowed(ids.tolist(), windows, starts, (first, last))


def _layouts(tokenizer: Tokenizer, texts: Sequence[TextPrompt], special: bool, lower: bool) -> Iterator[_Layout]:
    inputs = []
    for text in texts:
        for part in (text.text, text.pair):
            check_unicode(part or "")
        second = text.pair.lower() if text.pair and lower else text.pair
        inputs.append((text.text.lower() if lower else text.text, second))
    if not inputs:
        return
    with tokenizer.reading() as vocabulary:
        typed = "token_type_ids" in vocabulary.model_input_names
        if vocabulary.backend is None:
            for first, second in inputs:
                yield _slowly(vocabulary.slow, first, second, special, typed)
            return
        asked = [first if second is None else (first, second) for first, second in inputs]
        for found in vocabulary.backend.encode_batch_fast(asked, add_special_tokens=special):
            sides = np.array([-1 if one is None else one for one in found.sequence_ids])
            yield _Layout(np.array(found.ids, np.int64), np.array(found.type_ids) if typed else None, sides)


def _slowly(slow: Any, first: str, second: str | None, special: bool, typed: bool) -> _Layout:
    found = slow(first, second, add_special_tokens=special, return_token_type_ids=typed, verbose=False)
    ids, at = list(found["input_ids"]), 0
    sides = np.full(len(ids), -1)
    for which, part in enumerate((first, second)):
        if part:
            own = list(slow(part, add_special_tokens=False, verbose=False)["input_ids"])
            at = _find(ids, own, at)
            sides[at : at + len(own)] = which
            at += len(own)
    return _Layout(np.array(ids, np.int64), np.array(found["token_type_ids"]) if typed else None, sides)


def _find(ids: list[int], own: list[int], after: int) -> int:
    """Where ``own`` stands in ``ids``, at ``after`` or a few special tokens later."""
    for at in range(after, len(ids) - len(own) + 1):
        if ids[at : at + len(own)] == own:
            return at
    raise ValidationError("This tokenizer joins texts and special tokens in a way that cannot be cut into windows.")
