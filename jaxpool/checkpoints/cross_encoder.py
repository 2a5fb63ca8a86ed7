"""How Sentence-Transformers says that a checkpoint scores pairs: a CrossEncoder's settings and modules.

From version 5.4 on a CrossEncoder is a chain of modules too. Its usual form is one Transformer, a sequence classifier;
or a language model and a LogitScore, which scores by the logits of one or two tokens
(https://sbert.net/docs/cross_encoder/usage/custom_models.html).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxpool.checkpoints.sentence_transformers import file_settings, modules_of, read_json
from jaxpool.errors import CheckpointError, ConfigError, ValidationError
from jaxpool.text import scoring
from jaxpool.text.chat_template import load

if TYPE_CHECKING:
    from jaxpool.checkpoints.spec import Spec


@dataclass(frozen=True, slots=True)
class Scoring:
    """What the files say of a CrossEncoder.

    Attributes:
        activation: dotted path of the torch class that scores pass, or None where they do not say.
        tokens: ids ``(true,)`` or ``(false, true)`` whose logits make the score, or None for a head of its own.
        templated: whether pairs are read through the checkpoint's chat template.
    """

    activation: str | None
    tokens: tuple[int, ...] | None = None
    templated: bool = False


ContentFormat = Literal["auto", "string", "openai"]

_CONTENT: dict[str, ContentFormat] = {"flat": "string", "structured": "openai", "auto": "auto"}
"""Sentence-Transformers' ``format`` of a message's content -> the word of our chat templates."""

_NOT_SHOWN = ("restore_suffix", "padding", "truncation", "max_length", "return_tensors")
"""Settings beside a template's variables that say how its text is cut."""


@dataclass(frozen=True, slots=True)
class SavedTemplate:
    """How Sentence-Transformers renders pairs with the tokenizer's own chat template.

    Attributes:
        template: Jinja.
        content_format: how the template wants contents.
        variables: what it sees beside the messages.
    """

    template: str
    content_format: ContentFormat
    variables: dict[str, Any]


def read_scoring(folder: Path | None) -> Scoring | None:
    """The folder's settings as a CrossEncoder, or None where it is none.

    Raises:
        ConfigError: it has modules that jaxpool does not implement for scores, or embeds sparsely (SPLADE).
        CheckpointError: a file is damaged.
    """
    if folder is None:
        return None
    settings, modules = file_settings(folder), modules_of(folder)
    kinds = [kind for kind, _ in modules]
    kind = settings.get("model_type", "SentenceTransformer")
    if kind == "SparseEncoder" or "SpladePooling" in kinds:
        raise ConfigError(
            f"{folder} is a sparse encoder (SPLADE): {', '.join(kinds) or kind}. Its vectors have an entry for every "
            "word of the vocabulary, which jaxpool does not compute; use a dense embedder."
        )
    if kind != "CrossEncoder" and "LogitScore" not in kinds:
        return None
    if kinds not in ([], ["Transformer"], ["Transformer", "LogitScore"]):
        raise ConfigError(
            f"{folder / 'modules.json'} is a CrossEncoder of the modules {', '.join(kinds)}, which jaxpool does not "
            "implement; it implements a Transformer alone (a sequence classifier) and Transformer, LogitScore."
        )
    if settings.get("default_prompt_name"):
        raise ConfigError(
            f"{folder / 'config_sentence_transformers.json'} sets default_prompt_name="
            f"{settings['default_prompt_name']!r} for a CrossEncoder, which jaxpool does not implement."
        )
    tokens = _tokens(folder / modules[1][1] / "config.json") if len(modules) > 1 else None
    return Scoring(settings.get("activation_fn"), tokens, _reads_messages(folder))


def _tokens(path: Path) -> tuple[int, ...]:
    settings = read_json(path, dict)
    true, false = settings.get("true_token_id"), settings.get("false_token_id")
    if not isinstance(true, int) or not isinstance(false, int | None):
        raise CheckpointError(f"{path} has true_token_id={true!r} and false_token_id={false!r}; token ids are needed.")
    return (true,) if false is None else (false, true)


def saved_template(folder: Path) -> SavedTemplate:
    """How the folder's settings have its chat template used on pairs.

    Raises:
        ConfigError: they ask for what jaxpool does not implement.
        CheckpointError: a file is damaged.
    """
    message, variables = _message(folder)
    style = (message or {}).get("format", "auto")
    if style not in _CONTENT:
        raise ConfigError(f"{folder} has messages of the format {style!r}; jaxpool knows {', '.join(_CONTENT)}.")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    shown = {name: one for name, one in variables.items() if name not in _NOT_SHOWN}
    return SavedTemplate(template, _CONTENT[style], shown)


def _reads_messages(folder: Path) -> bool:
    """Whether a chat template is saved and the Transformer's settings have the modality ``message``."""
    return _message(folder)[0] is not None and (folder / "chat_template.jinja").is_file()


def _message(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The modality ``message`` of the Transformer's settings, and what its chat template is given."""
    message: dict[str, Any] | None = None
    variables: dict[str, Any] = {}
    for path in sorted(folder.glob("sentence_*_config.json")):
        settings = read_json(path, dict)
        message = (settings.get("modality_config") or {}).get("message", message)
        variables |= (settings.get("processing_kwargs") or {}).get("chat_template") or {}
    return message, variables


RECIPE_OR_TEMPLATE = (
    "This model was opened by its recipe, which says what stands around the texts; to use a template of your own, say "
    "with hf_overrides how it becomes a classifier."
)


def pair_reading(
    spec: Spec, folder: Path, template: str | os.PathLike[str] | None, *, framed: bool
) -> scoring.PairReading:
    """How the model reads two texts.

    Args:
        spec: of the checkpoint.
        folder: where it is; a CrossEncoder may have been saved with a template.
        template: Jinja, or a file of it, that the user gives.
        framed: whether a recipe says what stands around the texts.

    Raises:
        ValidationError: both a template and a recipe say so.
    """
    joined = spec.joins_pairs and not framed
    if template is not None:
        if framed:
            raise ValidationError(RECIPE_OR_TEMPLATE, parameter="chat_template")
        return scoring.PairReading(joined, load(template))
    if framed or not spec.templated:
        return scoring.PairReading(joined)
    saved = saved_template(folder)
    return scoring.PairReading(joined, saved.template, saved.variables, saved.content_format, special_tokens=False)
