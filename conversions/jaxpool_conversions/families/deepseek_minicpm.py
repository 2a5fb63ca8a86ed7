"""Decoders with latent attention: DeepSeek-V2 and V3 with mixtures of experts, MiniCPM3 without."""

from __future__ import annotations

import math
from typing import Any, Literal

from jaxpool.errors import ConfigError
from jaxpool.models.decoder import DecoderConfig
from jaxpool.models.mla import LatentAttentionConfig
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.moe import MoeConfig
from jaxpool.ops.moe import Router
from jaxpool.ops.rope import Rope
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import (
    ATTENTION,
    LLAMA_MLP,
    MLP,
    family,
    linear,
    llama_like,
    llama_table,
    norm,
)
from jaxpool_conversions.families.mixtral_qwen_moe import expert_rows, mixture
from jaxpool_conversions.families.rope_fields import rope
from jaxpool_conversions.rules import Ignore, Rule, Table


def _latent(fields: Fields, *, interleaved: bool, **switches: Any) -> LatentAttentionConfig:
    plain, rotated = fields.get("qk_nope_head_dim"), fields.get("qk_rope_head_dim")
    _equal(fields, "num_key_value_heads", "num_attention_heads")  # every head has its own key, expanded
    return LatentAttentionConfig(
        width=fields.get("hidden_size"),
        heads=fields.get("num_attention_heads"),
        query_rank=fields.get("q_lora_rank"),
        rank=fields.get("kv_lora_rank"),
        plain=plain,
        rotated=rotated,
        value=fields.get("v_head_dim"),
        scale=(plain + rotated) ** -0.5 * _yarn_scale(fields.get("rope_parameters") or {}),
        causal=fields.get("is_causal", True),
        bias=fields.get("attention_bias"),
        norm_eps=1e-6,  # theirs is not configurable
        interleaved=interleaved,
        **switches,
    )


def _equal(fields: Fields, name: str, other: str) -> None:
    if fields.get(name) != fields.get(other):
        raise ConfigError(
            f"config.json sets {name}={fields.get(name)!r} and {other}={fields.get(other)!r}; in the latent attention "
            f"of model_type {fields.model_type!r} they must be equal."
        )


def _yarn_scale(given: dict[str, Any]) -> float:
    """DeepSeek's yarn sharpens all scores, not only rotated parts, by ``mscale_all_dim``."""
    scale = given.get("mscale_all_dim") or 0
    if given.get("rope_type", "default") == "default" or not scale or given["factor"] <= 1:
        return 1.0
    return (0.1 * scale * math.log(given["factor"]) + 1.0) ** 2


def _rope(fields: Fields) -> Rope:
    _equal(fields, "head_dim", "qk_rope_head_dim")  # as transformers sets it, to build rotary tables from
    return rope(fields, fields.get("qk_rope_head_dim"))


def _deepseek(
    fields: Fields, router: Router, latent: LatentAttentionConfig, turn: Rope, **switches: Any
) -> DecoderConfig:
    shared = fields.get("moe_intermediate_size") * fields.get("n_shared_experts")
    mixed = mixture(fields, router, inner="moe_intermediate_size", shared=shared, **switches)
    dense = MlpConfig(mixed.width, fields.get("intermediate_size"), mixed.activation)
    first, layers = fields.get("first_k_dense_replace"), fields.get("num_hidden_layers")
    mlps: tuple[MlpConfig | MoeConfig, ...] = tuple(dense if i < first else mixed for i in range(layers))
    return llama_like(fields, attention=latent, mlp=mlps, ropes=(turn,))


def _deepseek_v2(fields: Fields) -> DecoderConfig:
    fields.require("mlp_bias", False)
    fields.require("norm_topk_prob", False, None)  # transformers does not read it, other servers do
    fields.require("topk_method", "greedy", "group_limited_greedy")
    groups = {"groups": fields.get("n_group"), "groups_kept": fields.get("topk_group")}
    router = Router(
        fields.get("n_routed_experts"),
        fields.get("num_experts_per_tok"),
        scale=fields.get("routed_scaling_factor"),
        **(groups if fields.get("topk_method") == "group_limited_greedy" else {}),
    )
    return _deepseek(fields, router, _latent(fields, interleaved=True), _rope(fields))


def _deepseek_v3(fields: Fields) -> DecoderConfig:
    for other in ("num_mtp_layers", "num_nextn_predict_layers"):  # predict further tokens, see the ignored rows
        fields.get(other)
    latent = _latent(fields, interleaved=bool(fields.get("rope_interleave")))
    return _deepseek(fields, _grouped_router(fields, "sigmoid"), latent, _rope(fields), correction=True)


def _grouped_router(fields: Fields, scoring: Literal["softmax", "sigmoid"]) -> Router:
    return Router(
        fields.get("n_routed_experts"),
        fields.get("num_experts_per_tok"),
        scoring,
        renormalise=bool(fields.get("norm_topk_prob")),
        scale=fields.get("routed_scaling_factor"),
        groups=fields.get("n_group"),
        groups_kept=fields.get("topk_group"),
        group_score="two_best",
    )


def _mistral4(fields: Fields) -> DecoderConfig:
    given, size = dict(fields.get("rope_parameters")), fields.get("qk_rope_head_dim")
    whole = fields.get("qk_nope_head_dim") + size
    part = given.pop("partial_rotary_factor", size / whole)
    if fields.get("head_dim") != whole or part * whole != size:  # as transformers sets them, for the rotary table
        raise ConfigError(
            f"config.json sets head_dim={fields.get('head_dim')!r} and partial_rotary_factor={part!r}; in model_type "
            f"'mistral4' they must be {whole} and {size / whole}, from qk_nope_head_dim and qk_rope_head_dim."
        )
    growth = (given["llama_4_scaling_beta"], given["original_max_position_embeddings"])
    latent = _latent(fields, interleaved=bool(fields.get("rope_interleave")), query_growth=growth)
    return _deepseek(fields, _grouped_router(fields, "softmax"), latent, rope(fields, size, parameters=given))


def _minicpm3(fields: Fields) -> DecoderConfig:
    fields.get("dim_model_base")  # of the vocabulary projection
    latent = _latent(fields, interleaved=False)
    return llama_like(
        fields,
        attention=latent,
        mlp={"bias": fields.get("mlp_bias")},
        ropes=(_rope(fields),),
        embedding_scale=fields.get("scale_emb"),
        residual_scale=fields.get("scale_depth") / math.sqrt(fields.get("num_hidden_layers")),
    )


_SELF = "layers.{layer}.self_attn"
_LATENT = (
    *linear(f"{_SELF}.q_proj", f"{ATTENTION}.query"),
    *linear(f"{_SELF}.q_a_proj", f"{ATTENTION}.query_in"),
    *norm(f"{_SELF}.q_a_layernorm", f"{ATTENTION}.query_norm"),
    *linear(f"{_SELF}.q_b_proj", f"{ATTENTION}.query_out"),
    *linear(f"{_SELF}.kv_a_proj_with_mqa", f"{ATTENTION}.latent_in"),
    *norm(f"{_SELF}.kv_a_layernorm", f"{ATTENTION}.latent_norm"),
    *linear(f"{_SELF}.kv_b_proj", f"{ATTENTION}.expand"),
    *linear(f"{_SELF}.o_proj", f"{ATTENTION}.out"),
)
_MIXTURE = (
    *LLAMA_MLP,
    *linear("layers.{layer}.mlp.gate", f"{MLP}.router"),
    Rule("layers.{layer}.mlp.gate.e_score_correction_bias", f"{MLP}.correction"),
    *expert_rows("layers.{layer}.mlp", "gate_proj", "up_proj", "down_proj"),
    *linear("layers.{layer}.mlp.shared_experts.gate_proj", f"{MLP}.shared.gate"),
    *linear("layers.{layer}.mlp.shared_experts.up_proj", f"{MLP}.shared.up"),
    *linear("layers.{layer}.mlp.shared_experts.down_proj", f"{MLP}.shared.down"),
)

_FUSED_FIRST = tuple(sorted(_MIXTURE, key=lambda row: "{expert}" in row.source))


def _v3_table(config: DecoderConfig) -> Table:
    """Checkpoints carry one layer more than the config counts."""
    further = Ignore(f"layers.{config.layers}.{{rest}}", "predicts further tokens, not used by classification")
    return llama_table(attention=_LATENT, mlp=_MIXTURE, ignore=(further,))


FAMILIES = {
    "deepseek_v2": family("DeepseekV2", _deepseek_v2, llama_table(attention=_LATENT, mlp=_MIXTURE)),
    "deepseek_v3": family("DeepseekV3", _deepseek_v3, _v3_table),
    "mistral4": family("Mistral4", _mistral4, llama_table(attention=_LATENT, mlp=_FUSED_FIRST)),
    "minicpm3": family("MiniCPM3", _minicpm3, llama_table(attention=_LATENT)),
}
