"""XLM and FlauBERT: BERT's layers under other names, perhaps with norms first; a head of one layer on the first token.

Their classes add embeddings of tokens for segment types, where they are given; jaxpool gives none, as transformers 5.
"""

from __future__ import annotations

from jaxpool.models.decoder import Decoder, DecoderConfig
from jaxpool.models.norms import NormConfig
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import llama_like
from jaxpool_conversions.families.table_rows import rows
from jaxpool_conversions.rules import Ignore, Table


def _config(fields: Fields) -> DecoderConfig:
    for name in ("n_langs", "use_lang_emb", "lang_id", "asm", "sinusoidal_embeddings", "mask_index", "unk_index"):
        fields.get(name)  # languages that nobody names, heads of pretraining, and tables that the file holds anyway
    for name in ("bos_index", "eos_index", "pad_index", "mask_token_id", "embed_init_std", "start_n_top", "end_n_top"):
        fields.get(name)
    fields.get("layerdrop")  # training only
    fields.require("is_encoder", True)
    width, norm = fields.get("emb_dim"), NormConfig("layer", fields.get("layer_norm_eps"), bias=True)
    return llama_like(
        fields,
        norm=norm,
        norms="before" if fields.get("pre_norm", False) else "sum",
        final_norm=None,
        embedding_norm=norm,
        attention={"qkv_bias": True, "out_bias": True, "causal": fields.get("causal")},
        mlp={
            "gated": False,
            "bias": True,
            "inner": 4 * width,
            "activation": "gelu" if fields.get("gelu_activation") else "relu",
        },
        ropes=(),
        positions=fields.get("max_position_embeddings"),
    )


def _head(fields: Fields) -> HeadStyle:
    fields.require("summary_type", "first")
    fields.require("summary_use_proj", True)
    fields.require("summary_proj_to_labels", True)
    fields.require("summary_activation", None)
    return HeadStyle("CLS")


_NAMES = {
    "tokens": "embeddings",
    "positions": "position_embeddings",
    "embedding_norm": "layer_norm_emb",
    "layers.attention.query": "attentions.{layer}.q_lin",
    "layers.attention.key": "attentions.{layer}.k_lin",
    "layers.attention.value": "attentions.{layer}.v_lin",
    "layers.attention.out": "attentions.{layer}.out_lin",
    "layers.attention_norm": "layer_norm1.{layer}",
    "layers.mlp.up": "ffns.{layer}.lin1",
    "layers.mlp.down": "ffns.{layer}.lin2",
    "layers.mlp_norm": "layer_norm2.{layer}",
}


def _family(prefix_class: str) -> Family:
    return Family(
        name="decoder",
        backbone=Decoder,
        config=_config,
        head=_head,
        table=Table(
            prefix="transformer.",
            rules=rows(_NAMES),
            head_names=("sequence_summary.summary", "score"),
            ignore=(
                Ignore("lang_embeddings.weight", "embeddings of languages, which nobody names"),
                Ignore("position_ids", "a buffer that counts 0, 1, 2, …"),
                Ignore("pred_layer.{rest}", "language-model head"),
            ),
            embedding="embeddings.weight",
        ),
        prefix_class=prefix_class,
        head_bias=True,
    )


FAMILIES = {"xlm": _family("XLM"), "flaubert": _family("Flaubert")}
