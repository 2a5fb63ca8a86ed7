"""Phi: the first generation parallel with biases everywhere, from the third on a Llama with fused projections."""

from __future__ import annotations

from jaxpool.models.attention import AttentionConfig
from jaxpool.models.decoder import DecoderConfig
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import (
    ATTENTION,
    MLP,
    family,
    fused,
    linear,
    llama_like,
    llama_table,
    norm,
    qkv,
)
from jaxpool_conversions.families.neox_stablelm_nemotron import persimmon
from jaxpool_conversions.rules import Part, Table


def _phi(fields: Fields) -> DecoderConfig:
    return persimmon(fields, parallel="one")


def _phi3(fields: Fields) -> DecoderConfig:
    fields.get("original_max_position_embeddings")  # folded into rope_parameters by transformers
    window = fields.get("sliding_window")
    return llama_like(fields, partial_rope=True, windows=(window,) * fields.get("num_hidden_layers"))


def _phi3_table(config: DecoderConfig) -> Table:
    attention = config.attention
    assert isinstance(attention, AttentionConfig)
    return llama_table(
        attention=(
            *fused(
                "layers.{layer}.self_attn.qkv_proj",
                qkv(ATTENTION, heads=attention.heads, kv_heads=attention.kv_heads),
            ),
            *linear("layers.{layer}.self_attn.o_proj", f"{ATTENTION}.out"),
        ),
        mlp=FUSED_MLP,
    )


FUSED_MLP = (
    *fused("layers.{layer}.mlp.gate_up_proj", [(f"{MLP}.gate", Part(0, 0, 2)), (f"{MLP}.up", Part(0, 1, 2))]),
    *linear("layers.{layer}.mlp.down_proj", f"{MLP}.down"),
)
"""Rows of an MLP whose gate and up projections are one tensor."""

_PHI = llama_table(
    norms={"input_layernorm": "attention_norm"},
    attention=(
        *linear("layers.{layer}.self_attn.q_proj", f"{ATTENTION}.query"),
        *linear("layers.{layer}.self_attn.k_proj", f"{ATTENTION}.key"),
        *linear("layers.{layer}.self_attn.v_proj", f"{ATTENTION}.value"),
        *linear("layers.{layer}.self_attn.dense", f"{ATTENTION}.out"),
        *norm("layers.{layer}.self_attn.q_layernorm", f"{ATTENTION}.query_norm"),
        *norm("layers.{layer}.self_attn.k_layernorm", f"{ATTENTION}.key_norm"),
    ),
    mlp=(*linear("layers.{layer}.mlp.fc1", f"{MLP}.up"), *linear("layers.{layer}.mlp.fc2", f"{MLP}.down")),
    final_norm="final_layernorm",
)

FAMILIES = {
    "phi": family("Phi", _phi, _PHI),
    "phi3": family("Phi3", _phi3, _phi3_table),
}
