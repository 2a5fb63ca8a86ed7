"""How Sentence-Transformers says that a checkpoint embeds: ``modules.json`` and the Pooling module's settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jaxpool.checkpoints.labels import torch_activation
from jaxpool.errors import CheckpointError, ConfigError
from jaxpool.ops.pooling import Activation, Pooling

_MODES: dict[str, Pooling] = {
    "cls": "CLS", "cls_token": "CLS", "mean": "MEAN", "mean_tokens": "MEAN", "lasttoken": "LAST",
}  # fmt: skip
"""``pooling_mode`` (or the flag ``pooling_mode_…``) -> our pooling."""
_KNOWN = ("Transformer", "Pooling", "Dense", "Normalize")


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer on the pooled vector, with its weights in a folder of its own.

    Attributes:
        folder: its name inside the checkpoint.
        width: size of what leaves.
        bias: whether it has a bias.
        activation: what follows.
    """

    folder: str
    width: int
    bias: bool
    activation: Activation


@dataclass(frozen=True, slots=True)
class SentenceEmbedder:
    """A folder's own way from hidden states to an embedding.

    Attributes:
        pooling: which vector, or the mean.
        normalize: whether embeddings are scaled to length one.
        dense: layers between the two, in order.
    """

    pooling: Pooling
    normalize: bool
    dense: tuple[Dense, ...] = ()


def is_sentence_embedder(folder: Path | None) -> bool:
    """Whether ``modules.json`` names a Pooling module.

    Raises:
        CheckpointError: the file is damaged.
    """
    return any(kind == "Pooling" for kind, _ in modules_of(folder)) and _embeds(folder)


def _embeds(folder: Path | None) -> bool:
    """Whether the settings are a SentenceTransformer's: a CrossEncoder may have a Pooling module as well."""
    return file_settings(folder).get("model_type", "SentenceTransformer") == "SentenceTransformer"


def file_settings(folder: Path | None) -> dict[str, Any]:
    """``config_sentence_transformers.json``; empty where there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = None if folder is None else modules_root(folder) / "config_sentence_transformers.json"
    return read_json(path, dict) if path is not None and path.is_file() else {}


def default_prompt(folder: Path | None) -> str:
    """What every text to be embedded begins with: the prompt that ``default_prompt_name`` names.

    Raises:
        CheckpointError: there is no prompt of that name.
    """
    settings = file_settings(folder)
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None or not is_sentence_embedder(folder):
        return ""
    if not isinstance(prompts.get(name), str):
        raise CheckpointError(
            f"config_sentence_transformers.json in {folder} names the default prompt {name!r}, which is not among its "
            f"prompts ({', '.join(prompts)})."
        )
    return str(prompts[name])


def saved_prompts(folder: Path) -> dict[str, Any]:
    """What texts to be embedded begin with: ``prefix`` by default, ``prefixes`` by name, as arguments of a tokenizer.

    Names stand in ``task_instructions`` of ``config.json``, or else in Sentence-Transformers' settings.

    Raises:
        CheckpointError: a file is damaged.
    """
    named = read_json(folder / "config.json", dict).get("task_instructions") or file_settings(folder).get("prompts")
    named = named if isinstance(named, dict) else {}
    kept = {name: text for name, text in named.items() if isinstance(text, str)}
    return {"prefix": default_prompt(folder), "prefixes": kept}


def read_sentence_embedder(folder: Path | None) -> SentenceEmbedder | None:
    """How the folder's files say to embed, or None where they do not.

    Raises:
        ConfigError: they ask for a module or a pooling that jaxpool does not implement.
        CheckpointError: a file is damaged.
    """
    modules = modules_of(folder)
    if folder is None or not any(kind == "Pooling" for kind, _ in modules):
        return None
    unknown = [kind for kind, _ in modules if kind not in _KNOWN]
    if unknown:
        raise ConfigError(
            f"{folder / 'modules.json'} has a {unknown[0]} module, which jaxpool does not implement; "
            f"it implements {', '.join(_KNOWN)}."
        )
    kinds = [kind for kind, _ in modules]
    if kinds != sorted(kinds, key=_KNOWN.index) or kinds.count("Pooling") > 1:
        raise ConfigError(
            f"{folder / 'modules.json'} has the modules {', '.join(kinds)} in this order, which jaxpool does not "
            f"implement; it implements {', '.join(_KNOWN)}."
        )
    root = modules_root(folder)
    path = root / next(place for kind, place in modules if kind == "Pooling") / "config.json"
    settings = read_json(path, dict)
    flags = [name.removeprefix("pooling_mode_") for name, on in settings.items() if on is True and "_mode_" in name]
    mode = settings.get("pooling_mode") or "+".join(flags)
    if mode not in _MODES:
        raise ConfigError(f"{path} asks for the pooling {mode!r}; jaxpool implements {', '.join(_MODES)}.")
    if settings.get("include_prompt") is False and default_prompt(folder) and mode != "lasttoken":
        raise ConfigError(f"{path} sets include_prompt=False beside a default prompt; not implemented.")
    dense = tuple(_dense(root, place) for kind, place in modules if kind == "Dense")
    return SentenceEmbedder(_MODES[mode], "Normalize" in kinds, dense)


def _dense(folder: Path, place: str) -> Dense:
    path = folder / place / "config.json"
    settings = read_json(path, dict)
    width, name = settings.get("out_features"), settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(width, int) or not isinstance(name, str):
        raise CheckpointError(
            f"{path} has out_features={width!r} and activation_function={name!r}; a number and a name."
        )
    activation = torch_activation(name, str(path))
    # "classify" is what a sigmoid means for labels.
    return Dense(place, width, settings.get("bias", True), "sigmoid" if activation == "classify" else activation)


def longest_sentence(folder: Path | None) -> list[int]:
    """``max_seq_length`` of each settings file that has one; the tokens that Sentence-Transformers cuts texts to."""
    files = sorted(folder.glob("sentence_*_config.json")) if folder else []
    values = [read_json(path, dict).get("max_seq_length") for path in files]
    return [value for value in values if isinstance(value, int)]


def dense_folders(folder: Path) -> list[str]:
    """The folders inside a checkpoint that hold weights of Dense modules."""
    return [place for kind, place in modules_of(folder) if kind == "Dense"]


def modules_of(folder: Path | None) -> list[tuple[str, str]]:
    """Class name and folder of each module that ``modules.json`` lists, in order; none without the file.

    Raises:
        CheckpointError: the file is damaged, or points outside the folder.
    """
    path = None if folder is None else modules_root(folder) / "modules.json"
    if path is None or not path.is_file():
        return []
    try:
        modules = [(entry["type"].rsplit(".", 1)[-1], entry["path"]) for entry in read_json(path, list)]
        outside = [place for _, place in modules if PurePosixPath(place).is_absolute() or ".." in Path(place).parts]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no list of modules with a type and a path each.") from error
    if outside:
        raise CheckpointError(f"{path} points outside its folder, to {outside[0]!r}; do not trust this checkpoint.")
    return modules


def modules_root(folder: Path) -> Path:
    """Where modules lie: the checkpoint's folder, or the one above where the first versions put the model below it."""
    below = folder.name == "0_Transformer" and not (folder / "modules.json").is_file()
    return folder.parent if below and (folder.parent / "modules.json").is_file() else folder


def transformer_folder(folder: Path) -> str:
    """The place inside a folder where ``modules.json`` says that the model itself is; usually empty."""
    return next((place for kind, place in modules_of(folder) if kind == "Transformer"), "")


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose outermost value is of a kind.

    Raises:
        CheckpointError: it is not, or cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where a {kind.__name__} belongs.")
    return value
