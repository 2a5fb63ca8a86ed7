"""BERT-like encoders that convolve, or whose linear layers come in groups: ConvBERT, Nyströmformer, SqueezeBERT."""

from __future__ import annotations

import dataclasses

from jaxpool.errors import ConfigError
from jaxpool.models.bert import BertConfig
from jaxpool.models.convolution import GroupedAttentionConfig, MixedAttentionConfig, ValueConvolutionConfig
from jaxpool_conversions.families.bert import CLASSIFIER, LAYER, NAMES, config, family, table
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.table_rows import grouped, rows
from jaxpool_conversions.rules import Rule


def _odd(fields: Fields) -> int:
    taps = fields.get("conv_kernel_size")
    if taps % 2 == 0:
        raise ConfigError(f"config.json sets conv_kernel_size={taps}; it must be odd.")
    return int(taps)


def _convbert(fields: Fields) -> BertConfig:
    width, heads, narrow = (fields.get(name) for name in ("hidden_size", "num_attention_heads", "embedding_size"))
    heads = max(heads // fields.get("head_ratio"), 1)
    groups = fields.get("num_groups")
    return config(
        fields,
        heads=heads,
        embed_width=None if narrow == width else narrow,
        mixer=MixedAttentionConfig(width=width, heads=heads, head_size=width // heads // 2, taps=_odd(fields)),
        groups=(groups, groups),
    )


_SELF = f"{LAYER}.attention.self"
_CONVBERT = NAMES | {
    "project": "embeddings_project",
    "layers.attention.filters": f"{_SELF}.conv_kernel_layer",
    "layers.attention.convolved": f"{_SELF}.conv_out_layer",
}
_CONVBERT_RULES = (
    Rule(f"{_SELF}.key_conv_attn_layer.depthwise.weight", "backbone.layers.attention.depthwise"),
    Rule(f"{_SELF}.key_conv_attn_layer.pointwise.weight", "backbone.layers.attention.pointwise"),
    Rule(f"{_SELF}.key_conv_attn_layer.bias", "backbone.layers.attention.shift"),
    # Linear layers in groups have the names of plain ones; which exist is the config's to say.
    Rule(f"{LAYER}.intermediate.dense.weight", "backbone.layers.up.kernels"),
    Rule(f"{LAYER}.output.dense.weight", "backbone.layers.down.kernels"),
)


def _nystromformer(fields: Fields) -> BertConfig:
    landmarks, segments = fields.get("num_landmarks"), fields.get("segment_means_seq_len")
    if landmarks != segments:
        # transformers then takes texts of exactly segment_means_seq_len tokens, padding included in the means.
        raise ConfigError(
            f"config.json sets num_landmarks={landmarks} and segment_means_seq_len={segments}; jaxpool implements "
            "the exact attention that transformers uses where both are equal."
        )
    fields.require("inv_coeff_init_option", False)
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    taps = None if fields.get("conv_kernel_size") is None else _odd(fields)
    return config(fields, first_position=2, mixer=ValueConvolutionConfig(width=width, heads=heads, taps=taps))


def _squeezebert(fields: Fields) -> BertConfig:
    width, heads, narrow = (fields.get(name) for name in ("hidden_size", "num_attention_heads", "embedding_size"))
    if narrow != width:
        raise ConfigError(f"config.json sets embedding_size={narrow} and hidden_size={width}; they must be equal.")
    return config(
        fields,
        embed_eps=fields.get("layer_norm_eps"),
        norm_eps=1e-12,
        mixer=GroupedAttentionConfig(
            width=width,
            heads=heads,
            query_groups=fields.get("q_groups"),
            key_groups=fields.get("k_groups"),
            value_groups=fields.get("v_groups"),
            out_groups=fields.get("post_attention_groups"),
        ),
        groups=(fields.get("intermediate_groups"), fields.get("output_groups")),
        pointwise=True,
    )


_SQUEEZE = "encoder.layers.{layer}"
_SQUEEZEBERT = {ours: theirs for ours, theirs in NAMES.items() if not ours.startswith("layers.")} | {
    "layers.attention_norm": f"{_SQUEEZE}.post_attention.layernorm",
    "layers.mlp_norm": f"{_SQUEEZE}.output.layernorm",
}
_SQUEEZEBERT_RULES = tuple(
    rule
    for theirs, ours in (
        ("attention.query", "attention.query"),
        ("attention.key", "attention.key"),
        ("attention.value", "attention.value"),
        ("post_attention.conv1d", "attention.out"),
        ("intermediate.conv1d", "up"),
        ("output.conv1d", "down"),
    )
    for rule in grouped(f"{_SQUEEZE}.{theirs}", f"backbone.layers.{ours}")
)

_CONVBERT_TABLE = table("convbert.", _CONVBERT, head=CLASSIFIER)
_NYSTROM_TABLE = table("nystromformer.", head=CLASSIFIER)
_SQUEEZE_TABLE = table("transformer.", _SQUEEZEBERT)

FAMILIES = {
    "convbert": family(
        "ConvBert",
        _convbert,
        dataclasses.replace(_CONVBERT_TABLE, rules=rows(_CONVBERT) + _CONVBERT_RULES),
        dense="hidden_act",
    ),
    "nystromformer": family(
        "Nystromformer",
        _nystromformer,
        dataclasses.replace(
            _NYSTROM_TABLE, rules=(*rows(NAMES), Rule(f"{_SELF}.conv.weight", "backbone.layers.attention.filters"))
        ),
        dense="hidden_act",
    ),
    "squeezebert": family(
        "SqueezeBert",
        _squeezebert,
        dataclasses.replace(_SQUEEZE_TABLE, rules=rows(_SQUEEZEBERT) + _SQUEEZEBERT_RULES),
    ),
}
