"""Jamba checkpoints: which layer is what follows from periods and offsets in the config."""

from __future__ import annotations

from jaxpool.models.attention import AttentionConfig
from jaxpool.models.jamba import Jamba, JambaConfig, LayerConfig, MambaConfig
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.moe import MoeConfig
from jaxpool.ops.moe import Router
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import MLP, fused, linear, llama_table, norm
from jaxpool_conversions.families.mixtral_qwen_moe import expert_rows
from jaxpool_conversions.rules import Part, Rule, Transpose

_HOW = ("use_mamba_kernels", "use_mambapy", "use_associative_scan")
"""How transformers computes the same numbers."""


def _config(fields: Fields) -> JambaConfig:
    for name in (*_HOW, "max_position_embeddings"):  # a limit, not a size: resolve.py reads it
        fields.get(name)
    width, heads, inner = fields.get("hidden_size"), fields.get("num_attention_heads"), fields.get("intermediate_size")
    activation, eps, experts = fields.get("hidden_act"), fields.get("rms_norm_eps"), fields.get("num_experts")
    head_size = width // heads
    attention = AttentionConfig(
        width=width,
        heads=heads,
        kv_heads=fields.get("num_key_value_heads"),
        head_size=head_size,
        scale=head_size**-0.5,
        causal=True,
        qkv_bias=False,
        out_bias=False,
    )
    mamba = MambaConfig(
        width=width,
        inner=width * fields.get("mamba_expand"),
        states=fields.get("mamba_d_state"),
        taps=fields.get("mamba_d_conv"),
        step_rank=fields.get("mamba_dt_rank"),
        activation=activation,
        conv_bias=fields.get("mamba_conv_bias"),
        bias=fields.get("mamba_proj_bias"),
        norm_eps=eps,
    )
    dense = MlpConfig(width, inner, activation)
    mixture = MoeConfig(width, inner, activation, Router(experts, fields.get("num_experts_per_tok")))
    attends = _every(fields, "attn_layer_period", "attn_layer_offset")
    mixes = _every(fields, "expert_layer_period", "expert_layer_offset")
    return JambaConfig(
        vocab=fields.get("vocab_size"),
        width=width,
        heads=heads,
        head_size=head_size,
        norm_eps=eps,
        kinds=tuple(
            LayerConfig(attention if attend else mamba, mixture if mix and experts > 1 else dense)
            for attend, mix in zip(attends, mixes)
        ),
    )


def _every(fields: Fields, period: str, offset: str) -> list[bool]:
    return [i % fields.get(period) == fields.get(offset) for i in range(fields.get("num_hidden_layers"))]


_MAMBA, _FORWARD, _OURS = "layers.{layer}.mamba", "layers.{layer}.feed_forward", "backbone.layers.mamba"

TABLE = llama_table(
    norms={"input_layernorm": "mixer_norm", "pre_ff_layernorm": "mlp_norm"},
    mlp=(
        *linear(f"{_FORWARD}.gate_proj", f"{MLP}.gate"),
        *linear(f"{_FORWARD}.up_proj", f"{MLP}.up"),
        *linear(f"{_FORWARD}.down_proj", f"{MLP}.down"),
        *linear(f"{_FORWARD}.router", f"{MLP}.router"),
        *expert_rows(_FORWARD, "gate_proj", "up_proj", "down_proj"),
    ),
    more=(
        *fused(f"{_MAMBA}.in_proj", [(f"{_OURS}.input", Part(0, 0, 2)), (f"{_OURS}.gate", Part(0, 1, 2))]),
        Rule(f"{_MAMBA}.conv1d.weight", f"{_OURS}.conv"),
        Rule(f"{_MAMBA}.conv1d.bias", f"{_OURS}.conv_bias"),
        *linear(f"{_MAMBA}.x_proj", f"{_OURS}.select"),
        *norm(f"{_MAMBA}.dt_layernorm", f"{_OURS}.step_norm"),
        *norm(f"{_MAMBA}.b_layernorm", f"{_OURS}.in_norm"),
        *norm(f"{_MAMBA}.c_layernorm", f"{_OURS}.out_norm"),
        *linear(f"{_MAMBA}.dt_proj", f"{_OURS}.step"),
        Rule(f"{_MAMBA}.A_log", f"{_OURS}.log_decay", (Transpose(),)),
        Rule(f"{_MAMBA}.D", f"{_OURS}.skip"),
        *linear(f"{_MAMBA}.out_proj", f"{_OURS}.out"),
    ),
    final_norm="final_layernorm",
)


def _head(fields: Fields) -> HeadStyle:
    """In vLLM the sequence classifier is a reward model, with raw scores unless asked; converted models are none."""
    return HeadStyle(
        "NOT_PAD", use_activation="JambaForSequenceClassification" not in (fields.get("architectures") or ())
    )


FAMILIES = {
    "jamba": Family(
        name="jamba",
        backbone=Jamba,
        config=_config,
        head=_head,
        table=TABLE,
        prefix_class="Jamba",
    )
}
