"""Decoders whose rotary positions turn neighbouring numbers of a head: Cohere, GLM, Helium, ERNIE 4.5."""

from __future__ import annotations

from typing import Any

from jaxpool.models.decoder import DecoderConfig
from jaxpool.models.norms import NormConfig
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import family, layer_windows, llama_like, llama_table, rms
from jaxpool_conversions.families.phi import FUSED_MLP


def _cohere(fields: Fields, **switches: Any) -> DecoderConfig:
    fields.get("logit_scale")  # of the vocabulary projection
    bias, norm = fields.get("attention_bias", False), NormConfig("layer", fields.get("layer_norm_eps"))
    heads_norm = norm if fields.get("use_qk_norm") else None
    return llama_like(
        fields,
        norm=norm,
        parallel="one",
        attention={
            "qkv_bias": bias,
            "out_bias": bias,
            "norm": heads_norm,
            "norm_over": "heads",
            "interleaved": True,
        },
        **switches,
    )


def _cohere2(fields: Fields) -> DecoderConfig:
    windows = layer_windows(fields)
    # Layers that see everything know no positions.
    return _cohere(fields, windows=windows, layer_ropes=tuple(None if w is None else 0 for w in windows))


def _glm(fields: Fields, **switches: Any) -> DecoderConfig:
    attention = {"qkv_bias": fields.get("attention_bias"), "interleaved": True}
    return llama_like(fields, attention=attention, partial_rope=True, **switches)


def _helium(fields: Fields) -> DecoderConfig:
    return llama_like(
        fields,
        norm=rms(fields, late=True),
        attention={"qkv_bias": fields.get("attention_bias"), "interleaved": True},
        mlp={"bias": fields.get("mlp_bias")},
    )


def _ernie(fields: Fields) -> DecoderConfig:
    bias = fields.get("use_bias")
    attention = {"qkv_bias": bias, "out_bias": bias, "interleaved": True}
    return llama_like(fields, attention=attention, mlp={"bias": bias})


_COHERE = llama_table(norms={"input_layernorm": "attention_norm"})
_GLM4_NORMS = {
    "input_layernorm": "attention_norm",
    "post_self_attn_layernorm": "attention_out_norm",
    "post_attention_layernorm": "mlp_norm",
    "post_mlp_layernorm": "mlp_out_norm",
}

FAMILIES = {
    "cohere": family("Cohere", _cohere, _COHERE),
    "cohere2": family("Cohere2", _cohere2, _COHERE),
    "glm": family("Glm", _glm, llama_table(mlp=FUSED_MLP)),
    "glm4": family("Glm4", lambda fields: _glm(fields, norms="both"), llama_table(norms=_GLM4_NORMS, mlp=FUSED_MLP)),
    "helium": family("Helium", _helium, llama_table()),
    "ernie4_5": family("Ernie4_5", _ernie, llama_table()),
}
