"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): layers that see far and near in turn, each with its rotary base.

The decoder of the same name (Weller et al. 2025, arXiv:2507.11412) is causal and otherwise equal.
"""

from __future__ import annotations

from jaxpool.errors import ConfigError
from jaxpool.models.attention import AttentionConfig
from jaxpool.models.decoder import Decoder, DecoderConfig
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.norms import NormConfig
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import fused, qkv
from jaxpool_conversions.families.rope_fields import rope
from jaxpool_conversions.families.table_rows import embedding, linear, norm
from jaxpool_conversions.rules import Ignore, Part, Table

KINDS = ("full_attention", "sliding_attention")

INERT = (
    # of the masked-language-model head
    "sparse_prediction", "sparse_pred_ignore_index", "decoder_bias",
    # how flash attention computes the same
    "deterministic_flash_attn",
)  # fmt: skip


def _config(fields: Fields, *, causal: bool) -> DecoderConfig:
    for name in INERT:
        fields.get(name)
    width, heads, bias = fields.get("hidden_size"), fields.get("num_attention_heads"), fields.get("attention_bias")
    parameters, kinds = fields.get("rope_parameters"), fields.get("layer_types")
    if not set(kinds) <= parameters.keys() or not set(kinds) <= set(KINDS):
        raise ConfigError(
            f"config.json has layer_types {sorted(set(kinds))} and rope_parameters of {sorted(parameters)}; "
            f"both must be among {', '.join(KINDS)}."
        )
    norm_config = NormConfig("layer", fields.get("norm_eps"), bias=fields.get("norm_bias"))
    used = tuple(kind for kind in KINDS if kind in kinds)
    fields.get("local_attention")  # both ways, read through sliding_window: half of it
    window = fields.get("sliding_window") + (0 if causal else 1)
    return DecoderConfig(
        vocab=fields.get("vocab_size"),
        width=width,
        layers=fields.get("num_hidden_layers"),
        attention=AttentionConfig(
            width=width,
            heads=heads,
            kv_heads=heads,
            head_size=width // heads,
            scale=(width // heads) ** -0.5,
            causal=causal,
            qkv_bias=bias,
            out_bias=bias,
        ),
        mlp=MlpConfig(
            width, fields.get("intermediate_size"), fields.get("hidden_activation"), bias=fields.get("mlp_bias")
        ),
        norm=norm_config,
        embedding_norm=norm_config,
        final_norm=norm_config,
        first_bare=True,
        ropes=tuple(rope(fields, width // heads, parameters=parameters[kind]) for kind in used),
        layer_ropes=tuple(used.index(kind) for kind in kinds),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
    )


def _head(fields: Fields) -> HeadStyle:
    pooling = fields.get("classifier_pooling", "last").upper()
    return HeadStyle(
        pooling="NOT_PAD" if pooling == "LAST" else pooling,
        dense=fields.get("classifier_activation"),
        dense_bias=fields.get("classifier_bias"),
        norm_eps=fields.get("norm_eps"),
        norm_bias=fields.get("norm_bias"),
        embedding="LAST" if pooling == "LAST" else "CLS",  # vLLM's, whatever the classifier pools
        token_dense=True,
    )


_LAYER = "layers.{layer}"
_ROWS = (
    *embedding("embeddings.tok_embeddings", "backbone.tokens"),
    *norm("embeddings.norm", "backbone.embedding_norm"),
    *norm(f"{_LAYER}.attn_norm", "backbone.layers.attention_norm"),
    *linear(f"{_LAYER}.attn.Wo", "backbone.layers.attention.out"),
    *norm(f"{_LAYER}.mlp_norm", "backbone.layers.mlp_norm"),
    *fused(
        f"{_LAYER}.mlp.Wi", [("backbone.layers.mlp.gate", Part(0, 0, 2)), ("backbone.layers.mlp.up", Part(0, 1, 2))]
    ),
    *linear(f"{_LAYER}.mlp.Wo", "backbone.layers.mlp.down"),
    *norm("final_norm", "backbone.norm"),
)
_SEPARATE = tuple(
    row
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
    for row in linear(f"{_LAYER}.attn.{theirs}", f"backbone.layers.attention.{ours}")
)


def _family(prefix_class: str, *, causal: bool) -> Family:
    attention = _SEPARATE if causal else fused(f"{_LAYER}.attn.Wqkv", qkv("backbone.layers.attention"))
    return Family(
        name="decoder",
        backbone=Decoder,
        config=lambda fields: _config(fields, causal=causal),
        head=_head,
        table=Table(
            prefix="model.",
            rules=(*_ROWS, *attention),
            head=(*linear("head.dense", "head.dense"), *norm("head.norm", "head.norm")),
            head_names=("classifier", "score"),
            outside=("head",),
            ignore=(
                Ignore("decoder.{rest}", "vocabulary projection, not used by classification"),
                Ignore("lm_head.{rest}", "language-model head"),
            ),
            embedding="embeddings.tok_embeddings.weight",
        ),
        prefix_class=prefix_class,
        head_bias=not causal,
    )


FAMILIES = {
    "modernbert": _family("ModernBert", causal=False),
    "modernbert-decoder": _family("ModernBertDecoder", causal=True),
}
