"""Gemma: norms that store the difference to 1, scaled embeddings; from Gemma 2 on norms on both sides of each part."""

from __future__ import annotations

from typing import Any

from jaxpool.models.decoder import DecoderConfig
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import (
    family,
    layer_windows,
    llama_like,
    llama_table,
    rms,
)
from jaxpool_conversions.families.rope_fields import layer_ropes
from jaxpool_conversions.rules import Ignore


def _gemma(fields: Fields, **switches: Any) -> DecoderConfig:
    bias = fields.get("attention_bias", False)
    norm = rms(fields, offset=1.0)
    attention = {"qkv_bias": bias, "out_bias": bias} | switches.pop("attention", {})
    return llama_like(
        fields, norm=norm, attention=attention, embedding_scale=fields.get("hidden_size") ** 0.5, **switches
    )


def _gemma1(fields: Fields) -> DecoderConfig:
    fields.require("use_bidirectional_attention", None, False)
    return _gemma(fields)


def _gemma2(fields: Fields) -> DecoderConfig:
    fields.require("use_bidirectional_attention", None, False)
    return _gemma(fields, **_since_2(fields, fields.get("attn_logit_softcapping")), windows=layer_windows(fields))


def _gemma3(fields: Fields) -> DecoderConfig:
    ropes, per_layer = layer_ropes(fields, fields.get("head_dim"))
    fields.require("attn_logit_softcapping", None)  # read by nobody in transformers
    switches = _since_2(fields, None)
    switches["attention"] |= {
        "norm": rms(fields, offset=1.0),
        "causal": fields.get("is_causal", True) and not fields.get("use_bidirectional_attention"),
    }
    return _gemma(fields, **switches, ropes=ropes, layer_ropes=per_layer, windows=layer_windows(fields))


def _gemma3_text_part(fields: Fields) -> DecoderConfig:
    for name in ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"):
        fields.get(name)  # of images, which are not classified
    text = Fields(fields.get("text_config"))
    config = _gemma3(text)
    text.finish()
    return config


def _since_2(fields: Fields, softcap: float | None) -> dict[str, Any]:
    fields.get("final_logit_softcapping")  # of the vocabulary projection
    attention = {
        "scale": fields.get("query_pre_attn_scalar") ** -0.5,
        "softcap": softcap,
    }
    return {"norms": "both", "mlp": {"activation": fields.get("hidden_activation")}, "attention": attention}


_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_out_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}
_VISION = tuple(top + part for top in ("", "model.") for part in ("vision_tower", "multi_modal_projector"))

FAMILIES = {
    "gemma": family("Gemma", _gemma1, llama_table()),
    "gemma2": family("Gemma2", _gemma2, llama_table(norms=_NORMS)),
    "gemma3_text": family("Gemma3Text", _gemma3, llama_table(norms=_NORMS)),
    "gemma3": family(
        "Gemma3",
        _gemma3_text_part,
        llama_table(
            norms=_NORMS,
            prefix="language_model.model.",
            ignore=(
                Ignore("language_model.lm_head.{rest}", "vocabulary projection, not used by classification"),
                *(Ignore(f"{part}.{{rest}}", "images are not classified") for part in _VISION),
            ),
            other_prefixes=("model.language_model.",),
        ),
    ),
}
