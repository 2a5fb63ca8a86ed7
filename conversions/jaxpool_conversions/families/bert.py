"""BERT checkpoints, and what its relatives share with it: field names, module names, ignored tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxpool.errors import ConfigError
from jaxpool.models.bert import Bert, BertConfig
from jaxpool.ops.alibi import slopes
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.table_rows import linear, rows
from jaxpool_conversions.rules import Ignore, Part, Rule, Table, Transpose

LAYER = "encoder.layer.{layer}"

NAMES = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "layers.attention.query": f"{LAYER}.attention.self.query",
    "layers.attention.key": f"{LAYER}.attention.self.key",
    "layers.attention.value": f"{LAYER}.attention.self.value",
    "layers.attention.out": f"{LAYER}.attention.output.dense",
    "layers.attention_norm": f"{LAYER}.attention.output.LayerNorm",
    "layers.up": f"{LAYER}.intermediate.dense",
    "layers.down": f"{LAYER}.output.dense",
    "layers.mlp_norm": f"{LAYER}.output.LayerNorm",
}
"""Our modules (paths in ``models.bert``) and BERT's names for them."""

POOLER = (linear("pooler.dense", "head.dense"), ("classifier", "score"))
"""Dense layer of the head and names of its last layer: BERT's pooler, then ``classifier``."""

CLASSIFIER = (linear("classifier.dense", "head.dense"), ("classifier.out_proj", "score"))
"""The same for RoBERTa's head: both layers in ``classifier``."""

IGNORED = (
    Ignore("embeddings.position_ids", "a buffer that counts 0, 1, 2, …"),
    Ignore("embeddings.token_type_ids", "a buffer of zeros"),
    Ignore("cls.predictions.{rest}", "masked-language-model head"),
    Ignore("cls.seq_relationship.{rest}", "next-sentence head"),
    Ignore("lm_head.{rest}", "masked-language-model head"),
)
UNUSED_POOLER = Ignore("pooler.{rest}", "the pooler of pretraining, which this classifier does not read")


def config(fields: Fields, **changes: Any) -> BertConfig:
    """The fields that BERT and its relatives share; ``changes`` are settings of ``BertConfig`` on top.

    Raises:
        ConfigError: the config makes a decoder of it, or has positions other than absolute ones.
    """
    # Both make a decoder of it, which has no sequence classifier in transformers either.
    fields.require("is_decoder", False)
    fields.require("add_cross_attention", False)
    limit = fields.get("max_position_embeddings")  # of no meaning but that, to resolve.py, if none are learned
    if "positions" not in changes:
        fields.require("position_embedding_type", "absolute", None)
        first = 0 if changes.get("padding_id") is None else changes["padding_id"] + 1
        changes["positions"] = limit - first
    read = {
        "vocab": "vocab_size",
        "types": "type_vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp": "intermediate_size",
        "activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
    }
    return BertConfig(**{ours: fields.get(theirs) for ours, theirs in read.items() if ours not in changes} | changes)


def padding(fields: Fields) -> int:
    """The padding token, from which RoBERTa-like positions count on.

    Raises:
        ConfigError: there is none.
    """
    token = fields.get("pad_token_id")
    if token is None:
        raise ConfigError(
            f"config.json sets pad_token_id to null, but positions of model_type {fields.model_type!r} count from it."
        )
    return int(token)


def table(
    prefix: str,
    names: dict[str, str] = NAMES,
    head: tuple[Any, tuple[str, ...]] = POOLER,
    ignore: tuple[Ignore, ...] = (),
) -> Table:
    """A conversion table of ``names``."""
    return Table(
        prefix=prefix,
        rules=rows(names),
        head=head[0],
        head_names=head[1],
        ignore=(*IGNORED, *(() if head is POOLER else (UNUSED_POOLER,)), *ignore),
        embedding=f"{names['tokens']}.weight",
    )


def family(prefix_class: str, read: Any, conversion: Table, dense: str = "tanh", types: bool = True) -> Family:
    """A family on the ``Bert`` backbone whose head is a dense layer on the first token, then a linear one.

    ``dense`` is the activation between them, or ``hidden_act`` for what the config says under that name.
    """
    return Family(
        name="bert",
        backbone=Bert,
        config=read,
        head=lambda fields: HeadStyle("CLS", dense=fields.get(dense) if dense == "hidden_act" else dense),
        table=conversion,
        prefix_class=prefix_class,
        head_bias=True,
        types=types,
    )


GATES = {"geglu": "gelu", "reglu": "relu"}
"""JinaBERT's ``feed_forward_type`` -> activation of the gate."""


def _bert(fields: Fields) -> BertConfig:
    """BERT; or JinaBERT (Günther et al. 2023, arXiv:2310.19923), whose config.json says BERT."""
    if fields.get("position_embedding_type") != "alibi":
        return config(fields)
    biases = slopes(fields.get("num_attention_heads"))
    kind = fields.get("feed_forward_type", "original")
    if kind == "original":
        return config(fields, positions=None, alibi=biases)
    fields.get("hidden_act")  # of the other kind
    fields.require("feed_forward_type", *GATES, "original")
    return config(fields, positions=None, alibi=biases, gated=True, activation=GATES[kind])


def _table(config: BertConfig) -> Table:
    if not config.gated:
        return table("bert.")
    gated = "mlp.gated_layers.weight"
    names = {ours: theirs for ours, theirs in NAMES.items() if ours not in ("positions", "layers.up")}
    names |= {"layers.down": f"{LAYER}.mlp.wo", "layers.mlp_norm": f"{LAYER}.mlp.layernorm"}
    halves = tuple(
        Rule(f"{LAYER}.{gated}", f"backbone.layers.{ours}.kernel", (Part(0, at, 2), Transpose()))
        for at, ours in enumerate(("gate", "up"))
    )
    whole = table("bert.", names)
    return replace(whole, rules=(*whole.rules, *halves))


def _head(fields: Fields) -> HeadStyle:
    return HeadStyle("CLS", dense="tanh", embedding="MEAN" if fields.get("emb_pooler") == "mean" else None)


FAMILIES = {"bert": replace(family("Bert", _bert, table("bert.")), head=_head, table_of=_table)}
