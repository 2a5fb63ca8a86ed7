"""What transformers makes of a checkpoint's small files, remembered between processes.

Importing transformers takes two seconds (four where torch is installed too), which is half of a warm start. All that
we need of it is the config's values with its class's defaults, and the Rust tokenizer. Both are JSON; they are kept
in the cache directory under a hash of everything they depend on, and read back without transformers.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import field, fields, make_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxpool import __version__
from jaxpool.cache import private_folder
from jaxpool.checkpoint import Overrides, label_map, read_config
from jaxpool.vocabulary import TOKENIZER_FILES, Vocabulary, read_tokenizer

FORMAT = 3
"""Raise it when the content of the files changes."""

DEPRECATED = {"torch_dtype", "use_return_dict"}
"""Aliases that transformers logs a warning about when they are read."""


def read(folder: Path, words: Path | None, hf_overrides: Overrides = None) -> tuple[Any, Vocabulary | None]:
    """The config of ``folder`` and the vocabulary of ``words``.

    Args:
        folder: checkpoint folder.
        words: folder of the tokenizer files; None for no vocabulary.
        hf_overrides: as in ``read_config``.

    Returns:
        The config, with the values and field defaults of transformers' own (and its class's name), and the vocabulary,
        None where ``words`` has no tokenizer files.

    Raises:
        CheckpointError, ConfigError: as ``read_config`` and ``read_tokenizer`` do; failures are not remembered.
    """
    path = _path(folder, words, hf_overrides)
    if path is not None and path.is_file():
        try:
            config, vocabulary = _load(json.loads(path.read_text(encoding="utf-8")))
            config.name_or_path = str(folder)  # another copy may have been read then
            return config, vocabulary
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)  # damaged: made anew below
    config = read_config(folder, hf_overrides)
    hf = None if words is None else read_tokenizer(words)
    vocabulary = None if hf is None else Vocabulary.of(hf)
    if path is not None:
        _save(path, config, vocabulary)
    return config, vocabulary


def _path(folder: Path, words: Path | None, hf_overrides: Overrides) -> Path | None:
    """Where the answer is kept; None where it cannot be: overrides that are code, or no directory of our own."""
    if not isinstance(hf_overrides, Mapping | None):
        return None
    try:
        overrides = json.dumps(hf_overrides and dict(hf_overrides), sort_keys=True)
    except TypeError:
        return None
    key = hashlib.sha256(
        repr((FORMAT, __version__, version("transformers"), version("tokenizers"), overrides)).encode()
    )
    patterns = ("*.json", *TOKENIZER_FILES)
    files = {folder / "config.json", *(file for pattern in patterns for file in (words or folder).glob(pattern))}
    for file in sorted(files):
        if file.is_file() and not file.name.endswith(".safetensors.index.json"):
            content = file.read_bytes()
            key.update(f"{file.name} {len(content)} {words is None}".encode())
            key.update(content)
    cache = private_folder("checkpoints")
    return cache and cache / f"{key.hexdigest()}.json"


def _save(path: Path, config: Any, vocabulary: Vocabulary | None) -> None:
    """Writes what ``_load`` reads, all of it or nothing; a full disk or an odd value only costs the speed."""
    if vocabulary is not None and vocabulary.backend is None:
        return
    data: dict[str, Any] = {"class": type(config).__name__, "vocabulary": None}
    if vocabulary is not None:
        rest = {name.name: getattr(vocabulary, name.name) for name in fields(vocabulary)}
        data["vocabulary"] = {**rest, "backend": vocabulary.backend.to_str(), "slow": None}
        data["special"] = vocabulary.backend.encode_special_tokens
    try:
        data["defaults"] = _values(type(config)(), {name.name for name in fields(config)})
        public = {name for name in dir(config) if name[0] != "_"}
        data["values"] = _values(config, (public | data["defaults"].keys()) - DEPRECATED)
        text = json.dumps(data)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        Path(file.name).replace(path)
    except (OSError, TypeError, ValueError):
        return


def _values(config: Any, names: set[str]) -> dict[str, Any]:
    """Values of attributes (properties and aliases too); TypeError where a field has no JSON form."""
    values = {}
    for name in sorted(name for name in names if hasattr(config, name)):
        value = getattr(config, name)
        if type(value).__name__ == "dtype":
            value = str(value)
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            if name in vars(config):
                raise
            continue  # a method
        values[name] = value
    return values


def _load(data: dict[str, Any]) -> tuple[Any, Vocabulary | None]:
    defaults, values = data["defaults"], data["values"]
    kind = make_dataclass(
        data["class"],
        [(name, Any, field(default_factory=partial(deepcopy, value))) for name, value in defaults.items()],
    )
    config = kind()
    for name, value in values.items():
        setattr(config, name, value)
    config.id2label = label_map(config.id2label)
    if data["vocabulary"] is None:
        return config, None
    from tokenizers import Tokenizer

    parts = data["vocabulary"]
    backend = Tokenizer.from_str(parts["backend"])
    backend.encode_special_tokens = data["special"]
    return config, Vocabulary(**{**parts, "backend": backend, "model_input_names": tuple(parts["model_input_names"])})
