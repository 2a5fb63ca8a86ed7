"""Decoders with mixtures of experts: Mixtral, Qwen-MoE, Phi-MoE, Granite-MoE, gpt-oss."""

from __future__ import annotations

from typing import Any

from jaxpool.errors import ConfigError
from jaxpool.models.decoder import DecoderConfig
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.moe import MoeConfig
from jaxpool.models.norms import NormConfig
from jaxpool.ops.moe import Router
from jaxpool.ops.rope import Rope
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import (
    ATTENTION,
    LLAMA_ATTENTION,
    LLAMA_MLP,
    MLP,
    family,
    layer_windows,
    linear,
    llama_like,
    llama_table,
    rms,
)
from jaxpool_conversions.families.llama import HUNYUAN_ATTENTION, hunyuan
from jaxpool_conversions.families.rope_fields import rope
from jaxpool_conversions.rules import Part, Rule, Transpose

EXPERTS = f"{MLP}.experts"


def expert_rows(module: str, gate: str, up: str, down: str, *, fused: str = "experts") -> tuple[Rule, ...]:
    """Rows of a mixture's experts: one by one, as the hub has them, or fused over a layer.

    Args:
        module: path of the mixture in the checkpoint, ``layers.{layer}.mlp`` say.
        gate, up, down: an expert's layers.
        fused: path in the module of the fused tensors, ``gate_up_proj`` and ``down_proj``.
    """
    one = f"{module}.experts.{{expert}}"
    return (
        *linear(f"{one}.{gate}", f"{EXPERTS}.gate"),
        *linear(f"{one}.{up}", f"{EXPERTS}.up"),
        *linear(f"{one}.{down}", f"{EXPERTS}.down"),
        Rule(f"{module}.{fused}.gate_up_proj", f"{EXPERTS}.gate.kernel", (Part(1, 0, 2), Transpose())),
        Rule(f"{module}.{fused}.gate_up_proj", f"{EXPERTS}.up.kernel", (Part(1, 1, 2), Transpose())),
        Rule(f"{module}.{fused}.down_proj", f"{EXPERTS}.down.kernel", (Transpose(),)),
    )


def mixture(fields: Fields, router: Router, *, inner: str = "intermediate_size", **switches: Any) -> MoeConfig:
    """A mixture whose experts have the config's activation and the inner width of the field ``inner``."""
    usual = {"width": fields.get("hidden_size"), "inner": fields.get(inner), "activation": fields.get("hidden_act")}
    return MoeConfig(**usual | {"router": router} | switches)


def sparse_layers(fields: Fields, mixed: MoeConfig) -> tuple[MoeConfig | MlpConfig, ...]:
    """Qwen's rule for which layers are mixtures: every ``decoder_sparse_step``-th, but for ``mlp_only_layers``."""
    dense = MlpConfig(mixed.width, fields.get("intermediate_size"), mixed.activation)
    step, plain = fields.get("decoder_sparse_step"), fields.get("mlp_only_layers") or ()
    layers = range(fields.get("num_hidden_layers"))
    return tuple(dense if i in plain or mixed.router.experts == 0 or (i + 1) % step else mixed for i in layers)


def _everywhere(fields: Fields) -> tuple[int | None, ...]:
    return (fields.get("sliding_window"),) * fields.get("num_hidden_layers")


def _mixtral(fields: Fields) -> DecoderConfig:
    fields.get("router_jitter_noise")  # training only
    router = Router(fields.get("num_local_experts"), fields.get("num_experts_per_tok"), renormalise=True)
    return llama_like(fields, mlp=mixture(fields, router), windows=_everywhere(fields))


def _qwen_router(fields: Fields) -> Router:
    chosen, renormalise = fields.get("num_experts_per_tok"), fields.get("norm_topk_prob")
    return Router(fields.get("num_experts"), chosen, renormalise=renormalise)


def _qwen2_moe(fields: Fields) -> DecoderConfig:
    mixed = mixture(
        fields,
        _qwen_router(fields),
        inner="moe_intermediate_size",
        shared=fields.get("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    bias = fields.get("qkv_bias")
    return llama_like(
        fields, attention={"qkv_bias": bias}, mlp=sparse_layers(fields, mixed), windows=layer_windows(fields)
    )


def _qwen3_moe(fields: Fields) -> DecoderConfig:
    fields.get("use_sliding_window")  # folded into sliding_window by transformers
    bias = fields.get("attention_bias")
    mixed = mixture(fields, _qwen_router(fields), inner="moe_intermediate_size")
    return llama_like(
        fields,
        attention={"qkv_bias": bias, "out_bias": bias, "norm": rms(fields)},
        mlp=sparse_layers(fields, mixed),
        windows=_everywhere(fields),
    )


def _phimoe(fields: Fields) -> DecoderConfig:
    for other in ("input_jitter_noise", "lm_head_bias"):  # training only; the vocabulary projection
        fields.get(other)
    fields.require("num_experts_per_tok", 2)
    router = Router(fields.get("num_local_experts"), 2, "sparse_mixer", tolerance=fields.get("router_jitter_noise"))
    bias = fields.get("attention_bias")
    return llama_like(
        fields,
        norm=NormConfig("layer", fields.get("rms_norm_eps"), bias=True),
        attention={"qkv_bias": bias, "out_bias": bias},
        mlp=mixture(fields, router),
        windows=_everywhere(fields),
        ropes=_phimoe_ropes(fields),
    )


def _phimoe_ropes(fields: Fields) -> tuple[Rope, ...] | None:
    """Phi-MoE names the attention factor of ``longrope`` itself, for short and for long rows. None: as usual."""
    given = dict(fields.get("rope_parameters") or {})
    if given.get("rope_type", "default") == "default":
        return None
    factor, long = given.get("short_mscale"), given.get("long_mscale")
    if factor is None or factor != long:
        raise ConfigError(
            f"config.json sets rope_parameters with short_mscale={factor!r} and long_mscale={long!r}, which jaxpool "
            "does not implement for model_type 'phimoe'; it implements two equal numbers."
        )
    head_size = fields.get("hidden_size") // fields.get("num_attention_heads")
    return (rope(fields, head_size, parameters=given | {"attention_factor": factor}),)


def _granitemoe(fields: Fields) -> DecoderConfig:
    fields.get("logits_scaling")  # of the vocabulary projection
    router = Router(fields.get("num_local_experts"), fields.get("num_experts_per_tok"), "softmax_of_best")
    bias = fields.get("attention_bias")
    return llama_like(
        fields,
        attention={"qkv_bias": bias, "out_bias": bias, "scale": fields.get("attention_multiplier")},
        mlp=mixture(fields, router),
        embedding_scale=fields.get("embedding_multiplier"),
        residual_scale=fields.get("residual_multiplier"),
    )


def _hunyuan(fields: Fields) -> DecoderConfig:
    experts, chosen, layers = fields.get("num_experts"), fields.get("moe_topk"), fields.get("num_hidden_layers")
    per_layer = chosen if isinstance(chosen, list) else [chosen] * layers
    shared = fields.get("intermediate_size")
    mixed = (mixture(fields, Router(experts, k, renormalise=True), shared=shared) for k in per_layer)
    return hunyuan(fields, mlp=tuple(mixed))


def _gpt_oss(fields: Fields) -> DecoderConfig:
    fields.require("hidden_act", "silu")  # inside the clamped gate, whatever the config says
    router = Router(fields.get("num_local_experts"), fields.get("num_experts_per_tok"), "softmax_of_best")
    bias = fields.get("attention_bias")
    return llama_like(
        fields,
        norm=rms(fields, late=True),
        attention={"qkv_bias": bias, "out_bias": bias, "sinks": True},
        mlp=mixture(
            fields,
            router,
            router_bias=True,
            bias=True,
            limit=fields.get("swiglu_limit"),
            sharpness=fields.get("swiglu_alpha"),
        ),
        windows=layer_windows(fields),
    )


_MIXTRAL = (
    *expert_rows("layers.{layer}.block_sparse_moe", "w1", "w3", "w2"),
    *expert_rows("layers.{layer}.mlp", "w1", "w3", "w2"),
    *linear("layers.{layer}.block_sparse_moe.gate", f"{MLP}.router"),
    *linear("layers.{layer}.mlp.gate", f"{MLP}.router"),
    *linear("layers.{layer}.mlp.router", f"{MLP}.router"),
)
_QWEN = (
    *LLAMA_MLP,
    *linear("layers.{layer}.mlp.gate", f"{MLP}.router"),
    *expert_rows("layers.{layer}.mlp", "gate_proj", "up_proj", "down_proj"),
    *linear("layers.{layer}.mlp.shared_expert.gate_proj", f"{MLP}.shared.gate"),
    *linear("layers.{layer}.mlp.shared_expert.up_proj", f"{MLP}.shared.up"),
    *linear("layers.{layer}.mlp.shared_expert.down_proj", f"{MLP}.shared.down"),
    *linear("layers.{layer}.mlp.shared_expert_gate", f"{MLP}.shared_gate"),
)
_GRANITE = (
    *linear("layers.{layer}.block_sparse_moe.router.layer", f"{MLP}.router"),
    Rule("layers.{layer}.block_sparse_moe.input_linear.weight", f"{EXPERTS}.gate.kernel", (Part(1, 0, 2), Transpose())),
    Rule("layers.{layer}.block_sparse_moe.input_linear.weight", f"{EXPERTS}.up.kernel", (Part(1, 1, 2), Transpose())),
    Rule("layers.{layer}.block_sparse_moe.output_linear.weight", f"{EXPERTS}.down.kernel", (Transpose(),)),
)
_GPT_OSS = (
    *linear("layers.{layer}.mlp.router", f"{MLP}.router"),
    Rule("layers.{layer}.mlp.experts.gate_up_proj", f"{EXPERTS}.up.kernel"),
    Rule("layers.{layer}.mlp.experts.gate_up_proj_bias", f"{EXPERTS}.up.bias"),
    Rule("layers.{layer}.mlp.experts.down_proj", f"{EXPERTS}.down.kernel"),
    Rule("layers.{layer}.mlp.experts.down_proj_bias", f"{EXPERTS}.down.bias"),
)
_HUNYUAN = (
    *linear("layers.{layer}.mlp.gate.wg", f"{MLP}.router"),
    *expert_rows("layers.{layer}.mlp", "gate_proj", "up_proj", "down_proj"),
    *linear("layers.{layer}.mlp.shared_mlp.gate_proj", f"{MLP}.shared.gate"),
    *linear("layers.{layer}.mlp.shared_mlp.up_proj", f"{MLP}.shared.up"),
    *linear("layers.{layer}.mlp.shared_mlp.down_proj", f"{MLP}.shared.down"),
)
_SINKS = Rule("layers.{layer}.self_attn.sinks", f"{ATTENTION}.sinks")

FAMILIES = {
    "mixtral": family("Mixtral", _mixtral, llama_table(mlp=_MIXTRAL)),
    "qwen2_moe": family("Qwen2Moe", _qwen2_moe, llama_table(mlp=_QWEN)),
    "qwen3_moe": family("Qwen3Moe", _qwen3_moe, llama_table(mlp=_QWEN)),
    "phimoe": family("Phimoe", _phimoe, llama_table(mlp=_MIXTRAL)),
    "granitemoe": family("GraniteMoe", _granitemoe, llama_table(mlp=_GRANITE)),
    "hunyuan_v1_moe": family("HunYuanMoEV1", _hunyuan, llama_table(mlp=_HUNYUAN, attention=HUNYUAN_ATTENTION)),
    "gpt_oss": family("GptOss", _gpt_oss, llama_table(mlp=_GPT_OSS, attention=(*LLAMA_ATTENTION, _SINKS))),
}
