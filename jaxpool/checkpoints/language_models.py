"""What a checkpoint says of a language model's own head: where it is, and what happens to its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxpool.checkpoints.labels import config_field
from jaxpool.errors import ConfigError, ValidationError
from jaxpool.models.language_head import LanguageHead
from jaxpool_conversions.families import Family
from jaxpool_conversions.rules import HeadSource

FACTORS: dict[str, Callable[[Any], float]] = {
    "cohere": lambda config: config.logit_scale,
    "cohere2": lambda config: config.logit_scale,
    "granite": lambda config: 1 / config.logits_scaling,
    "granitemoe": lambda config: 1 / config.logits_scaling,
    "granitemoeshared": lambda config: 1 / config.logits_scaling,
    "minicpm": lambda config: config.dim_model_base / config.hidden_size,
    "minicpm3": lambda config: config.dim_model_base / config.hidden_size,
}
"""Model type -> the factor on its logits."""

_PLAIN = {"logit_scale": (None, 1.0), "logits_scaling": (None, 1.0), "lm_head_multiplier": (None, 1.0)}
"""Field -> values under which logits stay as they are."""

_CAPPED = ("gemma2", "gemma3", "gemma3_text")
_UNUSED = ("mpt",)
"""Model types that declare such a field and use it nowhere."""


def language_head(
    config: Any, ours: Any, family: Family, find_source: Callable[[Family, int], HeadSource] | None
) -> tuple[LanguageHead, HeadSource]:
    """How a causal model's hidden states become logits of its vocabulary, and where the rows for that are.

    Args:
        config: transformers config.
        ours: the family's.
        family: with a table that ignores heads.
        find_source: finds the rows, given the family and the width; ``NO_HEAD`` where they are the embedding's.

    Raises:
        ValidationError: the model reads both ways, so that it predicts no next token.
        ConfigError: something happens to its logits that jaxpool does not implement.
    """
    if find_source is None:
        raise ValidationError(
            f"A language model (model_type {config.model_type!r}) is not a classifier by itself. Pass "
            'convert="classify" (`--convert classify`) to use its score head, or LM-head rows as one, or '
            'convert="embed" (`--convert embed`) for embeddings.'
        )
    if family.name == "seq2seq" or not getattr(ours, "causal", family.name == "jamba"):
        raise ValidationError(
            f"This model (model_type {config.model_type!r}) cannot be used as a language model: its tokens do not see "
            "just those before them. Pass convert='classify' or convert='embed'."
        )
    kind = config.model_type
    cap = config_field(config, "final_logit_softcapping")
    if cap is not None and kind not in _CAPPED:
        raise ConfigError(f"config.json sets final_logit_softcapping={cap!r}, not implemented for {kind!r}.")
    if kind not in FACTORS and kind not in _UNUSED:
        for name, values in _PLAIN.items():
            if (value := config_field(config, name)) not in values:
                raise ConfigError(f"config.json sets {name}={value!r}, not implemented for model_type {kind!r}.")
    source = find_source(family, getattr(ours, "pooled_width", ours.width))
    return LanguageHead(source.num_labels == 0, float(FACTORS.get(kind, lambda _: 1.0)(config)), cap), source
