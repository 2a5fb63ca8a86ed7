"""BERT-like encoders with rotary positions: RoFormer, and ESM (proteins), which may have absolute ones as well."""

from __future__ import annotations

from jaxpool.models.bert import BertConfig
from jaxpool.ops.rope import Rope
from jaxpool_conversions.families.bert import CLASSIFIER, LAYER, NAMES, config, family, padding, table
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.rules import Ignore


def _roformer(fields: Fields) -> BertConfig:
    fields.require("rotary_value", False)
    narrow = fields.get("embedding_size")
    return config(
        fields,
        positions=None,
        rotations=fields.get("max_position_embeddings"),
        embed_width=None if narrow == fields.get("hidden_size") else narrow,
    )


_ROFORMER = NAMES | {"project": "embeddings_project", "rotations": "encoder.embed_positions"}


def _esm(fields: Fields) -> BertConfig:
    for name in ("is_folding_model", "esmfold_config", "vocab_list"):
        fields.require(name, False if name == "is_folding_model" else None)
    fields.require("position_embedding_type", "absolute", "rotary")
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    theta = fields.get("rope_theta")
    rotary = {"positions": None, "rope": Rope(theta=theta, size=width // heads)}
    mask = fields.get("mask_token_id")
    return config(
        fields,
        types=0,
        activation="gelu",
        pre_norm=True,
        embed_norm=bool(fields.get("emb_layer_norm_before")),
        mask_id=mask if fields.get("token_dropout") else None,
        **(rotary if fields.get("position_embedding_type") == "rotary" else {"padding_id": padding(fields)}),
    )


_ESM = NAMES | {
    "norm": "embeddings.layer_norm",
    "layers.attention_norm": f"{LAYER}.attention.LayerNorm",
    "layers.mlp_norm": f"{LAYER}.LayerNorm",
    "final_norm": "encoder.emb_layer_norm_after",
}
_FREQUENCIES = "a buffer: frequencies, which follow from rope_theta"

FAMILIES = {
    "roformer": family("RoFormer", _roformer, table("roformer.", _ROFORMER, head=CLASSIFIER), dense="hidden_act"),
    "esm": family(
        "Esm",
        _esm,
        table(
            "esm.",
            _ESM,
            head=CLASSIFIER,
            ignore=(
                Ignore("contact_head.{rest}", "predicts contacts between residues"),
                Ignore("rotary_embeddings.inv_freq", _FREQUENCIES),
                # transformers 5 writes one with a literal * for the layer.
                Ignore("encoder.layer.{rest}.attention.self.rotary_embeddings.inv_freq", _FREQUENCIES),
            ),
        ),
        types=False,
    ),
}
