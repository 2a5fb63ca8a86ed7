"""The older decoders: positions in a table (GPT, GPT-2, GPT-Neo, BigCode, OPT, BioGPT, CTRL), and GPT-J."""

from __future__ import annotations

from jaxpool.models.attention import AttentionConfig
from jaxpool.models.decoder import DecoderConfig
from jaxpool.models.norms import NormConfig
from jaxpool.ops.rope import Rope
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import (
    ATTENTION,
    MLP,
    family,
    fused,
    linear,
    llama_like,
    llama_table,
    qkv,
)
from jaxpool_conversions.rules import Ignore, Rule, Table


def _norm(fields: Fields) -> NormConfig:
    return NormConfig("layer", fields.get("layer_norm_epsilon"), bias=True)


def _summary(fields: Fields) -> None:
    for name in ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"):
        fields.get(name)  # of the double-heads model only


def _openai(fields: Fields) -> DecoderConfig:
    _summary(fields)
    activation = fields.get("afn")
    return llama_like(
        fields,
        norm=_norm(fields),
        norms="sum",
        final_norm=None,
        attention={"qkv_bias": True, "out_bias": True},
        mlp={
            "gated": False,
            "bias": True,
            "inner": 4 * fields.get("hidden_size"),
            # Its name for the approximation by tanh.
            "activation": "gelu_new" if activation == "gelu" else activation,
        },
        ropes=(),
        positions=fields.get("max_position_embeddings"),
    )


def _gpt2(fields: Fields, kv_heads: int | None = None) -> DecoderConfig:
    fields.require("add_cross_attention", False)
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    return llama_like(
        fields,
        norm=_norm(fields),
        attention={
            "kv_heads": kv_heads or heads,
            "scale": (width // heads) ** -0.5 if fields.get("scale_attn_weights") else 1.0,
            "qkv_bias": True,
            "out_bias": True,
        },
        mlp={
            "gated": False,
            "bias": True,
            "inner": fields.get("n_inner") or 4 * width,
            "activation": fields.get("activation_function"),
        },
        ropes=(),
        positions=fields.get("max_position_embeddings"),
    )


def _gpt2_alone(fields: Fields) -> DecoderConfig:
    _summary(fields)
    fields.require("scale_attn_by_inverse_layer_idx", False)
    fields.require("reorder_and_upcast_attn", False)
    return _gpt2(fields)


def _ctrl(fields: Fields) -> DecoderConfig:
    width = fields.get("hidden_size")
    return llama_like(
        fields,
        norm=NormConfig("layer", 1e-6, bias=True),
        final_norm=_norm(fields),
        attention={"qkv_bias": True, "out_bias": True},
        mlp={"gated": False, "bias": True, "inner": fields.get("dff"), "activation": "relu"},
        ropes=(),
        embedding_scale=width**0.5,
        sinusoids=True,
    )


def _gpt_neo(fields: Fields) -> DecoderConfig:
    # Pairs of kinds and how often they repeat, which transformers spells out.
    fields.get("attention_types")
    window = fields.get("window_size")
    return llama_like(
        fields,
        norm=_norm(fields),
        attention={"out_bias": True, "scale": 1.0},
        mlp={
            "gated": False,
            "bias": True,
            "inner": fields.get("intermediate_size") or 4 * fields.get("hidden_size"),
            "activation": fields.get("activation_function"),
        },
        ropes=(),
        positions=fields.get("max_position_embeddings"),
        windows=tuple(window if kind == "local" else None for kind in fields.get("attention_layers")),
    )


def _gptj(fields: Fields) -> DecoderConfig:
    return llama_like(
        fields,
        norm=_norm(fields),
        attention={"interleaved": True},
        mlp={
            "gated": False,
            "bias": True,
            "inner": fields.get("n_inner") or 4 * fields.get("hidden_size"),
            "activation": fields.get("activation_function"),
        },
        parallel="one",
        ropes=(Rope(theta=10000.0, size=fields.get("rotary_dim")),),
    )


def _gpt_bigcode(fields: Fields) -> DecoderConfig:
    for name in ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"):
        fields.get(name)  # always, here
    return _gpt2(fields, kv_heads=1 if fields.get("multi_query") else None)


def _gpt_bigcode_table(config: DecoderConfig) -> Table:
    attention = config.attention
    assert isinstance(attention, AttentionConfig)
    one_key = attention.kv_heads == 1
    parts = qkv(ATTENTION, heads=attention.heads if one_key else 1, groups=1 if one_key else attention.heads)
    return _table(
        (*fused("h.{layer}.attn.c_attn", parts), *linear("h.{layer}.attn.c_proj", f"{ATTENTION}.out")),
        _C_MLP,
    )


def _opt(fields: Fields) -> DecoderConfig:
    for name in ("layerdrop", "init_std"):
        fields.get(name)  # training only
    affine, bias = fields.get("layer_norm_elementwise_affine"), fields.get("enable_bias")
    norm, before = NormConfig("layer", 1e-5, scale=affine, bias=affine), fields.get("do_layer_norm_before")
    final, width = before and not fields.get("_remove_final_layer_norm"), fields.get("hidden_size")
    embedding_width = fields.get("word_embed_proj_dim")
    return llama_like(
        fields,
        norm=norm,
        norms="before" if before else "sum",
        final_norm=norm if final else None,
        attention={"qkv_bias": bias, "out_bias": bias},
        mlp={
            "gated": False,
            "bias": bias,
            "inner": fields.get("ffn_dim"),
            "activation": fields.get("activation_function"),
        },
        ropes=(),
        positions=fields.get("max_position_embeddings"),
        position_offset=2,
        embedding_width=embedding_width if embedding_width != width else None,
    )


def _biogpt(fields: Fields) -> DecoderConfig:
    for name in ("layerdrop", "activation_dropout", "layer_norm_eps"):
        fields.get(name)  # training only; the last is read by nobody
    return llama_like(
        fields,
        norm=NormConfig("layer", 1e-5, bias=True),
        attention={"qkv_bias": True, "out_bias": True},
        mlp={"gated": False, "bias": True},
        ropes=(),
        positions=fields.get("max_position_embeddings"),
        position_offset=2,
        embedding_scale=fields.get("hidden_size") ** 0.5 if fields.get("scale_embedding") else 1.0,
    )


def _table(
    attention: tuple[Rule, ...],
    mlp: tuple[Rule, ...],
    *,
    embedding: str = "wte",
    positions: str = "wpe",
    final_norm: str = "ln_f",
) -> Table:
    return llama_table(
        prefix="transformer.",
        layers="h",
        embedding=embedding,
        norms={"ln_1": "attention_norm", "ln_2": "mlp_norm"},
        attention=attention,
        mlp=mlp,
        final_norm=final_norm,
        more=(Rule(f"{positions}.weight", "backbone.positions.table"),),
        ignore=tuple(Ignore(f"h.{{layer}}.{name}", "a buffer: the causal mask") for name in _MASKS),
    )


def _projections(source: str, out: str = "out_proj") -> tuple[Rule, ...]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", out: "out"}
    return tuple(row for name, ours in names.items() for row in linear(f"{source}.{name}", f"{ATTENTION}.{ours}"))


_MASKS = ("attn.bias", "attn.masked_bias", "attn.attention.bias", "attn.attention.masked_bias")
_C_MLP = (*linear("h.{layer}.mlp.c_fc", f"{MLP}.up"), *linear("h.{layer}.mlp.c_proj", f"{MLP}.down"))
_CONV = (
    (
        *fused("h.{layer}.attn.c_attn", qkv(ATTENTION, axis=1), transpose=False),
        *linear("h.{layer}.attn.c_proj", f"{ATTENTION}.out", transpose=False),
    ),
    (
        *linear("h.{layer}.mlp.c_fc", f"{MLP}.up", transpose=False),
        *linear("h.{layer}.mlp.c_proj", f"{MLP}.down", transpose=False),
    ),
)
_OPENAI = _table(*_CONV, embedding="tokens_embed", positions="positions_embed")
_GPT_NEO = _table(_projections("h.{layer}.attn.attention"), _C_MLP)
_GPTJ = _table(
    _projections("h.{layer}.attn"),
    (*linear("h.{layer}.mlp.fc_in", f"{MLP}.up"), *linear("h.{layer}.mlp.fc_out", f"{MLP}.down")),
)
_CTRL = llama_table(
    prefix="transformer.",
    layers="h",
    embedding="w",
    norms={"layernorm1": "attention_norm", "layernorm2": "mlp_norm"},
    attention=tuple(
        row
        for name, ours in {"Wq": "query", "Wk": "key", "Wv": "value", "dense": "out"}.items()
        for row in linear(f"h.{{layer}}.multi_head_attention.{name}", f"{ATTENTION}.{ours}")
    ),
    mlp=(*linear("h.{layer}.ffn.0", f"{MLP}.up"), *linear("h.{layer}.ffn.2", f"{MLP}.down")),
    final_norm="layernorm",
)


def _fairseq(prefix: str, root: str, final_norm: str) -> Table:
    layer = f"{root}layers.{{layer}}"
    return llama_table(
        prefix=prefix,
        layers=f"{root}layers",
        embedding=f"{root}embed_tokens",
        norms={"self_attn_layer_norm": "attention_norm", "final_layer_norm": "mlp_norm"},
        attention=_projections(f"{layer}.self_attn"),
        mlp=(*linear(f"{layer}.fc1", f"{MLP}.up"), *linear(f"{layer}.fc2", f"{MLP}.down")),
        final_norm=f"{root}{final_norm}",
        more=(
            Rule(f"{root}embed_positions.weight", "backbone.positions.table"),
            *linear(f"{root}project_in", "backbone.project_in"),
            *linear(f"{root}project_out", "backbone.project_out"),
        ),
    )


FAMILIES = {
    "gpt2": family("GPT2", _gpt2_alone, _table(*_CONV)),
    "openai-gpt": family("OpenAIGPT", _openai, _OPENAI),
    "ctrl": family("CTRL", _ctrl, _CTRL),
    "gpt_neo": family("GPTNeo", _gpt_neo, _GPT_NEO),
    "gptj": family("GPTJ", _gptj, _GPTJ),
    "gpt_bigcode": family("GPTBigCode", _gpt_bigcode, _gpt_bigcode_table),
    "opt": family("OPT", _opt, _fairseq("model.", "decoder.", "final_layer_norm")),
    "biogpt": family("BioGpt", _biogpt, _fairseq("biogpt.", "", "layer_norm")),
}
