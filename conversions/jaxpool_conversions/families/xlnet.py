"""XLNet: attention by distance and segment; its classifier reads the last token through a projection."""

from __future__ import annotations

from jaxpool.errors import ConfigError
from jaxpool.models.xlnet import XLNet, XLNetConfig
from jaxpool.ops.pooling import Pooling
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.table_rows import linear, rows
from jaxpool_conversions.rules import Ignore, Rule, Table


def _config(fields: Fields) -> XLNetConfig:
    for name in ("mem_len", "reuse_len", "use_mems_eval", "use_mems_train", "start_n_top", "end_n_top"):
        fields.get(name)  # of memories between calls, which one text has none of, and of answers to questions
    fields.require("attn_type", "bi", "uni")
    fields.require("bi_data", False)
    causal = fields.get("attn_type") == "uni"
    if causal:  # it changes causal masks only
        fields.require("same_length", False)
    width, heads, clamp = fields.get("d_model"), fields.get("n_head"), fields.get("clamp_len")
    fields.get("same_length")
    return XLNetConfig(
        vocab=fields.get("vocab_size"),
        width=width,
        layers=fields.get("n_layer"),
        heads=heads,
        head_size=fields.get("d_head") or width // heads,
        mlp=fields.get("d_inner"),
        activation=fields.get("ff_activation"),
        norm_eps=fields.get("layer_norm_eps"),
        causal=causal,
        clamp=clamp if clamp > 0 else None,
    )


_SUMMARIES: dict[str, Pooling] = {"last": "LAST", "first": "CLS", "mean": "MEAN"}


def _head(fields: Fields) -> HeadStyle:
    fields.require("summary_use_proj", True)
    fields.require("summary_activation", "tanh")
    kind = fields.get("summary_type")
    if kind not in _SUMMARIES:
        raise ConfigError(
            f"config.json sets summary_type={kind!r}; jaxpool implements {', '.join(_SUMMARIES)} for XLNet."
        )
    return HeadStyle(_SUMMARIES[kind], dense="tanh")


_LAYER, _ATTENTION = "layer.{layer}", "backbone.layers.attention"
_RAW = {"q": "query", "k": "key", "v": "value", "o": "out", "r": "distance", "r_w_bias": "content_bias",
        "r_r_bias": "distance_bias", "r_s_bias": "segment_bias", "seg_embed": "segments"}  # fmt: skip
"""Parameters that are no modules' in the checkpoint, and ours."""

_NAMES = {
    "tokens": "word_embedding",
    "layers.attention_norm": f"{_LAYER}.rel_attn.layer_norm",
    "layers.up": f"{_LAYER}.ff.layer_1",
    "layers.down": f"{_LAYER}.ff.layer_2",
    "layers.mlp_norm": f"{_LAYER}.ff.layer_norm",
}

FAMILIES = {
    "xlnet": Family(
        name="xlnet",
        backbone=XLNet,
        config=_config,
        head=_head,
        table=Table(
            prefix="transformer.",
            rules=(
                *rows(_NAMES),
                *(Rule(f"{_LAYER}.rel_attn.{theirs}", f"{_ATTENTION}.{ours}") for theirs, ours in _RAW.items()),
            ),
            head=linear("sequence_summary.summary", "head.dense"),
            head_names=("logits_proj", "score"),
            outside=("sequence_summary",),
            ignore=(
                Ignore("mask_emb", "the query stream of pretraining"),
                Ignore("lm_loss.{rest}", "language-model head"),
            ),
            embedding="word_embedding.weight",
        ),
        prefix_class="XLNet",
        head_bias=True,
        types=True,
    )
}
