"""The longest text that a checkpoint reads: the smallest of all that bounds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxpool.checkpoints.labels import text_configs
from jaxpool.checkpoints.sentence_transformers import longest_sentence
from jaxpool.errors import ValidationError

LENGTH_FIELDS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"),
    "attention_chunk_size",
)
"""Config fields that may bound the text length, in tokens; the smallest counts."""


def longest_text(config: Any, ours: Any, folder: Path | None, tokenizer_limit: int | None, asked: int | None) -> int:
    """Most tokens of a text, to which texts are also truncated.

    Args:
        config: transformers config.
        ours: the family's config dataclass; its ``positions`` are learned, its ``limit`` is any other bound.
        folder: the checkpoint, for Sentence-Transformers' own limit, which only ever lowers the others.
        tokenizer_limit: the tokenizer's maximum length, which binds where positions are learned.
        asked: ``max_model_len`` of the user; None or -1 for the checkpoint's own limit.

    Raises:
        ValidationError: more was asked for than the checkpoint supports.
    """
    limits = [value for part in text_configs(config) for name in LENGTH_FIELDS if (value := _length(part, name))]
    limits += [limit] if (limit := getattr(ours, "limit", None)) is not None else []
    learned = getattr(ours, "positions", None)
    if learned is not None:
        limits.append(learned)
        if tokenizer_limit is not None:
            limits.append(tokenizer_limit)
    derived = int(min(limits, default=2048) * _stretch(config))
    derived = min([derived, *longest_sentence(folder)])
    if asked is None or asked == -1:
        return derived
    if asked < 1:
        raise ValidationError(f"max_model_len must be at least 1; got {asked}.", parameter="max_model_len")
    if asked > derived:
        raise ValidationError(
            f"User-specified max_model_len ({asked}) is greater than the derived max_model_len ({derived}), "
            "the longest text this checkpoint supports.",
            parameter="max_model_len",
        )
    return asked


def _length(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None  # XLNet's class says -1


def _stretch(config: Any) -> float:
    """How much longer texts get by scaled rotary positions; kinds other than these name the length they reach."""
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("factor") or 1.0) if rope.get("rope_type") in ("linear", "dynamic", "ntk") else 1.0
