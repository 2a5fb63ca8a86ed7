"""Configs of checkpoints that came with code of their own, in the words of transformers' class for the same model.

Their code is never run. What it computes is known of some, by its name in ``auto_map``; the others are opened as
transformers' class computes them, and a warning says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from jaxpool.errors import ConfigError
from jaxpool.text.vocabulary import MODEL_TYPES

logger = logging.getLogger(__name__)

Fields = dict[str, Any]


def _require(config: Fields, values: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ConfigError unless each field is absent or has one of the values that our family has built in."""
    for name, built_in in values.items():
        if config.get(name, built_in[0]) not in built_in:
            raise ConfigError(
                f"config.json sets {name}={config[name]!r}, which jaxpool does not implement for model_type "
                f"{config['model_type']!r}; it implements {built_in[0]!r}."
            )


_GTE: dict[str, tuple[Any, ...]] = {
    "layer_norm_type": ("layer_norm",),
    "position_embedding_type": ("rope",),
    "logn_attention_scale": (False,),
    "pack_qkv": (True,),
}
"""Switches of Alibaba's code (``NewModel``), and the values that transformers' GTE has built in."""


def _gte(config: Fields) -> Fields:
    _require(config, _GTE)
    config = {name: value for name, value in config.items() if name not in _GTE}
    return {"rope_theta": 10000.0} | config if config["model_type"] == "new" else config


_NOMIC = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
"""Nomic's own names, which are GPT-2's, and transformers'."""

_NOMIC_SWITCHES: dict[str, tuple[Any, ...]] = {
    "causal": (False,),
    "prenorm": (False,),
    "parallel_block": (False,),
    "use_rms_norm": (False, None),
    "rotary_emb_fraction": (1.0, 1),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "moe_normalize_expert_weights": (False, None),
    "expert_choice_router": (False, None),
    "num_shared_experts": (0, None),
    "ffn_div": (1, None),
}


def _nomic(config: Fields) -> Fields:
    """``NomicBertConfig`` of the checkpoints' own code, before transformers had the model."""
    if "n_embd" not in config:
        return config
    _require(config, _NOMIC_SWITCHES)
    # v1 and v1.5 gate and have no biases, as transformers' class; v2-moe has biases and does not gate.
    gated = config.get("activation_function", "swiglu") == "swiglu"
    biases = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")
    _require(config, {"activation_function": ("swiglu", "gelu")} | dict.fromkeys(biases, (not gated,)))
    folded = {*_NOMIC_SWITCHES, *biases, "activation_function"}
    renamed = {_NOMIC.get(name, name): value for name, value in config.items() if name not in folded}
    trained, factor = renamed.pop("max_trained_positions", None), renamed.pop("rotary_scaling_factor", None)
    rope: Fields = {"rope_type": "default", "rope_theta": float(renamed.pop("rotary_emb_base", 10000))}
    if factor:  # texts longer than those of training stretch the angles, by their own length
        rope |= {"rope_type": "dynamic", "factor": float(factor)}
        renamed["max_position_embeddings"] = trained or renamed["max_position_embeddings"]
    heads = renamed["num_attention_heads"]
    return renamed | {
        "hidden_act": "silu" if gated else "gelu",
        "plain_mlp": not gated,
        "rope_parameters": rope,
        "head_dim": renamed["hidden_size"] // heads,
        "type_vocab_size": renamed.get("type_vocab_size", 2),
    }


_TRANSLATE: dict[str, Callable[[Fields], Fields]] = {"new": _gte, "gte": _gte, "nomic_bert": _nomic}


def _both_ways(config: Fields) -> Fields:
    """A decoder whose own code attends in both directions, unless its config says otherwise."""
    return {"is_causal": False} | config


def _jina(config: Fields) -> Fields:
    """jina-embeddings-v3 without a task, so without any of its adapters: XLM-RoBERTa with rotary positions."""
    _require(config, {"position_embedding_type": ("rotary",), "emb_pooler": (None,)})
    rope = {"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base", 10000.0))}
    own = ("position_embedding_type", "rotary_emb_base", "emb_pooler")
    kept = {name: value for name, value in config.items() if name not in own and not name.startswith("lora_")}
    named = {"architectures": ["JinaEmbeddingsV3Model"]} if config.get("architectures") == ["XLMRobertaLoRA"] else {}
    return kept | named | {"model_type": "jina_embeddings_v3", "rope_parameters": rope}


def _jina_bert(config: Fields) -> Fields:
    """jina-embeddings-v2 and jina-reranker-v1: BERT whose scores fall with distance. The one for code differs more."""
    if other := next((name for name in _code(config) if "qk-post-norm" in name), None):
        raise ConfigError(f"config.json names code of its own, {other}, which normalises more than jaxpool implements.")
    _require(config, {"position_embedding_type": ("alibi",)})
    return config


KNOWN: dict[tuple[str, str], Callable[[Fields], Fields]] = {
    # gte-Qwen1.5 and gte-Qwen2, stella_en_1.5B_v5, jasper: https://huggingface.co/Alibaba-NLP/gte-Qwen2-7B-instruct
    ("qwen2", "modeling_qwen.Qwen2Model"): _both_ways,
    # jina-embeddings-v3: https://huggingface.co/jinaai/xlm-roberta-flash-implementation
    ("xlm-roberta", "modeling_lora.XLMRobertaLoRA"): _jina,
    ("jina_embeddings_v3", "modeling_lora.XLMRobertaLoRA"): dict,  # so named once it is translated
    # jina-reranker-v2: XLM-RoBERTa under other names
    ("xlm-roberta", "modeling_xlm_roberta.XLMRobertaForSequenceClassification"): dict,
    # jina-embeddings-v2, jina-reranker-v1: https://huggingface.co/jinaai/jina-bert-implementation
    **{
        ("bert", f"modeling_bert.JinaBert{kind}"): _jina_bert
        for kind in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
    },
    # NVIDIA's rerankers, known by their architecture
    **{
        ("llama", f"llama_bidirectional_model.LlamaBidirectional{kind}"): dict
        for kind in ("Model", "ForSequenceClassification")
    },
}
"""(``model_type``, model in ``auto_map``) -> what the checkpoint's own code does otherwise, in fields we implement."""


def translated(config: Fields) -> Fields:
    """The fields of a ``config.json``, whose ``model_type`` is now one of transformers'.

    Raises:
        ConfigError: the checkpoint's own code could do what transformers' class does not.
    """
    if (known := _known(config)) is not None:
        config = known(config)
    config = _TRANSLATE.get(config["model_type"], lambda fields: fields)(config)
    return config | {"model_type": MODEL_TYPES.get(config["model_type"], config["model_type"])}


def mention(config: Any) -> None:
    """Warns, by its name, of code of a checkpoint that stands beside a model type of transformers."""
    raw = getattr(config, "raw", None) or {}
    code = _code(raw)
    if code and raw.get("model_type") not in _TRANSLATE and _known(raw) is None:
        logger.warning(
            "config.json names code of its own (%s) for model_type %r. jaxpool never runs it and computes what "
            "transformers' class of that type does; compare a few scores with that code.",
            ", ".join(sorted({name.split("--")[-1] for name in code})),
            raw.get("model_type"),
        )


def _known(config: Mapping[str, Any]) -> Callable[[Fields], Fields] | None:
    kinds = [(config.get("model_type"), name.split("--")[-1]) for name in _code(config)]
    return next((KNOWN[kind] for kind in kinds if kind in KNOWN), None)


def _code(config: Mapping[str, Any]) -> list[str]:
    """Models (no configs, no tokenizers) that ``auto_map`` names."""
    named = config.get("auto_map")
    if not isinstance(named, Mapping):
        return []
    models = [name for kind, name in named.items() if str(kind).startswith("AutoModel")]
    return [name for name in models if isinstance(name, str)]
