"""ESM C (proteins): a Llama that looks both ways, with LayerNorms, on queries and keys too, and scaled residuals."""

from __future__ import annotations

from dataclasses import replace

from jaxpool.models.decoder import Decoder, DecoderConfig
from jaxpool.models.norms import NormConfig
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.bert import CLASSIFIER
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import llama_like, llama_table

_EPS = 1e-5
"""Of every norm; torch's default, which no field changes."""


def _config(fields: Fields) -> DecoderConfig:
    fields.get("mask_token_id")  # for the tokenizer
    bias, bare = fields.get("attention_bias"), NormConfig("layer", _EPS)
    return llama_like(
        fields,
        norm=NormConfig("layer", _EPS, bias=True),
        final_norm=bare,
        attention={"causal": False, "qkv_bias": bias, "out_bias": bias, "norm": bare, "norm_over": "width"},
        mlp={"bias": fields.get("mlp_bias")},
        residual_scale=(fields.get("num_hidden_layers") / 36) ** -0.5,
    )


FAMILIES = {
    "esmc": Family(
        name="decoder",
        backbone=Decoder,
        config=_config,
        head=lambda _: HeadStyle("CLS", dense="tanh"),
        table=replace(llama_table(prefix="esmc."), head=CLASSIFIER[0], head_names=CLASSIFIER[1]),
        prefix_class="Esmc",
        head_bias=True,
    )
}
