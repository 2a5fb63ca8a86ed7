"""Llama and its nearest relatives: RMS norm before, rotary positions, gated MLP."""

from __future__ import annotations

from typing import Any

from jaxpool.models.decoder import DecoderConfig
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import (
    ATTENTION,
    LLAMA_ATTENTION,
    MLP,
    attention_like,
    family,
    layer_windows,
    llama_like,
    llama_table,
    norm,
    rms,
)
from jaxpool_conversions.families.olmo import AFTER
from jaxpool_conversions.families.rope_fields import rope
from jaxpool_conversions.rules import Rule


def _llama(fields: Fields) -> DecoderConfig:
    bias = fields.get("attention_bias", False)
    return llama_like(
        fields,
        attention={"qkv_bias": bias, "out_bias": bias},
        mlp={"bias": fields.get("mlp_bias", False)},
    )


def _mistral(fields: Fields) -> DecoderConfig:
    return llama_like(fields, windows=(fields.get("sliding_window"),) * fields.get("num_hidden_layers"))


def _qwen2(fields: Fields) -> DecoderConfig:
    return llama_like(fields, attention={"qkv_bias": True}, windows=layer_windows(fields))


def _qwen3(fields: Fields) -> DecoderConfig:
    bias = fields.get("attention_bias", False)
    return llama_like(
        fields,
        attention={"qkv_bias": bias, "out_bias": bias, "norm": rms(fields)},
        windows=layer_windows(fields),
    )


def _ministral(fields: Fields) -> DecoderConfig:
    return llama_like(fields, windows=layer_windows(fields))


def _ministral3(fields: Fields) -> DecoderConfig:
    given, window = fields.get("rope_parameters"), fields.get("sliding_window")
    growth = (given["llama_4_scaling_beta"], given["original_max_position_embeddings"])
    windows = (window,) * fields.get("num_hidden_layers")
    return llama_like(fields, attention={"query_growth": growth}, windows=windows)


def _smollm3(fields: Fields) -> DecoderConfig:
    fields.get("no_rope_layer_interval")  # folded into no_rope_layers by transformers
    bias = fields.get("attention_bias")
    return llama_like(
        fields,
        attention={"qkv_bias": bias, "out_bias": bias},
        mlp={"bias": fields.get("mlp_bias")},
        windows=layer_windows(fields),
        # The name says the opposite of what the values mean.
        layer_ropes=tuple(0 if rotates else None for rotates in fields.get("no_rope_layers")),
    )


def _granite(fields: Fields) -> DecoderConfig:
    fields.get("logits_scaling")  # of the vocabulary projection
    bias = fields.get("attention_bias")
    return llama_like(
        fields,
        attention={"qkv_bias": bias, "out_bias": bias, "scale": fields.get("attention_multiplier")},
        mlp={"bias": fields.get("mlp_bias")},
        embedding_scale=fields.get("embedding_multiplier"),
        residual_scale=fields.get("residual_multiplier"),
    )


def _seed_oss(fields: Fields) -> DecoderConfig:
    fields.get("residual_dropout")  # training only
    return llama_like(
        fields,
        attention={"qkv_bias": fields.get("attention_bias"), "out_bias": fields.get("attention_out_bias")},
        mlp={"bias": fields.get("mlp_bias")},
    )


def _arcee(fields: Fields) -> DecoderConfig:
    bias = fields.get("attention_bias")
    return llama_like(
        fields,
        attention={"qkv_bias": bias, "out_bias": bias},
        mlp={"gated": False, "bias": fields.get("mlp_bias")},
    )


def hunyuan(fields: Fields, **switches: Any) -> DecoderConfig:
    """HunYuan; ``switches`` are what its mixture of experts changes in ``DecoderConfig``."""
    fields.get("eod_token_id")  # generation only
    bias = fields.get("attention_bias")
    attention = attention_like(fields, {"qkv_bias": bias, "out_bias": bias, "norm": rms(fields), "norm_rotated": True})
    given, size = dict(fields.get("rope_parameters")), attention.head_size
    if given["rope_type"] == "dynamic" and given.get("alpha"):  # which only stretches the base
        given |= {"rope_type": "default", "rope_theta": given["rope_theta"] * given["alpha"] ** (size / (size - 2))}
    return llama_like(fields, attention=attention, ropes=(rope(fields, size, parameters=given),), **switches)


def _exaone4(fields: Fields) -> DecoderConfig:
    fields.get("sliding_window_pattern")  # folded into layer_types by transformers
    windows, hybrid = layer_windows(fields), fields.get("sliding_window") is not None
    return llama_like(
        fields,
        norms="after",
        attention={"norm": rms(fields)},
        windows=windows,
        # Of several kinds of layers, those that see everything know no positions.
        layer_ropes=tuple(None if hybrid and w is None else 0 for w in windows),
    )


def _apertus(fields: Fields) -> DecoderConfig:
    bias = fields.get("attention_bias")
    attention = {"qkv_bias": bias, "out_bias": bias, "norm": rms(fields)}
    return llama_like(fields, attention=attention, mlp={"gated": False})


HUNYUAN_ATTENTION = (
    *norm("layers.{layer}.self_attn.query_layernorm", f"{ATTENTION}.query_norm"),
    *norm("layers.{layer}.self_attn.key_layernorm", f"{ATTENTION}.key_norm"),
    *LLAMA_ATTENTION,
)
_XIELU = ("alpha_p", "alpha_n", "beta", "eps")
_APERTUS = llama_table(
    norms={"attention_layernorm": "attention_norm", "feedforward_layernorm": "mlp_norm"},
    more=tuple(Rule(f"layers.{{layer}}.mlp.act_fn.{name}", f"{MLP}.activation.{name}") for name in _XIELU),
)

FAMILIES = {
    "llama": family("Llama", _llama, llama_table()),
    "mistral": family("Mistral", _mistral, llama_table()),
    "ministral": family("Ministral", _ministral, llama_table()),
    "ministral3": family("Ministral3", _ministral3, llama_table()),
    "qwen2": family("Qwen2", _qwen2, llama_table()),
    "qwen3": family("Qwen3", _qwen3, llama_table()),
    "smollm3": family("SmolLM3", _smollm3, llama_table()),
    "granite": family("Granite", _granite, llama_table()),
    "seed_oss": family("SeedOss", _seed_oss, llama_table()),
    "arcee": family("Arcee", _arcee, llama_table()),
    "hunyuan_v1_dense": family("HunYuanDenseV1", hunyuan, llama_table(attention=HUNYUAN_ATTENTION)),
    "exaone4": family("Exaone4", _exaone4, AFTER),
    "apertus": family("Apertus", _apertus, _APERTUS),
}
