"""Decoders whose attention scores grow with a key's position: BLOOM, MPT, and Falcon, which may rotate instead."""

from __future__ import annotations

import math

from jaxpool.models.attention import AttentionConfig
from jaxpool.models.decoder import DecoderConfig
from jaxpool.models.norms import NormConfig
from jaxpool.ops.alibi import Alibi, slopes
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import (
    ATTENTION,
    MLP,
    by_head,
    family,
    fused,
    linear,
    llama_like,
    llama_table,
    qkv,
)
from jaxpool_conversions.families.rope_fields import rope
from jaxpool_conversions.rules import Rule, Table


def _bloom(fields: Fields) -> DecoderConfig:
    fields.get("slow_but_exact")  # how the same is computed on several devices
    layer, width = NormConfig("layer", fields.get("layer_norm_epsilon"), bias=True), fields.get("hidden_size")
    return llama_like(
        fields,
        norm=layer,
        attention={"qkv_bias": True, "out_bias": True},
        mlp={"gated": False, "bias": True, "inner": 4 * width, "activation": "gelu_new"},
        ropes=(),
        alibi=Alibi(slopes(fields.get("num_attention_heads"))),
        embedding_norm=layer,
        residual_from_norm=fields.get("apply_residual_connection_post_layernorm"),
    )


def _mpt(fields: Fields) -> DecoderConfig:
    for name in ("logit_scale", "learned_pos_emb", "init_device", "emb_pdrop", "norm_type", "embedding_fraction"):
        fields.get(name)  # read by nobody
    fields.get("max_seq_len")  # a limit, not a size: resolve.py reads it
    fields.require("no_bias", True)
    inner = Fields(fields.get("attn_config"), inert=("attn_impl", "attn_pdrop"))
    for name, only in (("attn_type", "multihead_attention"), ("alibi", True), ("alibi_bias_max", 8), ("qk_ln", False)):
        inner.require(name, only)
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    attention = {"scale": inner.get("softmax_scale") or (width / heads) ** -0.5, "clip": inner.get("clip_qkv") or None}
    inner.finish()
    return llama_like(
        fields,
        norm=NormConfig("layer", fields.get("layer_norm_epsilon")),
        attention=attention,
        mlp={"gated": False, "inner": int(fields.get("expansion_ratio") * width), "activation": "gelu"},
        ropes=(),
        alibi=Alibi(_mpt_slopes(heads)),
    )


def _mpt_slopes(heads: int) -> tuple[float, ...]:
    whole = 2 ** math.ceil(math.log2(heads))
    all_of = [2.0 ** (-8 / whole * i) for i in range(1, whole + 1)]
    return tuple(all_of) if whole == heads else tuple((all_of[1::2] + all_of[::2])[:heads])


def _falcon(fields: Fields) -> DecoderConfig:
    bias, new = fields.get("bias"), fields.get("new_decoder_architecture")
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    one_key, parallel = fields.get("multi_query"), fields.get("parallel_attn")
    fields.require("num_ln_in_parallel_attn", None, 1, 2)
    norms = fields.get("num_ln_in_parallel_attn") or (2 if new else 1)
    if new:
        fields.require("parallel_attn", True)
    head_size, has_alibi = width // heads, fields.get("alibi")
    grouped = fields.get("num_kv_heads")
    ours = None if has_alibi else rope(fields, head_size)
    return llama_like(
        fields,
        norm=NormConfig("layer", fields.get("layer_norm_epsilon"), bias=True),
        attention={
            "kv_heads": grouped if new else 1 if one_key else heads,
            "qkv_bias": bias,
            "out_bias": bias,
        },
        mlp={
            "gated": False,
            "bias": bias,
            "inner": fields.get("ffn_hidden_size"),
            "activation": fields.get("activation"),
        },
        parallel=("two" if new and norms == 2 else "one") if parallel else None,
        ropes=() if ours is None else (ours,),
        alibi=Alibi(slopes(heads), head_size**-0.5, bfloat16=True) if has_alibi else None,
    )


def _falcon_table(config: DecoderConfig) -> Table:
    attention = config.attention
    assert isinstance(attention, AttentionConfig)
    heads, kv_heads = attention.heads, attention.kv_heads
    # Every key head follows the query heads that share it; with one query head each, all three alternate.
    parts = qkv(ATTENTION, heads=heads // kv_heads, groups=kv_heads)
    return _table(
        (*fused(f"{_ATTENTION}.query_key_value", parts), *linear(f"{_ATTENTION}.dense", f"{ATTENTION}.out")),
        {"input_layernorm": "attention_norm", "ln_attn": "attention_norm", "ln_mlp": "mlp_norm"}
        | {"post_attention_layernorm": "mlp_norm"},
    )


def _bloom_table(config: DecoderConfig) -> Table:
    return _table(
        by_head(_ATTENTION, config.heads),
        {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
    )


def _table(attention: tuple[Rule, ...], norms: dict[str, str]) -> Table:
    return llama_table(
        prefix="transformer.",
        layers="h",
        embedding="word_embeddings",
        norms=norms,
        attention=attention,
        mlp=(
            *linear("h.{layer}.mlp.dense_h_to_4h", f"{MLP}.up"),
            *linear("h.{layer}.mlp.dense_4h_to_h", f"{MLP}.down"),
        ),
        final_norm="ln_f",
        embedding_norm="word_embeddings_layernorm",
    )


_ATTENTION = "h.{layer}.self_attention"
_MPT = llama_table(
    prefix="transformer.",
    layers="blocks",
    embedding="wte",
    norms={"norm_1": "attention_norm", "norm_2": "mlp_norm"},
    attention=(
        *fused("blocks.{layer}.attn.Wqkv", qkv(ATTENTION)),
        *linear("blocks.{layer}.attn.out_proj", f"{ATTENTION}.out"),
    ),
    mlp=(
        *linear("blocks.{layer}.ffn.up_proj", f"{MLP}.up"),
        *linear("blocks.{layer}.ffn.down_proj", f"{MLP}.down"),
    ),
    final_norm="norm_f",
)

FAMILIES = {
    "bloom": family("Bloom", _bloom, _bloom_table),
    "mpt": family("Mpt", _mpt, _MPT),
    "falcon": family("Falcon", _falcon, _falcon_table),
}
