"""MobileBERT checkpoints."""

from __future__ import annotations

from typing import Literal

from jaxpool.errors import ConfigError
from jaxpool.models.mobilebert import MobileBert, MobileBertConfig
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.bert import LAYER, NAMES, table
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.rules import Ignore, Table

_NORMS: dict[str, Literal["none", "layer"]] = {"no_norm": "none", "layer_norm": "layer"}


def _config(fields: Fields) -> MobileBertConfig:
    width, bottleneck = fields.get("hidden_size"), fields.get("use_bottleneck")
    narrow = fields.get("intra_bottleneck_size")
    inner = narrow if bottleneck else width
    shared, whole = fields.get("key_query_shared_bottleneck"), fields.get("use_bottleneck_attention")
    if bottleneck and not shared and not whole and inner != width:
        raise ConfigError(
            f"config.json sets key_query_shared_bottleneck={shared} and use_bottleneck_attention={whole}: queries are "
            f"then made of hidden states, so intra_bottleneck_size={inner} and hidden_size={width} must be equal."
        )
    fields.require("normalization_type", *_NORMS)
    return MobileBertConfig(
        vocab=fields.get("vocab_size"),
        positions=fields.get("max_position_embeddings"),
        types=fields.get("type_vocab_size"),
        embed_width=fields.get("embedding_size"),
        width=width,
        inner=inner,
        layers=fields.get("num_hidden_layers"),
        heads=fields.get("num_attention_heads"),
        mlp=fields.get("intermediate_size"),
        mlps=fields.get("num_feedforward_networks"),
        activation=fields.get("hidden_act"),
        trigram=fields.get("trigram_input"),
        bottleneck=bottleneck,
        query_bottleneck=bottleneck and shared and not whole,
        value_bottleneck=bottleneck and whole,
        norm=_NORMS[fields.get("normalization_type")],
        norm_eps=fields.get("layer_norm_eps"),
    )


def _projection(ours: str, theirs: str) -> dict[str, str]:
    return {f"layers.{ours}.dense": f"{LAYER}.{theirs}.dense", f"layers.{ours}.norm": f"{LAYER}.{theirs}.LayerNorm"}


def _table(config: MobileBertConfig) -> Table:
    names = {name: NAMES[name] for name in ("tokens", "positions", "types", "norm")}
    names |= {"project": "embeddings.embedding_transformation"}
    names |= {f"layers.{name}": f"{LAYER}.attention.self.{name}" for name in ("query", "key", "value")}
    names |= _projection("enter", "bottleneck.input") | _projection("enter_query", "bottleneck.attention")
    names |= _projection("out", "attention.output") | _projection("leave", "output.bottleneck")
    names |= {"layers.mlp.up": f"{LAYER}.intermediate.dense"} | _projection("mlp.down", "output")
    for i in range(config.mlps - 1):
        names |= {f"layers.mlp_{i}.up": f"{LAYER}.ffn.{i}.intermediate.dense"}
        names |= _projection(f"mlp_{i}.down", f"ffn.{i}.output")
    unused = "this configuration does not use it"
    return table(
        "mobilebert.",
        names,
        ignore=(
            Ignore("cls.{rest}", "heads of pretraining"),
            Ignore("embeddings.embedding_transformation.{rest}", unused),
            Ignore(f"{LAYER}.bottleneck.attention.{{rest}}", unused),
            Ignore("pooler.{rest}", unused),
        ),
    )


def _head(fields: Fields) -> HeadStyle:
    return HeadStyle("CLS", dense="tanh" if fields.get("classifier_activation") else None)


FAMILIES = {
    "mobilebert": Family(
        name="mobilebert",
        backbone=MobileBert,
        config=_config,
        head=_head,
        table=table("mobilebert."),  # in name only: how many rows there are is the config's to say
        table_of=_table,
        prefix_class="MobileBert",
        head_bias=True,
        types=True,
    )
}
