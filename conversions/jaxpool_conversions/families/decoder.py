"""Llama-like decoders: an architecture is a function from Hugging Face fields to ``DecoderConfig``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxpool.errors import ConfigError
from jaxpool.models.decoder import Decoder, DecoderConfig
from jaxpool.ops.rope import Rope
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.fields import Fields
from jaxpool_conversions.rules import Ignore, Rule, Table, Transpose


def _rope(fields: Fields) -> Rope:
    """``rope_parameters`` (or the older ``rope_theta`` and ``rope_scaling``, which transformers folds into it)."""
    given: dict[str, Any] = dict(fields.get("rope_parameters") or {})
    kind = given.pop("rope_type", given.pop("type", "default"))
    common: dict[str, Any] = {"theta": given.pop("rope_theta"), "kind": kind}
    if kind in ("linear", "llama3", "yarn"):
        common["factor"] = given.pop("factor")
    if kind in ("llama3", "yarn"):
        common["original_length"] = given.pop("original_max_position_embeddings")
    if kind == "llama3":
        common |= {
            "low_frequency": given.pop("low_freq_factor"),
            "high_frequency": given.pop("high_freq_factor"),
        }
    elif kind == "yarn":
        mscale, mscale_all = given.pop("mscale", None), given.pop("mscale_all_dim", None)
        factor = given.pop("attention_factor", None)
        if factor is None:
            both = mscale and mscale_all
            factor = (
                _yarn_scale(common["factor"], mscale) / _yarn_scale(common["factor"], mscale_all)
                if both
                else _yarn_scale(common["factor"], 1.0)
            )
        common |= {
            "attention_factor": factor,
            "beta_fast": given.pop("beta_fast", None) or 32.0,
            "beta_slow": given.pop("beta_slow", None) or 1.0,
            "truncate": given.pop("truncate", True),
        }
    elif kind not in ("default", "linear"):
        raise ConfigError(
            f"config.json asks for rope_type={kind!r}, which jaxpool does not implement yet; "
            "it implements 'default', 'linear', 'llama3' and 'yarn'."
        )
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(
            f"config.json sets partial_rotary_factor={given['partial_rotary_factor']!r}, which jaxpool does not "
            f"implement for model_type {fields.model_type!r}."
        )
    return Rope(**common)


def _yarn_scale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _common(fields: Fields, **switches: Any) -> DecoderConfig:
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    fields.get("max_position_embeddings")  # a limit, not a size: resolve.py reads it
    return DecoderConfig(
        vocab=fields.get("vocab_size"),
        width=width,
        layers=fields.get("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_size=fields.get("head_dim") or width // heads,
        mlp=fields.get("intermediate_size"),
        activation=fields.get("hidden_act"),
        norm_eps=fields.get("rms_norm_eps"),
        rope=_rope(fields),
        # vLLM's switch, honoured here as well: a decoder used as a bidirectional encoder.
        causal=fields.get("is_causal", True),
        **switches,
    )


def _llama(fields: Fields) -> DecoderConfig:
    bias = fields.get("attention_bias", False)
    return _common(fields, qkv_bias=bias, out_bias=bias, mlp_bias=fields.get("mlp_bias", False))


def _mistral(fields: Fields) -> DecoderConfig:
    window, layers = fields.get("sliding_window"), fields.get("num_hidden_layers")
    return _common(fields, windows=(window,) * layers)


def _layer_windows(fields: Fields) -> tuple[int | None, ...]:
    (
        fields.get("use_sliding_window"),
        fields.get("max_window_layers"),
    )  # folded into layer_types by transformers
    window = fields.get("sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in fields.get("layer_types"))


def _qwen2(fields: Fields) -> DecoderConfig:
    return _common(fields, qkv_bias=True, windows=_layer_windows(fields))


def _qwen3(fields: Fields) -> DecoderConfig:
    bias = fields.get("attention_bias", False)
    return _common(fields, qkv_bias=bias, out_bias=bias, qk_norm=True, windows=_layer_windows(fields))


_LAYER = "layers.{layer}"


def _linear(source: str, target: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{_LAYER}.{source}.weight", f"backbone.layers.{target}.kernel", (Transpose(),)),
        Rule(f"{_LAYER}.{source}.bias", f"backbone.layers.{target}.bias"),
    )


TABLE = Table(
    prefix="model.",
    rules=(
        Rule("embed_tokens.weight", "backbone.tokens.table"),
        Rule(f"{_LAYER}.input_layernorm.weight", "backbone.layers.attention_norm.scale"),
        *_linear("self_attn.q_proj", "attention.query"),
        *_linear("self_attn.k_proj", "attention.key"),
        *_linear("self_attn.v_proj", "attention.value"),
        *_linear("self_attn.o_proj", "attention.out"),
        Rule(f"{_LAYER}.self_attn.q_norm.weight", "backbone.layers.attention.query_norm.scale"),
        Rule(f"{_LAYER}.self_attn.k_norm.weight", "backbone.layers.attention.key_norm.scale"),
        Rule(f"{_LAYER}.post_attention_layernorm.weight", "backbone.layers.mlp_norm.scale"),
        *_linear("mlp.gate_proj", "gate"),
        *_linear("mlp.up_proj", "up"),
        *_linear("mlp.down_proj", "down"),
        Rule("norm.weight", "backbone.norm.scale"),
    ),
    ignore=(
        Ignore(
            f"{_LAYER}.self_attn.rotary_emb.inv_freq",
            "a buffer: rotary frequencies, computed from the config",
        ),
        Ignore("rotary_emb.inv_freq", "a buffer: rotary frequencies, computed from the config"),
        Ignore("lm_head.weight", "vocabulary projection, not used by classification"),
    ),
    embedding="embed_tokens.weight",
)


def _family(prefix: str, config: Callable[[Fields], DecoderConfig]) -> Family:
    return Family(
        name="decoder",
        backbone=Decoder,
        config=config,
        head=lambda _: HeadStyle("LAST"),
        table=TABLE,
        prefix_class=prefix,
    )


FAMILIES = {
    "llama": _family("Llama", _llama),
    "mistral": _family("Mistral", _mistral),
    "qwen2": _family("Qwen2", _qwen2),
    "qwen3": _family("Qwen3", _qwen3),
}
