"""A checkpoint's tokenizer files, reduced to what encoding needs: the Rust tokenizer and a few values beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxpool.errors import CheckpointError, ValidationError
from jaxpool.text import deberta_tokenizers

MODEL_TYPES = {"llama_bidirec": "llama", "new": "gte"}
"""Model types that checkpoints with code of their own give to architectures of transformers."""

# A folder with none of these has no tokenizer.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "*.codes")


def tokenizer_files(folder: Path) -> list[Path]:
    """A checkpoint's files that its tokenizer is made of; code is none of them, whatever it is called."""
    patterns = (*TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json", "*.jinja")
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.suffix not in (".py", ".pyc"))


@dataclass(frozen=True)
class Vocabulary:
    """What a transformers tokenizer is, for our purposes. Names are transformers'.

    Attributes:
        backend: the Rust tokenizer, set to neither cut nor pad; None for a slow tokenizer.
        slow: the transformers tokenizer where there is no backend, or calling it is not calling the backend.
        truncation_side: which end is cut, "left" or "right".
        model_input_names: tells whether the model wants token types.
        model_max_length: the tokenizer's own limit in tokens, possibly astronomic.
        pad_token_id, unk_token, unk_token_id: special tokens; None where there are none.
        chat_template: Jinja, one or several by name; None where there is none.
        special_tokens_map: names such as ``bos_token`` -> the token's text, for chat templates.
    """

    backend: Any
    slow: Any
    truncation_side: str
    model_input_names: tuple[str, ...]
    model_max_length: int
    pad_token_id: int | None
    unk_token: str | None
    unk_token_id: int | None
    chat_template: str | dict[str, str] | None
    special_tokens_map: dict[str, str]

    @classmethod
    def of(cls, hf: Any) -> Vocabulary:
        """Takes a transformers tokenizer apart; it must not be used for anything else afterwards.

        Raises:
            CheckpointError: its limit is no number.
        """
        backend = _backend(hf)
        try:
            longest = int(hf.model_max_length)
        except (TypeError, ValueError, OverflowError):
            raise CheckpointError(
                f"tokenizer_config.json has the model_max_length {hf.model_max_length!r}; it must be a number."
            ) from None
        return cls(
            backend=backend,
            slow=hf if backend is None else None,
            truncation_side=hf.truncation_side,
            model_input_names=tuple(hf.model_input_names),
            model_max_length=longest,
            pad_token_id=hf.pad_token_id,
            unk_token=hf.unk_token,
            unk_token_id=hf.unk_token_id,
            chat_template=hf.chat_template,
            special_tokens_map=dict(hf.special_tokens_map),
        )

    def longest_piece(self) -> int:
        """Characters of the longest piece."""
        return max(map(len, (self.backend or self.slow).get_vocab()), default=1)

    def ids(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids of a text, however many, with or without the tokenizer's special tokens."""
        check_unicode(text)
        if self.backend is None:
            return list(self.slow.encode(text, add_special_tokens=special_tokens))
        # batches, of one text here, let other threads go on meanwhile
        [found] = self.backend.encode_batch_fast([text], add_special_tokens=special_tokens)
        return list(found.ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included; ids that are no tokens have none."""
        if self.backend is None:
            return str(self.slow.decode(list(ids), skip_special_tokens=False))
        [found] = self.backend.decode_batch([ids], skip_special_tokens=False)
        return str(found)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's name of each token id."""
        if self.backend is None:
            return list(self.slow.convert_ids_to_tokens(list(ids)))
        return [self.backend.id_to_token(token) for token in ids]

    def beginning(self, text: str, tokens: int) -> str:
        """As much of a text as is at most so many tokens, special ones not counted.

        Raises:
            ValidationError: the tokenizer does not say where its tokens are.
        """
        if self.backend is None:
            raise ValidationError("Texts can only be cut by tokens with a tokenizer that has a tokenizer.json.")
        check_unicode(text)
        while len(found := self.backend.encode_batch([text], add_special_tokens=False)[0]) > tokens:
            # the pieces of what is left may be others than before, so it is counted again
            end = min(found.offsets[tokens - 1][1], found.offsets[tokens][0]) if tokens else 0
            text = text[: min(end, len(text) - 1)]
        return text

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Id of a piece, that of the unknown token where there is no such piece."""
        if self.backend is None:
            return self.slow.convert_tokens_to_ids(token)
        found = self.backend.token_to_id(token)
        return self.unk_token_id if found is None else found


def check_unicode(text: str) -> None:
    """Raises ValidationError for a text that has no bytes: tokenizers would fail at it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"The prompt is not valid Unicode: character {error.start} is half of a surrogate pair "
            f"(U+{ord(text[error.start]):04X}); decode the text with errors='replace'."
        ) from error


def _backend(hf: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    stock = isinstance(hf, PreTrainedTokenizerFast) and all(
        getattr(type(hf), name) is getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus")
    )
    if not stock:
        return None
    backend = hf.backend_tokenizer
    # Settings inside tokenizer.json would be used otherwise; transformers sets them anew at every call.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = hf.split_special_tokens
    return backend


def read_tokenizer(folder: Path) -> Any:
    """The folder's transformers tokenizer; None where the folder has no tokenizer files.

    Raises:
        CheckpointError: the files are damaged or incomplete, or of a kind whose reader is not installed.
    """
    if not any(True for pattern in TOKENIZER_FILES for _ in folder.glob(pattern)):
        return None
    _check_readers(folder)
    from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **_known_config(folder))
        deberta_tokenizers.mend(hf, folder)
        # transformers builds an empty tokenizer out of a lone tokenizer_config.json.
        empty = len(hf) <= len(hf.added_tokens_decoder)
    except Exception as error:  # the Rust reader raises bare Exceptions
        raise CheckpointError(f"The tokenizer files in {folder} cannot be read: {error}") from error
    if empty:
        raise CheckpointError(f"The tokenizer in {folder} has an empty vocabulary; are its files complete?")
    return hf


def _known_config(folder: Path) -> dict[str, Any]:
    """What keeps transformers from reading a ``config.json`` whose model type it does not know."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    path = folder / "config.json"
    if not path.is_file():
        return {}
    model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    name = MODEL_TYPES.get(model_type, model_type)
    return {} if model_type in CONFIG_MAPPING or name not in CONFIG_MAPPING else {"config": CONFIG_MAPPING[name]()}


def _check_readers(folder: Path) -> None:
    """Raises where there is no ``tokenizer.json`` and what there is needs a package that is not installed.

    transformers then tries one reader after another and reports that the last is missing, or makes up a vocabulary.
    """
    if (folder / "tokenizer.json").is_file():
        return
    for path in sorted((*folder.glob("*.model"), *folder.glob("*.tiktoken"))):
        with path.open("rb") as file:
            # A sentencepiece model is a protobuf message that begins with field 1; tiktoken files are lines of base64.
            packages = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
            packages = packages if file.read(1) == b"\n" else {"tiktoken": "tiktoken"}
        missing = [package for package, module in packages.items() if not _installed(module)]
        if missing:
            raise CheckpointError(
                f"{path} can only be read with {' and '.join(packages)}, and the folder has no tokenizer.json instead; "
                f"run `pip install {' '.join(missing)}`."
            )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def lower_cases(folder: Path) -> bool:
    """Whether the folder's Sentence-Transformers settings ask for lower-cased texts."""
    for path in folder.glob("sentence_*_config.json"):
        try:
            return bool(json.loads(path.read_text(encoding="utf-8")).get("do_lower_case", False))
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a JSON object: {error}") from error
    return False
