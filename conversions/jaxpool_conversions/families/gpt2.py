"""GPT-2 checkpoints: Conv1D weights (already ``[in, out]``), fused qkv."""

from __future__ import annotations

from jaxpool.models.gpt2 import Gpt2, Gpt2Config
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.fields import Fields
from jaxpool_conversions.rules import Ignore, Part, Rule, Table

_SUMMARY = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels")


def _config(fields: Fields) -> Gpt2Config:
    fields.require("add_cross_attention", False)
    fields.require("scale_attn_by_inverse_layer_idx", False)
    fields.require("reorder_and_upcast_attn", False)
    for name in _SUMMARY:  # of the double-heads model only
        fields.get(name)
    width = fields.get("n_embd")
    return Gpt2Config(
        vocab=fields.get("vocab_size"),
        positions=fields.get("n_positions"),
        width=width,
        layers=fields.get("n_layer"),
        heads=fields.get("n_head"),
        mlp=fields.get("n_inner") or 4 * width,
        activation=fields.get("activation_function"),
        norm_eps=fields.get("layer_norm_epsilon"),
        scale_attention=fields.get("scale_attn_weights"),
    )


def _conv(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}.kernel"), Rule(f"{source}.bias", f"{target}.bias")


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}.scale"), Rule(f"{source}.bias", f"{target}.bias")


_LAYER = "h.{layer}"

TABLE = Table(
    prefix="transformer.",
    rules=(
        Rule("wte.weight", "backbone.tokens.table"),
        Rule("wpe.weight", "backbone.positions.table"),
        *_norm(f"{_LAYER}.ln_1", "backbone.layers.attention_norm"),
        *(
            Rule(
                f"{_LAYER}.attn.c_attn.{leaf}",
                f"backbone.layers.attention.{name}.{ours}",
                (Part(axis, i, 3),),
            )
            for i, name in enumerate(("query", "key", "value"))
            for leaf, ours, axis in (("weight", "kernel", 1), ("bias", "bias", 0))
        ),
        *_conv(f"{_LAYER}.attn.c_proj", "backbone.layers.attention.out"),
        *_norm(f"{_LAYER}.ln_2", "backbone.layers.mlp_norm"),
        *_conv(f"{_LAYER}.mlp.c_fc", "backbone.layers.up"),
        *_conv(f"{_LAYER}.mlp.c_proj", "backbone.layers.down"),
        *_norm("ln_f", "backbone.norm"),
    ),
    ignore=(
        Ignore(f"{_LAYER}.attn.bias", "a buffer: the causal mask"),
        Ignore(f"{_LAYER}.attn.masked_bias", "a buffer: the score of a masked key"),
        Ignore("lm_head.weight", "vocabulary projection, not used by classification"),
    ),
    embedding="wte.weight",
)

FAMILIES = {
    "gpt2": Family(
        name="gpt2",
        backbone=Gpt2,
        config=_config,
        head=lambda _: HeadStyle("LAST"),
        table=TABLE,
        prefix_class="GPT2",
    )
}
