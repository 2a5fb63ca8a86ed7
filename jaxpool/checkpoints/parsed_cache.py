"""What transformers makes of a checkpoint's small files, cached between processes.

Importing transformers takes two seconds (four where torch is installed too), which is half of a warm start. All that
we need of it is the config's values with its class's defaults, and the Rust tokenizer. Both are JSON; they are kept
in the cache directory under a hash of everything they depend on, and read back without transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import field, fields, make_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxpool.checkpoints.location import Overrides, label_map, read_config
from jaxpool.checkpoints.user_cache import Folder, private_folder
from jaxpool.text.vocabulary import TOKENIZER_FILES, Vocabulary, read_tokenizer
from jaxpool.version import __version__

FORMAT = 4
"""Raise it when the content of the files changes, or what is refused."""

DEPRECATED = {"torch_dtype", "use_return_dict"}
"""Aliases that transformers logs a warning about when they are read."""


def read(folder: Path, tokenizer_folder: Path | None, hf_overrides: Overrides = None) -> tuple[Any, Vocabulary | None]:
    """The config of ``folder`` and the vocabulary of ``tokenizer_folder``.

    Args:
        folder: checkpoint folder.
        tokenizer_folder: folder of the tokenizer files; None for no vocabulary.
        hf_overrides: as in ``read_config``.

    Returns:
        The config, with the values and field defaults of transformers' own (and its class's name), and the vocabulary,
        None where ``tokenizer_folder`` has no tokenizer files.

    Raises:
        CheckpointError, ConfigError: as ``read_config`` and ``read_tokenizer`` do; failures are not cached.
    """
    entry = _entry(folder, tokenizer_folder, hf_overrides)
    if entry is not None and (found := entry[0].read(entry[1])) is not None:
        config, vocabulary = _load(json.loads(found))
        config.name_or_path = str(folder)  # another copy may have been read then
        return config, vocabulary
    config = read_config(folder, hf_overrides)
    hf = None if tokenizer_folder is None else read_tokenizer(tokenizer_folder)
    vocabulary = None if hf is None else Vocabulary.of(hf)
    if entry is not None:
        _save(*entry, config, vocabulary)
    return config, vocabulary


def _entry(folder: Path, tokenizer_folder: Path | None, hf_overrides: Overrides) -> tuple[Folder, str] | None:
    """Where the answer is kept, and its name there; None for overrides that are code, and without a directory."""
    if not isinstance(hf_overrides, Mapping | None):
        return None
    try:
        overrides = json.dumps(hf_overrides and dict(hf_overrides), sort_keys=True)
    except TypeError:
        return None
    key = hashlib.sha256(
        repr((FORMAT, __version__, version("transformers"), version("tokenizers"), overrides)).encode()
    )
    patterns = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", *TOKENIZER_FILES)
    files = {
        folder / "config.json",
        *(file for pattern in patterns for file in (tokenizer_folder or folder).glob(pattern)),
    }
    for file in sorted(files):
        if file.is_file() and not file.name.endswith(".safetensors.index.json"):
            content = file.read_bytes()
            key.update(f"{file.name} {len(content)} {tokenizer_folder is None}".encode())
            key.update(content)
    cache = private_folder("checkpoints")
    return None if cache is None else (cache, f"{key.hexdigest()}.json")


def _save(cache: Folder, name: str, config: Any, vocabulary: Vocabulary | None) -> None:
    """Writes what ``_load`` reads; an odd value only costs the speed."""
    if vocabulary is not None and vocabulary.backend is None:
        return
    data: dict[str, Any] = {"class": type(config).__name__, "vocabulary": None}
    if vocabulary is not None:
        rest = {field.name: getattr(vocabulary, field.name) for field in fields(vocabulary)}
        data["vocabulary"] = {**rest, "backend": vocabulary.backend.to_str(), "slow": None}
        data["special"] = vocabulary.backend.encode_special_tokens
    try:
        data["defaults"] = _values(type(config)(), {name.name for name in fields(config)})
        public = {name for name in dir(config) if name[0] != "_"}
        data["values"] = _values(config, (public | data["defaults"].keys()) - DEPRECATED)
        content = json.dumps(data).encode()
    except (TypeError, ValueError):
        return
    cache.write(name, content)


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
