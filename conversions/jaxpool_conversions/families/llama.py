"""Llama and its nearest relatives: RMS norm before, rotary positions, gated MLP."""

from __future__ import annotations

from jaxpool.models.decoder import DecoderConfig
from jaxpool_conversions.families.decoder import family, layer_windows, llama_like, llama_table, rms
from jaxpool_conversions.families.fields import Fields


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


FAMILIES = {
    "llama": family("Llama", _llama, llama_table()),
    "mistral": family("Mistral", _mistral, llama_table()),
    "qwen2": family("Qwen2", _qwen2, llama_table()),
    "qwen3": family("Qwen3", _qwen3, llama_table()),
}
