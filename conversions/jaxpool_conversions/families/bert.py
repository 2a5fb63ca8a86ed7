"""BERT checkpoints (``bert-base-uncased`` and everything of ``model_type`` bert)."""

from __future__ import annotations

from jaxpool.models.bert import Bert, BertConfig
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.fields import Fields
from jaxpool_conversions.rules import Ignore, Rule, Table, Transpose


def _config(fields: Fields) -> BertConfig:
    # Both make a decoder of it, which has no sequence classifier in transformers either.
    fields.require("is_decoder", False)
    fields.require("add_cross_attention", False)
    fields.require("position_embedding_type", "absolute", None)
    return BertConfig(
        vocab=fields.get("vocab_size"),
        positions=fields.get("max_position_embeddings"),
        types=fields.get("type_vocab_size"),
        width=fields.get("hidden_size"),
        layers=fields.get("num_hidden_layers"),
        heads=fields.get("num_attention_heads"),
        mlp=fields.get("intermediate_size"),
        activation=fields.get("hidden_act"),
        norm_eps=fields.get("layer_norm_eps"),
    )


def _linear(source: str, target: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{source}.weight", f"{target}.kernel", (Transpose(),)),
        Rule(f"{source}.bias", f"{target}.bias"),
    )


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}.scale"), Rule(f"{source}.bias", f"{target}.bias")


_LAYER = "encoder.layer.{layer}"

TABLE = Table(
    prefix="bert.",
    rules=(
        Rule("embeddings.word_embeddings.weight", "backbone.tokens.table"),
        Rule("embeddings.position_embeddings.weight", "backbone.positions.table"),
        Rule("embeddings.token_type_embeddings.weight", "backbone.types.table"),
        *_norm("embeddings.LayerNorm", "backbone.norm"),
        *_linear(f"{_LAYER}.attention.self.query", "backbone.layers.attention.query"),
        *_linear(f"{_LAYER}.attention.self.key", "backbone.layers.attention.key"),
        *_linear(f"{_LAYER}.attention.self.value", "backbone.layers.attention.value"),
        *_linear(f"{_LAYER}.attention.output.dense", "backbone.layers.attention.out"),
        *_norm(f"{_LAYER}.attention.output.LayerNorm", "backbone.layers.attention_norm"),
        *_linear(f"{_LAYER}.intermediate.dense", "backbone.layers.up"),
        *_linear(f"{_LAYER}.output.dense", "backbone.layers.down"),
        *_norm(f"{_LAYER}.output.LayerNorm", "backbone.layers.mlp_norm"),
    ),
    head=_linear("pooler.dense", "head.dense"),
    head_names=("classifier", "score"),
    ignore=(
        Ignore("embeddings.position_ids", "a buffer that counts 0, 1, 2, …"),
        Ignore("cls.predictions.{rest}", "masked-language-model head"),
        Ignore("cls.seq_relationship.{rest}", "next-sentence head"),
    ),
    embedding="embeddings.word_embeddings.weight",
)

FAMILIES = {
    "bert": Family(
        name="bert",
        backbone=Bert,
        config=_config,
        head=lambda _: HeadStyle("CLS", dense="tanh"),
        table=TABLE,
        prefix_class="Bert",
        head_bias=True,
        types=True,
    )
}
