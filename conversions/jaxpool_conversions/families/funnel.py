"""Funnel Transformer, as its sequence classifier uses it: without the decoder."""

from __future__ import annotations

from jaxpool.errors import ConfigError
from jaxpool.models.funnel import Funnel, FunnelConfig
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.table_rows import embedding, linear, norm
from jaxpool_conversions.rules import Ignore, Rule, Table


def _config(fields: Fields) -> FunnelConfig:
    fields.get("num_decoder_layers")  # of the models for tokens
    architectures: list[str] = list(fields.get("architectures") or ())
    for name in architectures:
        if not name.endswith(("ForTokenClassification", "FunnelModel")):
            continue
        raise ConfigError(
            f"{name} ends in layers that bring back the tokens' own states, which jaxpool does not "
            "implement; it implements FunnelForSequenceClassification and FunnelBaseModel."
        )
    # Two ways to compute the same.
    fields.require("attention_type", "relative_shift", "factorized")
    fields.require("pooling_type", "mean", "max")
    return FunnelConfig(
        vocab=fields.get("vocab_size"),
        width=fields.get("d_model"),
        blocks=tuple(zip(fields.get("block_sizes"), fields.get("block_repeats"), strict=True)),
        heads=fields.get("n_head"),
        head_size=fields.get("d_head"),
        mlp=fields.get("d_inner"),
        activation=fields.get("hidden_act"),
        norm_eps=fields.get("layer_norm_eps"),
        pooling=fields.get("pooling_type"),
        separate_cls=fields.get("separate_cls"),
        truncate=fields.get("truncate_seq"),
        query_only=fields.get("pool_q_only"),
    )


def _block(depth: int) -> tuple[Rule, ...]:
    theirs, ours = f"encoder.blocks.{depth}.{{layer}}", f"backbone.block{depth}"
    vectors = {"r_w_bias": "content_bias", "r_r_bias": "distance_bias", "r_s_bias": "segment_bias",
               "r_kernel": "distance", "seg_embed": "segment"}  # fmt: skip
    parts = {"q_head": "query", "k_head": "key", "v_head": "value", "post_proj": "out"}
    return (
        *(Rule(f"{theirs}.attention.{name}", f"{ours}.attention.{part}") for name, part in vectors.items()),
        *(
            row
            for name, part in parts.items()
            for row in linear(f"{theirs}.attention.{name}", f"{ours}.attention.{part}")
        ),
        *norm(f"{theirs}.attention.layer_norm", f"{ours}.attention_norm"),
        *linear(f"{theirs}.ffn.linear_1", f"{ours}.up"),
        *linear(f"{theirs}.ffn.linear_2", f"{ours}.down"),
        *norm(f"{theirs}.ffn.layer_norm", f"{ours}.mlp_norm"),
    )


def _table(config: FunnelConfig | None) -> Table:
    return Table(
        prefix="funnel.",
        rules=(
            *embedding("embeddings.word_embeddings", "backbone.tokens"),
            *norm("embeddings.layer_norm", "backbone.norm"),
            *(row for depth in range(len(config.blocks) if config else 0) for row in _block(depth)),
        ),
        head=linear("classifier.linear_hidden", "head.dense"),
        head_names=("classifier.linear_out", "score"),
        ignore=(
            Ignore("decoder.{rest}", "layers of the models for tokens"),
            Ignore("lm_head.{rest}", "masked-language-model head"),
            Ignore("discriminator_predictions.{rest}", "head of pretraining"),
        ),
        embedding="embeddings.word_embeddings.weight",
    )


FAMILIES = {
    "funnel": Family(
        name="funnel",
        backbone=Funnel,
        config=_config,
        head=lambda _: HeadStyle("CLS", dense="tanh"),
        table=_table(None),
        table_of=_table,
        prefix_class="Funnel",
        head_bias=True,
        types=True,
        packs=False,
    )
}
