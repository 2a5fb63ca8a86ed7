"""OLMo: norms without parameters at first, then norms after each part and over whole queries and keys."""

from __future__ import annotations

from typing import Any

from jaxpool.models.decoder import DecoderConfig
from jaxpool.models.norms import NormConfig
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import family, layer_windows, llama_like, llama_table, rms
from jaxpool_conversions.families.rope_fields import layer_ropes


def _olmo(fields: Fields) -> DecoderConfig:
    bias = fields.get("attention_bias", False)
    return llama_like(
        fields,
        norm=NormConfig("layer", 1e-5, scale=False),
        attention={"qkv_bias": bias, "out_bias": bias, "clip": fields.get("clip_qkv")},
    )


def _olmo2(fields: Fields, **switches: Any) -> DecoderConfig:
    bias, norm = fields.get("attention_bias", False), rms(fields, late=True)
    return llama_like(
        fields,
        norm=norm,
        norms="after",
        attention={"qkv_bias": bias, "out_bias": bias, "norm": norm, "norm_over": "width"},
        **switches,
    )


def _olmo3(fields: Fields) -> DecoderConfig:
    head_size = fields.get("head_dim") or fields.get("hidden_size") // fields.get("num_attention_heads")
    ropes, per_layer = layer_ropes(fields, head_size)
    return _olmo2(fields, ropes=ropes, layer_ropes=per_layer, windows=layer_windows(fields))


AFTER = llama_table(
    norms={"post_attention_layernorm": "attention_out_norm", "post_feedforward_layernorm": "mlp_out_norm"}
)
"""Rows of a decoder with norms after its parts."""

FAMILIES = {
    "olmo": family("Olmo", _olmo, llama_table()),
    "olmo2": family("Olmo2", _olmo2, AFTER),
    "olmo3": family("Olmo3", _olmo3, AFTER),
}
