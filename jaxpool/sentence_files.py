"""How Sentence-Transformers says that a checkpoint embeds: ``modules.json`` and the Pooling module's settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpool.errors import CheckpointError, ConfigError
from jaxpool.pooling import Pooling

_MODES: dict[str, Pooling] = {
    "cls": "CLS", "cls_token": "CLS", "mean": "MEAN", "mean_tokens": "MEAN", "lasttoken": "LAST",
}  # fmt: skip
"""``pooling_mode`` (or the flag ``pooling_mode_…``) -> our pooling."""
_KNOWN = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class SentenceEmbedder:
    """A folder's own way from hidden states to an embedding.

    Attributes:
        pooling: which vector, or the mean.
        normalize: whether embeddings are scaled to length one.
    """

    pooling: Pooling
    normalize: bool


def is_sentence_embedder(folder: Path | None) -> bool:
    """Whether ``modules.json`` names a Pooling module.

    Raises:
        CheckpointError: the file is damaged.
    """
    return any(kind == "Pooling" for kind, _ in _modules(folder))


def read_sentence_embedder(folder: Path | None) -> SentenceEmbedder | None:
    """How the folder's files say to embed, or None where they do not.

    Raises:
        ConfigError: they ask for a module or a pooling that jaxpool does not implement.
        CheckpointError: a file is damaged.
    """
    modules = _modules(folder)
    if folder is None or not any(kind == "Pooling" for kind, _ in modules):
        return None
    unknown = [kind for kind, _ in modules if kind not in _KNOWN]
    if unknown:
        raise ConfigError(
            f"{folder / 'modules.json'} has a {unknown[0]} module, which jaxpool does not implement; "
            f"it implements {', '.join(_KNOWN)}."
        )
    path = folder / next(place for kind, place in modules if kind == "Pooling") / "config.json"
    settings = _json(path, dict)
    flags = [name.removeprefix("pooling_mode_") for name, on in settings.items() if on is True and "_mode_" in name]
    mode = settings.get("pooling_mode") or "+".join(flags)
    if mode not in _MODES:
        raise ConfigError(f"{path} asks for the pooling {mode!r}; jaxpool implements {', '.join(_MODES)}.")
    return SentenceEmbedder(_MODES[mode], any(kind == "Normalize" for kind, _ in modules))


def _modules(folder: Path | None) -> list[tuple[str, str]]:
    """Class name and folder of each module, in order."""
    if folder is None or not (folder / "modules.json").is_file():
        return []
    path = folder / "modules.json"
    try:
        return [(entry["type"].rsplit(".", 1)[-1], entry["path"]) for entry in _json(path, list)]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no list of modules with a type and a path each.") from error


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where a {kind.__name__} belongs.")
    return value
