"""Jamba checkpoints: which layer is what follows from periods and offsets in the config."""

from __future__ import annotations

from jaxpool.models.attention import AttentionConfig
from jaxpool.models.jamba import Jamba, JambaConfig, LayerConfig, MambaConfig
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.moe import MoeConfig
from jaxpool.ops.moe import Router
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.fields import Fields
from jaxpool_conversions.rules import Ignore, Part, Rule, Table, Transpose

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


_LAYER, _OURS = "layers.{layer}", "backbone.layers"


def _linear(source: str, target: str, *parts: Part) -> tuple[Rule, Rule]:
    return (
        Rule(f"{_LAYER}.{source}.weight", f"{_OURS}.{target}.kernel", (*parts, Transpose())),
        Rule(f"{_LAYER}.{source}.bias", f"{_OURS}.{target}.bias", parts),
    )


TABLE = Table(
    prefix="model.",
    rules=(
        Rule("embed_tokens.weight", "backbone.tokens.table"),
        Rule(f"{_LAYER}.input_layernorm.weight", f"{_OURS}.mixer_norm.scale"),
        *_linear("self_attn.q_proj", "attention.query"),
        *_linear("self_attn.k_proj", "attention.key"),
        *_linear("self_attn.v_proj", "attention.value"),
        *_linear("self_attn.o_proj", "attention.out"),
        *_linear("mamba.in_proj", "mamba.input", Part(0, 0, 2)),
        *_linear("mamba.in_proj", "mamba.gate", Part(0, 1, 2)),
        Rule(f"{_LAYER}.mamba.conv1d.weight", f"{_OURS}.mamba.conv"),
        Rule(f"{_LAYER}.mamba.conv1d.bias", f"{_OURS}.mamba.conv_bias"),
        *_linear("mamba.x_proj", "mamba.select"),
        Rule(f"{_LAYER}.mamba.dt_layernorm.weight", f"{_OURS}.mamba.step_norm.scale"),
        Rule(f"{_LAYER}.mamba.b_layernorm.weight", f"{_OURS}.mamba.in_norm.scale"),
        Rule(f"{_LAYER}.mamba.c_layernorm.weight", f"{_OURS}.mamba.out_norm.scale"),
        *_linear("mamba.dt_proj", "mamba.step"),
        Rule(f"{_LAYER}.mamba.A_log", f"{_OURS}.mamba.log_decay", (Transpose(),)),
        Rule(f"{_LAYER}.mamba.D", f"{_OURS}.mamba.skip"),
        *_linear("mamba.out_proj", "mamba.out"),
        Rule(f"{_LAYER}.pre_ff_layernorm.weight", f"{_OURS}.mlp_norm.scale"),
        *_linear("feed_forward.gate_proj", "mlp.gate"),
        *_linear("feed_forward.up_proj", "mlp.up"),
        *_linear("feed_forward.down_proj", "mlp.down"),
        *_linear("feed_forward.router", "mlp.router"),
        *_linear("feed_forward.experts.{expert}.gate_proj", "mlp.experts.gate"),
        *_linear("feed_forward.experts.{expert}.up_proj", "mlp.experts.up"),
        *_linear("feed_forward.experts.{expert}.down_proj", "mlp.experts.down"),
        Rule(
            f"{_LAYER}.feed_forward.experts.gate_up_proj",
            f"{_OURS}.mlp.experts.gate.kernel",
            (Part(1, 0, 2), Transpose()),
        ),
        Rule(
            f"{_LAYER}.feed_forward.experts.gate_up_proj",
            f"{_OURS}.mlp.experts.up.kernel",
            (Part(1, 1, 2), Transpose()),
        ),
        Rule(f"{_LAYER}.feed_forward.experts.down_proj", f"{_OURS}.mlp.experts.down.kernel", (Transpose(),)),
        Rule("final_layernorm.weight", "backbone.norm.scale"),
    ),
    ignore=(Ignore("lm_head.weight", "vocabulary projection, not used by classification"),),
    embedding="embed_tokens.weight",
)

FAMILIES = {
    "jamba": Family(
        name="jamba",
        backbone=Jamba,
        config=_config,
        # A reward model: its scores are raw unless a request asks for an activation.
        head=lambda _: HeadStyle("LAST", use_activation=False),
        table=TABLE,
        prefix_class="Jamba",
    )
}
