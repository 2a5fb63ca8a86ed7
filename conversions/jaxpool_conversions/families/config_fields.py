"""Reads a Hugging Face config so that no field can change the answer unnoticed."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxpool.errors import ConfigError
from jaxpool_conversions.families import unread

INERT = frozenset(
    {
        # training only
        "initializer_range", "attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob",
        "classifier_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout",
        "initializer_factor", "pretraining_tp",
        "router_aux_loss_coef", "output_router_logits",
        "dropout", "qa_dropout", "seq_classif_dropout", "classifier_dropout_prob", "summary_last_dropout",
        "dropout_rate", "hidden_dropout", "activation_dropout", "pooler_dropout", "embedding_dropout", "mlp_dropout",
        "encoder_layerdrop", "decoder_layerdrop", "init_std", "initializer_std", "initializer_cutoff_factor",
        # generation only
        "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
        "cls_token_id", "forced_bos_token_id", "forced_eos_token_id",
        # concerns the vocabulary projection, which classification does not use
        "tie_word_embeddings",
        # what transformers returns, or how it computes the same numbers
        "output_hidden_states", "output_attentions", "return_dict", "chunk_size_feed_forward", "transformers_version",
        # read elsewhere: resolve.py
        "architectures", "dtype", "id2label", "label2id", "problem_type",
    }
)  # fmt: skip
"""Fields that no family reads and that cannot change a classification."""


class Fields:
    """The fields of one config; remembers which were read.

    A field that a family neither reads nor declares inert, and whose value differs from the default that its config
    class gives it, would be a difference to transformers that nobody implements: ``finish`` raises then. Fields
    unknown to the config class are read by nobody in transformers either; ``unread.py`` looks at them.
    """

    def __init__(self, config: Any, inert: tuple[str, ...] = ()) -> None:
        self._config = config
        self._read = set(INERT) | set(inert)
        self._raw: dict[str, Any] = getattr(config, "raw", None) or {}
        self.model_type: str = config.model_type

    def get(self, name: str, default: Any = None) -> Any:
        """The field's value; where the config class has no such field, that of ``config.json`` itself, or ``default``.

        transformers drops some of the fields that it does not know (``temperature``).
        """
        other = getattr(self._config, "attribute_map", {}).get(name, name)  # a second name for a field
        self._read |= {name, other}  # config classes declare the one or the other
        return getattr(self._config, other, self._raw.get(name, default))

    def require(self, name: str, *allowed: Any) -> None:
        """Raises ConfigError unless the field is absent or has one of the ``allowed`` values."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"config.json sets {name}={value!r}, which jaxpool does not implement for model_type "
                f"{self.model_type!r}; it implements {' and '.join(map(repr, allowed))}."
            )

    def finish(self) -> None:
        """Raises ConfigError if a field that nobody read has a value other than its class's default.

        Of fields that the class does not have, those that may matter are warned about by name.
        """
        defaults = _defaults(type(self._config))
        for name in sorted(defaults.keys() - self._read):
            value = getattr(self._config, name, defaults[name])
            if value != defaults[name]:
                raise ConfigError(
                    f"config.json sets {name}={value!r}, which jaxpool does not implement for model_type "
                    f"{self.model_type!r} (default: {defaults[name]!r})."
                )
        aliases = getattr(self._config, "attribute_map", {})
        unread.check(self._raw, {*defaults, *aliases, *self._read}, self.model_type)


def _defaults(config_class: type) -> dict[str, Any]:
    """Field defaults of a transformers config class, as an instance made with no arguments has them."""
    instance = config_class()
    return {f.name: getattr(instance, f.name, None) for f in dataclasses.fields(config_class)}
