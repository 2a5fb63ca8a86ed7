"""Prompts to token ids: exactly what the checkpoint's own tokenizer gives, checked against the limits.

The hot path calls the Rust backend of a fast tokenizer directly, never changes its state, and is therefore
safe and parallel under threads. Truncation is done on whole encodings, before special tokens are added, so
that they are never cut off. Slow (pure Python) tokenizers go through transformers under a lock.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxpool.errors import ValidationError
from jaxpool.text import chat
from jaxpool.text.frames import Frame
from jaxpool.text.prompts import Options, Prompt, TextPrompt, TokensPrompt, parse
from jaxpool.text.vocabulary import Vocabulary, check_unicode

SHORTER = "Please reduce the length of the input prompt."

_TOO_SHORT = "truncation={!r} would cut a text of the pair to nothing (or there is no such text); use 'longest_first'."


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the model reads of one prompt.

    Attributes:
        ids: at least one and at most ``max_length`` token ids, all within the vocabulary.
        types: token type ids, or None where all are 0.
    """

    ids: list[int]
    types: list[int] | None = None


def _truncated(
    backend: Any, texts: Sequence[TextPrompt], size: int, side: str, special: bool, strategy: str
) -> Iterator[Any]:
    """Encodings of at most ``size`` tokens, special ones included, which are added after the cut."""
    parts = iter(
        backend.encode_batch_fast(
            [part for text in texts for part in (text.text, text.pair) if part is not None],
            add_special_tokens=False,
        )
    )
    for text in texts:
        first, second = next(parts), None if text.pair is None else next(parts)
        added = backend.num_special_tokens_to_add(second is not None) if special else 0
        lengths = len(first), 0 if second is None else len(second)
        kept = _share(max(size - added, 0), *lengths) if strategy == "longest_first" else None
        if kept is None:
            kept = _of_one(max(size - added, 0), *lengths, strategy)
        for part, length in zip((first, second), kept):
            if part is not None and len(part) > length:
                part.truncate(length, direction=side)
        yield backend.post_process(first, second, special)


def _share(room: int, first: int, second: int) -> tuple[int, int]:
    """How many tokens of two texts fit into ``room``, the longer one cut first (HF's ``longest_first``)."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (long, short) if first > second else (short, long)


def _of_one(room: int, first: int, second: int, strategy: str) -> tuple[int, int]:
    """As ``_share``, but all that is too much comes off one text, of which at least one token must stay."""
    excess = first + second - room
    if excess <= 0:
        return first, second
    kept = (first - excess, second) if strategy == "only_first" else (first, second - excess)
    if min(kept) < 1 and not (strategy == "only_first" and second == 0 and kept[0] >= 1):
        raise ValidationError(_TOO_SHORT.format(strategy), parameter="truncation", value=strategy)
    return kept


class Tokenizer:
    """A checkpoint's tokenizer with the model's limits.

    Args:
        vocabulary: a checkpoint's, or a transformers tokenizer, which belongs to this object from now on; None
            reads token ids only.
        max_length: most tokens of a prompt.
        vocab_size: rows of the model's embedding.
        token_types: segment types that the model reads; 0 for a model that reads none: they are left out then.
        lower: lower-case texts first (a Sentence-Transformers setting).
        prefix: what every text begins with (a Sentence-Transformers setting, too), unless it comes as a ``TextPrompt``.
        prefixes: what texts may begin with instead, by the names that the checkpoint has for it.
        absent: why there is no vocabulary, as a sentence for the caller who sends text.
        frame: what stands around every text; None for nothing.
    """

    def __init__(
        self,
        vocabulary: Any,
        *,
        max_length: int,
        vocab_size: int,
        token_types: int = 2,
        lower: bool = False,
        prefix: str = "",
        prefixes: Mapping[str, str] | None = None,
        absent: str = "",
        frame: Frame | None = None,
    ) -> None:
        if not isinstance(vocabulary, Vocabulary | None):
            vocabulary = Vocabulary.of(vocabulary)
        self.vocabulary: Vocabulary | None = vocabulary
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.token_types = token_types
        self.lower = lower
        self.prefix, self.prefixes = prefix, dict(prefixes or {})
        self.absent = absent
        self.frame = frame
        self._lock = threading.Lock()  # slow tokenizers are not thread-safe
        self._has_types = vocabulary is not None and "token_type_ids" in vocabulary.model_input_names

    @contextlib.contextmanager
    def reading(self) -> Iterator[Vocabulary]:
        """The vocabulary, to be used inside the context only: there is one caller at a time where one is the limit.

        Raises:
            ValidationError: there is none.
        """
        if self.vocabulary is None:
            raise ValidationError(self.absent)
        with self._lock if self.vocabulary.backend is None else contextlib.nullcontext():
            yield self.vocabulary

    def encode(
        self,
        prompts: Sequence[Any],
        tokenization_kwargs: Mapping[str, Any] | None = None,
        *,
        first: int = 0,
        total: int | None = None,
    ) -> list[Encoded]:
        """Token ids of every prompt, in order. Thread-safe.

        Args:
            prompts: strings, lists of token ids, dicts (``prompt`` with optional ``text_pair``, or
                ``prompt_token_ids`` with optional ``token_type_ids``, or ``messages``, a conversation, with optional
                ``add_generation_prompt`` and ``variables`` of the chat template).
            tokenization_kwargs: see ``Options``.
            first, total: where ``prompts`` begin, and how many there are, where they are part of more.

        Raises:
            TypeError: a prompt has no form that we know.
            ValidationError: a prompt is empty, too long or out of vocabulary, or an option is wrong.

        An error about one prompt of several carries a note (``__notes__``) with its index.
        """
        options = Options.parse(tokenization_kwargs, self.max_length, self.lower)
        if self.frame is not None:
            if options.truncate is not None:
                raise ValidationError(
                    "Truncation would cut what stands around the text, without which this model cannot judge it; "
                    "shorten the text itself.",
                    parameter="truncate_prompt_tokens",
                )
            options = replace(options, add_special_tokens=self.frame.special_tokens)
        place = first, len(prompts) if total is None else total
        parsed = self._each(self._parse_and_weigh, [(prompt, options) for prompt in prompts], *place)
        texts = [prompt for prompt in parsed if isinstance(prompt, TextPrompt)]
        encoded = iter(self._encode_texts(texts, options))
        drafts = [
            (next(encoded), True, options)
            if isinstance(prompt, TextPrompt)
            else (self._cut_ids(prompt, options), False, options)
            for prompt in parsed
        ]
        return self._each(self._finish, drafts, *place)

    @staticmethod
    def _each(function: Any, calls: Sequence[tuple[Any, ...]], first: int, total: int) -> list[Any]:
        """``function`` of every argument tuple; an error gets a note that says which prompt it was."""
        results = []
        for index, arguments in enumerate(calls):
            try:
                results.append(function(*arguments))
            except (TypeError, ValueError) as error:
                if total > 1:
                    error.add_note(f"in prompt {first + index} of {total}, counted from 0")
                raise
        return results

    def _parse_and_weigh(self, prompt: Any, options: Options) -> Prompt:
        """Parses, and refuses what must be too long before any time is spent on it."""
        if self.frame is not None:
            if self.vocabulary is None:
                raise ValidationError(self.absent)
            prompt = self.frame.around(self.vocabulary, prompt)
        elif isinstance(prompt, Mapping) and "messages" in prompt:
            prompt = self._of_conversation(prompt)
        parsed = prompt if isinstance(prompt, TextPrompt) else parse(prompt)
        if isinstance(parsed, TokensPrompt):
            return parsed
        if self.vocabulary is None:
            raise ValidationError(self.absent)
        if parsed is not prompt:
            parsed = TextPrompt(self.prefix + parsed.text, parsed.pair)
        texts = [parsed.text] if parsed.pair is None else [parsed.text, parsed.pair]
        for text in texts:
            check_unicode(text)
        length = sum(map(len, texts))
        if options.truncate is None and length > self.max_length:
            most = self.max_length * self._longest_piece
            if length > most:
                raise ValidationError(
                    f"This model's maximum context length is {self.max_length} tokens. However, your prompt "
                    f"contains {length} characters (more than {most} characters, which is the upper bound "
                    f"for {self.max_length} input tokens). {SHORTER}",
                    parameter="input_text",
                    value=length,
                )
        if options.lower:
            return TextPrompt(parsed.text.lower(), parsed.pair and parsed.pair.lower())
        return parsed

    def _of_conversation(self, prompt: Mapping[str, Any]) -> list[int]:
        """What the checkpoint's own chat template makes of messages; it writes the special tokens itself."""
        with self.reading() as vocabulary:
            text = chat.render(
                vocabulary,
                prompt["messages"],
                add_generation_prompt=bool(prompt.get("add_generation_prompt")),
                variables=prompt.get("variables"),
            )
            return vocabulary.ids(text, special_tokens=False)

    @functools.cached_property
    def _longest_piece(self) -> int:
        return self.vocabulary.longest_piece() if self.vocabulary else 1

    def _encode_texts(self, texts: list[TextPrompt], options: Options) -> list[Encoded]:
        if not texts or self.vocabulary is None:
            return []
        backend = self.vocabulary.backend
        if backend is None:
            with self._lock:
                return [self._encode_slowly(self.vocabulary.slow, text, options) for text in texts]
        if options.truncate is None:
            inputs = [text.text if text.pair is None else (text.text, text.pair) for text in texts]
            encodings = backend.encode_batch_fast(inputs, add_special_tokens=options.add_special_tokens)
        else:
            side = options.side or self.vocabulary.truncation_side
            special, strategy = options.add_special_tokens, options.strategy
            encodings = _truncated(backend, texts, options.truncate, side, special, strategy)
        return [self._from_encoding(encoding) for encoding in encodings]

    def _from_encoding(self, encoding: Any) -> Encoded:
        types = encoding.type_ids if self._has_types else None
        return Encoded(encoding.ids, types if types and any(types) else None)

    def _encode_slowly(self, hf: Any, text: TextPrompt, options: Options) -> Encoded:
        side, hf.truncation_side = hf.truncation_side, options.side or hf.truncation_side
        try:
            encoding = hf(
                text.text,
                text.pair,
                add_special_tokens=options.add_special_tokens,
                truncation=False if options.truncate is None else options.strategy,
                max_length=options.truncate,
                return_token_type_ids=self._has_types,
                verbose=False,
            )
        except Exception as error:  # Rust tokenizers behind a class of their own raise bare ones
            if "Truncation error" not in str(error):
                raise
            raise ValidationError(_TOO_SHORT.format(options.strategy), parameter="truncation") from error
        finally:
            hf.truncation_side = side
        if options.strategy != "longest_first" and len(encoding["input_ids"]) > (options.truncate or 0):
            raise ValidationError(_TOO_SHORT.format(options.strategy), parameter="truncation", value=options.strategy)
        types = encoding.get("token_type_ids")
        return Encoded(list(encoding["input_ids"]), types if types and any(types) else None)

    def _cut_ids(self, prompt: TokensPrompt, options: Options) -> Encoded:
        """Token ids are cut as they are: nobody knows which of them are special."""
        size = options.truncate
        if size is None or len(prompt.ids) <= size:
            return Encoded(prompt.ids, prompt.types)
        side = options.side or getattr(self.vocabulary, "truncation_side", "right")
        kept = slice(size) if side == "right" else slice(len(prompt.ids) - size, None)
        return Encoded(prompt.ids[kept], prompt.types and prompt.types[kept])

    def _finish(self, draft: Encoded, is_text: bool, options: Options) -> Encoded:
        """Pads, then checks: not empty, not too long, within the vocabulary."""
        ids, types = draft.ids[: options.truncate], draft.types and draft.types[: options.truncate]
        if options.pad is not None and len(ids) < options.pad:
            missing = options.pad - len(ids)
            ids, types = ids + [self._pad_id] * missing, types and types + [0] * missing
        if not ids:
            raise ValidationError("The decoder prompt cannot be empty")
        if len(ids) > self.max_length:
            # vLLM stops tokenising texts one past the limit, and calls a count of just that "at least".
            count = self.max_length + 1 if is_text else len(ids)
            least = "at least " if count == self.max_length + 1 else ""
            raise ValidationError(
                f"This model's maximum context length is {self.max_length} tokens. However, your prompt "
                f"contains {least}{count} input tokens, which exceeds this limit even without any output "
                f"tokens. {SHORTER}",
                parameter="input_tokens",
                value=count,
            )
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            stray = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise ValidationError(f"Token id {stray} is out of vocabulary")
        return Encoded(ids, self._checked(types) if types and self.token_types else None)

    def _checked(self, types: list[int]) -> list[int]:
        """Token type ids that the model has embeddings of."""
        stray = next((one for one in types if not 0 <= one < self.token_types), None)
        if stray is None:
            return types
        known = "only type 0" if self.token_types == 1 else f"the types 0 to {self.token_types - 1}"
        raise ValidationError(
            f"Token type id {stray} is unknown to this model, which has {known} (type_vocab_size in config.json)"
            + (": it reads one text, not pairs." if self.token_types == 1 else "."),
            parameter="token_type_ids",
            value=stray,
        )

    @property
    def _pad_id(self) -> int:
        pad = getattr(self.vocabulary, "pad_token_id", None)
        if pad is None:
            raise ValidationError("Padding was asked for, but the checkpoint's tokenizer has no padding token.")
        return int(pad)
