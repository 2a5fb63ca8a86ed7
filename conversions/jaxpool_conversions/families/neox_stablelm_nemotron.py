"""Decoders with rotary positions and layer norms: GPT-NeoX, Persimmon, StableLM, StarCoder2, Nemotron."""

from __future__ import annotations

from typing import Any

from jaxpool.models.decoder import DecoderConfig
from jaxpool.models.norms import NormConfig
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import (
    ATTENTION,
    BUFFER,
    LLAMA_ATTENTION,
    MLP,
    by_head,
    family,
    linear,
    llama_like,
    llama_table,
    norm,
)
from jaxpool_conversions.rules import Ignore, Rule, Table


def _gpt_neox(fields: Fields) -> DecoderConfig:
    fields.get("is_decoder")  # read by nobody
    bias = fields.get("attention_bias")
    return llama_like(
        fields,
        norm=NormConfig("layer", fields.get("layer_norm_eps"), bias=True),
        attention={"qkv_bias": bias, "out_bias": bias},
        mlp={"gated": False, "bias": True},
        parallel="two" if fields.get("use_parallel_residual") else None,
        partial_rope=True,
    )


def _gpt_neox_table(config: DecoderConfig) -> Table:
    return llama_table(
        prefix="gpt_neox.",
        embedding="embed_in",
        attention=by_head("layers.{layer}.attention", config.heads),
        mlp=_DENSE_MLP,
        final_norm="final_layer_norm",
        ignore=(
            Ignore("layers.{layer}.attention.rotary_emb.inv_freq", BUFFER),
            Ignore("layers.{layer}.attention.bias", "a buffer: the causal mask"),
            Ignore("layers.{layer}.attention.masked_bias", "a buffer: the score of a masked key"),
            Ignore("embed_out.{rest}", "vocabulary projection, not used by classification"),
        ),
    )


def persimmon(fields: Fields, **switches: Any) -> DecoderConfig:
    """Persimmon; ``switches`` are what Phi changes in ``DecoderConfig``."""
    layer = NormConfig("layer", fields.get("layer_norm_eps"), bias=True)
    return llama_like(
        fields,
        norm=layer,
        attention={"qkv_bias": True, "out_bias": True, "norm": layer if fields.get("qk_layernorm") else None},
        mlp={"gated": False, "bias": True},
        partial_rope=True,
        **switches,
    )


def _persimmon_table(config: DecoderConfig) -> Table:
    norms = (
        *norm("layers.{layer}.self_attn.q_layernorm", f"{ATTENTION}.query_norm"),
        *norm("layers.{layer}.self_attn.k_layernorm", f"{ATTENTION}.key_norm"),
    )
    attention = (*by_head("layers.{layer}.self_attn", config.heads), *norms)
    return llama_table(attention=attention, mlp=_DENSE_MLP, final_norm="final_layernorm")


def _stablelm(fields: Fields) -> DecoderConfig:
    eps = fields.get("layer_norm_eps")
    return llama_like(
        fields,
        norm=NormConfig("layer", eps, bias=True),
        attention={
            "qkv_bias": fields.get("use_qkv_bias"),
            "norm": NormConfig("layer", eps) if fields.get("qk_layernorm") else None,
            "norm_over": "heads",
        },
        parallel="one" if fields.get("use_parallel_residual") else None,
        partial_rope=True,
    )


def _starcoder2(fields: Fields) -> DecoderConfig:
    bias, window = fields.get("use_bias"), fields.get("sliding_window")
    return llama_like(
        fields,
        norm=NormConfig("layer", fields.get("norm_epsilon"), bias=True),
        attention={"qkv_bias": bias, "out_bias": bias},
        mlp={"gated": False, "bias": bias},
        windows=(window,) * fields.get("num_hidden_layers"),
    )


def _nemotron(fields: Fields) -> DecoderConfig:
    bias = fields.get("attention_bias")
    return llama_like(
        fields,
        norm=NormConfig("layer", fields.get("norm_eps"), bias=True, offset=1.0),
        attention={"qkv_bias": bias, "out_bias": bias},
        mlp={"gated": False, "bias": fields.get("mlp_bias")},
        partial_rope=True,
    )


_DENSE_MLP = (
    *linear("layers.{layer}.mlp.dense_h_to_4h", f"{MLP}.up"),
    *linear("layers.{layer}.mlp.dense_4h_to_h", f"{MLP}.down"),
)
_STARCODER2 = llama_table(
    mlp=(*linear("layers.{layer}.mlp.c_fc", f"{MLP}.up"), *linear("layers.{layer}.mlp.c_proj", f"{MLP}.down"))
)
_STABLELM = llama_table(
    attention=(
        *LLAMA_ATTENTION,
        Rule("layers.{layer}.self_attn.q_layernorm.norms.{expert}.weight", f"{ATTENTION}.query_norm.scale"),
        Rule("layers.{layer}.self_attn.k_layernorm.norms.{expert}.weight", f"{ATTENTION}.key_norm.scale"),
    )
)

FAMILIES = {
    "gpt_neox": family("GPTNeoX", _gpt_neox, _gpt_neox_table),
    "persimmon": family("Persimmon", persimmon, _persimmon_table),
    "stablelm": family("StableLm", _stablelm, _STABLELM),
    "starcoder2": family("Starcoder2", _starcoder2, _STARCODER2),
    "nemotron": family("Nemotron", _nemotron, llama_table()),
}
