"""DeBERTa, version 1, and versions 2 and 3, which are one model type."""

from __future__ import annotations

from typing import Any

from jaxpool.errors import ConfigError
from jaxpool.models.deberta import Convolution, Deberta, DebertaConfig, scale
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.bert import LAYER, NAMES
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import fused, qkv
from jaxpool_conversions.families.table_rows import linear, rows
from jaxpool_conversions.rules import Ignore, Rule, Table


def _config(fields: Fields, **changes: Any) -> DebertaConfig:
    """What both versions share; ``changes`` say the rest."""
    fields.get("legacy")  # of the masked-language-model head
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    narrow, kinds = fields.get("embedding_size", width), fields.get("pos_att_type") or ()
    if not isinstance(kinds, list | tuple) or not set(kinds) <= {"c2p", "p2c"}:
        raise ConfigError(f"config.json sets pos_att_type={kinds!r}; jaxpool implements a list of 'c2p' and 'p2c'.")
    relative, span = fields.get("relative_attention"), fields.get("max_relative_positions")
    positions = fields.get("max_position_embeddings")
    span = span if span >= 1 else positions
    settings: dict[str, Any] = {
        "vocab": fields.get("vocab_size"),
        "positions": positions if fields.get("position_biased_input") else None,
        "types": fields.get("type_vocab_size"),
        "width": width,
        "layers": fields.get("num_hidden_layers"),
        "heads": heads,
        "mlp": fields.get("intermediate_size"),
        "activation": fields.get("hidden_act"),
        "norm_eps": fields.get("layer_norm_eps"),
        "embed_width": None if narrow == width else narrow,
        # Terms count whether or not they are used.
        "scale": scale(width // heads, 1 + len(kinds)),
        "span": span if relative else 0,
        "buckets": 0,
        "furthest": span,
        "from_content": bool(relative) and "c2p" in kinds,
        "from_position": bool(relative) and "p2c" in kinds,
        "shared": False,
        "key_bias": True,
        "norm_relative": False,
        "conv": None,
    }
    return DebertaConfig(**settings | changes)


def _v1(fields: Fields) -> DebertaConfig:
    fields.require("talking_head", False)
    return _config(fields, key_bias=False)


def _v2(fields: Fields) -> DebertaConfig:
    fields.require("attention_head_size", fields.get("hidden_size") // fields.get("num_attention_heads"))
    changes: dict[str, Any] = {"shared": bool(fields.get("share_att_key", False))}
    buckets = fields.get("position_buckets", -1)
    if buckets > 0 and fields.get("relative_attention"):
        changes |= {"buckets": buckets, "span": buckets}
    norms = str(fields.get("norm_rel_ebd", "none")).lower().split("|")
    changes["norm_relative"] = "layer_norm" in (norm.strip() for norm in norms)
    taps = fields.get("conv_kernel_size", 0)
    if taps > 0:
        if taps % 2 == 0:
            raise ConfigError(f"config.json sets conv_kernel_size={taps}; transformers computes odd ones only.")
        changes["conv"] = Convolution(taps, fields.get("conv_groups", 1), fields.get("conv_act", "tanh"))
    return _config(fields, **changes)


def _head(fields: Fields) -> HeadStyle:
    fields.require("pooler_hidden_size", fields.get("hidden_size"))
    return HeadStyle("CLS", dense=fields.get("pooler_hidden_act"))


_ATTENTION = f"{LAYER}.attention.self"
_SHARED = {ours: theirs for ours, theirs in NAMES.items() if ours.partition(".attention.")[2] in ("", "out")}
_V2 = _SHARED | {
    "layers.attention.query": f"{_ATTENTION}.query_proj",
    "layers.attention.key": f"{_ATTENTION}.key_proj",
    "layers.attention.value": f"{_ATTENTION}.value_proj",
    "layers.attention.distance_key": f"{_ATTENTION}.pos_key_proj",
    "layers.attention.distance_query": f"{_ATTENTION}.pos_query_proj",
    "project": "embeddings.embed_proj",
    "relative": "encoder.rel_embeddings",
    "relative_norm": "encoder.LayerNorm",
    "conv.norm": "encoder.conv.LayerNorm",
}
_V1 = _SHARED | {
    "layers.attention.distance_key": f"{_ATTENTION}.pos_proj",
    "layers.attention.distance_query": f"{_ATTENTION}.pos_q_proj",
    "project": "embeddings.embed_proj",
    "relative": "encoder.rel_embeddings",
}
_CONV = (
    Rule("encoder.conv.conv.weight", "backbone.conv.kernel"),
    Rule("encoder.conv.conv.bias", "backbone.conv.bias"),
)


def _table(rules: tuple[Rule, ...]) -> Table:
    return Table(
        prefix="deberta.",
        rules=rules,
        head=linear("pooler.dense", "head.dense"),
        head_names=("classifier", "score"),
        outside=("pooler",),
        ignore=(
            Ignore("embeddings.position_embeddings.weight", "absolute positions, which this config does not add"),
            Ignore("embeddings.position_ids", "a buffer that counts 0, 1, 2, …"),
            Ignore("cls.predictions.{rest}", "masked-language-model head"),
            Ignore("lm_predictions.{rest}", "masked-language-model head"),
            Ignore("mask_predictions.{rest}", "head of pretraining"),
        ),
        embedding="embeddings.word_embeddings.weight",
    )


def _v1_table(config: DebertaConfig) -> Table:
    """Query, key and value alternate head by head; only two of them have a bias, each stored by itself."""
    weights = fused(f"{_ATTENTION}.in_proj", qkv("backbone.layers.attention", groups=config.heads))
    biases = (
        Rule(f"{_ATTENTION}.q_bias", "backbone.layers.attention.query.bias"),
        Rule(f"{_ATTENTION}.v_bias", "backbone.layers.attention.value.bias"),
    )
    return _table((*rows(_V1), *(row for row in weights if row.target.endswith("kernel")), *biases))


def _family(read: Any, table: Table, **more: Any) -> Family:
    return Family(
        name="deberta", backbone=Deberta, config=read, head=_head, table=table, head_bias=True, types=True, **more
    )


FAMILIES = {
    "deberta": _family(_v1, _table(()), table_of=_v1_table, prefix_class="Deberta"),
    "deberta-v2": _family(_v2, _table((*rows(_V2), *_CONV)), prefix_class="DebertaV2"),
}
