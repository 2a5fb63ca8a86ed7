"""Llama 4 without experts, as Llama Guard 4 is: some layers know no positions, the others norm queries and keys.

Texts end where a chunk of its attention does (``attention_chunk_size``), so that every layer sees all of them.
"""

from __future__ import annotations

from jaxpool.errors import ConfigError
from jaxpool.models.decoder import DecoderConfig
from jaxpool.models.norms import NormConfig
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import MLP, family, linear, llama_like, llama_table
from jaxpool_conversions.rules import Ignore


def _text(fields: Fields) -> DecoderConfig:
    fields.require("moe_layers", [])
    for name in ("intermediate_size", "interleave_moe_layer_step", "num_experts_per_tok", "num_local_experts"):
        fields.get(name)  # of experts
    for name in ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"):
        fields.get(name)
    for name in ("attention_chunk_size", "layer_types", "no_rope_layer_interval"):
        fields.get(name)  # texts are no longer than a chunk; the last is folded into no_rope_layers by transformers
    bias, scale = fields.get("attention_bias"), fields.get("attn_scale")
    tuned, floor = fields.get("attn_temperature_tuning"), fields.get("floor_scale")
    attention = {
        "qkv_bias": bias,
        "out_bias": bias,
        "interleaved": True,
        # a norm without a scale is the same before the rotation and after it
        "norm": NormConfig("rms", fields.get("rms_norm_eps"), scale=False) if fields.get("use_qk_norm") else None,
        "query_growth": (scale, int(floor)) if tuned else None,
        "growth_from": 1,
        "either_or": True,
    }
    # The name says the opposite of what the values mean.
    ropes = tuple(0 if rotates else None for rotates in fields.get("no_rope_layers"))
    inner = fields.get("intermediate_size_mlp")
    return llama_like(fields, attention=attention, mlp={"inner": inner}, layer_ropes=ropes)


def _text_part(fields: Fields) -> DecoderConfig:
    for name in ("vision_config", "boi_token_index", "eoi_token_index", "image_token_index"):
        fields.get(name)  # of images, which are not classified
    inner = fields.get("text_config")
    if inner.model_type != "llama4_text":
        raise ConfigError(
            f"config.json sets text_config to a {inner.model_type!r}; that of a Llama 4 is 'llama4_text'."
        )
    text = Fields(inner)
    config = _text(text)
    text.finish()
    return config


_FEED = "layers.{layer}.feed_forward"
_MLP = tuple(row for ours in ("gate", "up", "down") for row in linear(f"{_FEED}.{ours}_proj", f"{MLP}.{ours}"))

_VISION = ("vision_model", "multi_modal_projector")

FAMILIES = {
    "llama4_text": family("Llama4Text", _text, llama_table(mlp=_MLP)),
    "llama4": family(
        "Llama4",
        _text_part,
        llama_table(
            mlp=_MLP,
            prefix="language_model.model.",
            other_prefixes=("language_model.",),
            ignore=(
                Ignore("language_model.lm_head.{rest}", "vocabulary projection, not used by classification"),
                *(Ignore(f"{part}.{{rest}}", "images are not classified") for part in _VISION),
            ),
        ),
    ),
}
