"""What a config means, and that no field of it can change the answer unnoticed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, Gemma3TextConfig
from transformers.models.mpt.configuration_mpt import MptAttentionConfig

from jaxpool.checkpoints.spec import Spec, resolve
from jaxpool.checkpoints.tasks import kind_of
from jaxpool.errors import ConfigError, UnsupportedArchitectureError, ValidationError
from jaxpool.params import PoolerConfig
from jaxpool_conversions.families import families
from jaxpool_conversions.families.config_fields import INERT
from jaxpool_conversions.rules import HeadSource

ELSEWHERE = {
    # field -> why a change of it may leave the backbone's shape alone
    "summary_type": "GPT-2's double-heads model only",
    "summary_use_proj": "GPT-2's double-heads model only",
    "summary_activation": "GPT-2's double-heads model only",
    "summary_proj_to_labels": "GPT-2's double-heads model only",
    "use_sliding_window": "folded into layer_types by transformers",
    "max_window_layers": "folded into layer_types by transformers",
    "sinusoidal_pos_embds": "how DistilBERT's table of positions was initialised; the table is stored",
    "output_embedding_size": "RemBERT's masked-language-model head only",
    "force_dequant": "I-BERT's quant mode, which is refused",
    "languages": "X-MOD's other adapters, which are not read",
    "entity_vocab_size": "LUKE's entity inputs, which texts come without",
    "entity_emb_size": "LUKE's entity inputs, which texts come without",
    "use_entity_aware_attention": "LUKE's entity inputs, which texts come without",
}

ELSEWHERE_IN: dict[str, dict[str, str]] = {
    # model type -> as ELSEWHERE, where the field matters to others
    **{key: {"legacy": "of the masked-language-model head"} for key in ("deberta", "deberta-v2")},
    "eurobert": {"mask_token_id": "of the masked-language-model head"},
    "fnet": {"tpu_short_seq_length": "read with use_tpu_fourier_optimizations only, which is refused"},
    "funnel": {"num_decoder_layers": "of the models for tokens"},
    "llama4": dict.fromkeys(("boi_token_index", "eoi_token_index", "image_token_index", "vision_config"), "of images"),
    "llama4_text": dict.fromkeys(
        (
            "intermediate_size",
            "interleave_moe_layer_step",
            "num_experts_per_tok",
            "num_local_experts",
            "output_router_logits",
            "router_aux_loss_coef",
            "router_jitter_noise",
        ),
        "of experts, and a model with experts is refused",
    )
    | {
        "no_rope_layer_interval": "folded into no_rope_layers",
        "layer_types": "texts end where a chunk does",
        "attention_chunk_size": "a bound on texts, here not the least",
    },
    "longformer": {"onnx_export": "how transformers computes the same numbers"},
    "modernbert": dict.fromkeys(
        ("decoder_bias", "sparse_prediction", "sparse_pred_ignore_index"), "of the masked-language-model head"
    )
    | {"deterministic_flash_attn": "how transformers computes the same numbers"},
    "modernbert-decoder": {
        "decoder_bias": "of the vocabulary projection",
        "local_attention": "folded into sliding_window by transformers",
    },
    "mvp": dict.fromkeys(("prompt_length", "prompt_mid_dim"), "read with use_prompt only, which is refused"),
    "deepseek_v3": {"num_mtp_layers": "further layers that predict further tokens, not read"},
    "granitemoe": {"logits_scaling": "of the vocabulary projection"},
    "phi3": {"original_max_position_embeddings": "folded into rope_parameters by transformers"},
    "gpt_neox": {"is_decoder": "read by nobody"},
    "granite": {"logits_scaling": "of the vocabulary projection"},
    "cohere": {"logit_scale": "of the vocabulary projection"},
    "cohere2": {"logit_scale": "of the vocabulary projection"},
    "gemma2": {"final_logit_softcapping": "of the vocabulary projection"},
    "gemma3_text": {"final_logit_softcapping": "of the vocabulary projection"},
    "gemma3": dict.fromkeys(
        ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"), "of images"
    ),
    "falcon": {"num_kv_heads": "of the new architecture", "num_ln_in_parallel_attn": "of the new architecture"},
    "opt": {"layerdrop": "training only", "init_std": "training only"},
    "bloom": {"slow_but_exact": "how the same is computed on several devices"},
    "mpt": {
        "logit_scale": "of the vocabulary projection",
        "learned_pos_emb": "read by nobody",
        "init_device": "where it was made",
        "emb_pdrop": "training only",
        "norm_type": "read by nobody",
        "embedding_fraction": "training only",
    },
    "gpt_neo": {
        "attention_types": "spelled out in attention_layers by transformers",
        "resid_dropout": "training only",
        "embed_dropout": "training only",
    },
    "gpt_bigcode": dict.fromkeys(
        ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"), "softmax is always in float32"
    ),
    "exaone4": {"sliding_window_pattern": "folded into layer_types by transformers"},
    "smollm3": {"no_rope_layer_interval": "folded into no_rope_layers by transformers"},
    "seed_oss": {"residual_dropout": "training only"},
    "biogpt": {
        "layer_norm_eps": "read by nobody",
        "layerdrop": "training only",
        "activation_dropout": "training only",
    },
    **{key: {"eod_token_id": "generation only"} for key in ("hunyuan_v1_dense", "hunyuan_v1_moe")},
    "minicpm3": {"dim_model_base": "of the vocabulary projection"},
    "mixtral": {"router_jitter_noise": "training only"},
    "phimoe": {"input_jitter_noise": "training only", "lm_head_bias": "of the vocabulary projection"},
    **{
        kind: dict.fromkeys(
            (
                "n_langs",
                "use_lang_emb",
                "lang_id",
                "asm",
                "sinusoidal_embeddings",
                "mask_index",
                "unk_index",
                "bos_index",
                "eos_index",
                "pad_index",
                "mask_token_id",
                "embed_init_std",
                "start_n_top",
                "end_n_top",
                "layerdrop",
            ),
            "of languages that nobody names, of pretraining, or of answers to questions",
        )
        for kind in ("xlm", "flaubert")
    },
    "esmc": {"mask_token_id": "for the tokenizer"},
    "xlnet": dict.fromkeys(
        ("mem_len", "reuse_len", "use_mems_eval", "use_mems_train", "same_length", "start_n_top", "end_n_top"),
        "of memories between calls, of causal masks, or of answers to questions",
    ),
    "jamba": dict.fromkeys(
        ("use_mamba_kernels", "use_mambapy", "use_associative_scan"), "how transformers computes the same numbers"
    ),
}


def config(model_type: str, **fields: Any) -> Any:
    made = AutoConfig.for_model(model_type, **fields)
    made.architectures = made.architectures or [f"{model_type.capitalize()}ForSequenceClassification"]
    return made


def spec_of(made: Any, **options: Any) -> Spec:
    return resolve(made, lambda family, labels, width: HeadSource("score.weight", None, labels or 2), **options)


TYPED = {"moe_layers": [0], "esmfold_config": {"esm_type": "x"}, "vocab_list": ["a"], "languages": ["en_XX", "de_DE"],
         "no_rope_layers": [0] * 36, "attention_types": [[["global"], 24]], "vision_config": {},
         "attn_config": MptAttentionConfig(clip_qkv=3.0), "text_config": Gemma3TextConfig(num_hidden_layers=2),
         "default_language": "de_DE", "pos_att_type": ["c2p"], "classifier_pooling": "mean",
         "block_sizes": [2, 2, 2], "block_repeats": [2, 1, 1],
         "mlp_only_layers": [1], "normalization_type": "layer_norm"}  # fmt: skip
"""Fields that config classes type narrowly, or that must stay meaningful -> another value."""


def changed(value: Any, name: str) -> Any:
    if name == "rope_parameters":
        linear = {"rope_type": "linear", "rope_theta": 77.0, "factor": 2.0}
        kinds = {kind for kind, inner in (value or {}).items() if isinstance(inner, dict)}
        return dict.fromkeys(kinds, linear) if kinds else (value or {}) | linear
    if name in TYPED:
        return TYPED[name]
    if name == "layer_types":
        return ["sliding_attention"] * len(value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2
    if isinstance(value, float):
        return value * 3 + 1
    if isinstance(value, str):
        return "relu" if value != "relu" else "silu"
    return "tanh" if name == "summary_activation" else 8


def meaning(spec: Spec) -> tuple[Any, ...]:
    """All of a spec that fields of an architecture may change."""
    return spec.config, spec.head, spec.pooling, spec.late, spec.max_length


def change(made: Any, name: str) -> None:
    """Gives a field another value, of the first type that its class accepts."""
    for value in (changed(getattr(made, name, None), name), 0.5, True):
        try:
            return setattr(made, name, value)
        except StrictDataclassFieldValidationError:
            continue
    raise AssertionError(f"no value found for {name}")


WINDOWS = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
ESM = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary",
       "token_dropout": True, "emb_layer_norm_before": True}  # fmt: skip
DEEPSEEK = {"first_k_dense_replace": 1, "num_experts_per_tok": 2, "topk_method": "group_limited_greedy", "n_group": 4,
            "topk_group": 1}  # fmt: skip
SPARSE = {"mlp_only_layers": [2], "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 16}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c"], "max_relative_positions": 16, "type_vocab_size": 2}
LLAMA4 = {"moe_layers": [], "attn_temperature_tuning": True, "max_position_embeddings": 64}
BASE: dict[str, dict[str, Any]] = {
    "deberta": DEBERTA,
    "deberta-v2": DEBERTA,
    "t5": {"decoder_start_token_id": 0},
    "qwen2": WINDOWS,
    "qwen3": WINDOWS,
    "deepseek_v2": DEEPSEEK,
    "mistral4": {"first_k_dense_replace": 1},
    "qwen3_moe": SPARSE,
    "qwen2_moe": SPARSE | {"max_window_layers": 4},
    "ministral": {"layer_types": ["full_attention", "sliding_attention"] * 16},
    "smollm3": {"use_sliding_window": True, "sliding_window": 16},
    "ernie": {"use_task_id": True},
    "esm": ESM,
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    "xlnet": {"clamp_len": 8},
    "llama4": {"text_config": LLAMA4},
    "llama4_text": LLAMA4,
}
"""Settings under which fields matter that otherwise lie idle."""


@pytest.mark.parametrize("model_type", sorted(families()))
def test_every_field_is_read_or_refused(model_type: str) -> None:
    """Changing any one field of the config class changes what is built, or raises naming the field."""
    settings = BASE.get(model_type, {})
    base = spec_of(config(model_type, **settings))
    unnoticed, elsewhere = [], ELSEWHERE | ELSEWHERE_IN.get(model_type, {})
    for field in dataclasses.fields(type(config(model_type))):
        if field.name in INERT:
            continue
        made = config(model_type, **settings)
        change(made, field.name)
        made.architectures = ["XForSequenceClassification"]
        try:
            other = spec_of(made)
        except (ConfigError, ValidationError) as error:
            if field.name not in str(error) and field.name not in elsewhere:
                unnoticed.append(f"{field.name}: {error}")
            continue
        same = meaning(other) == meaning(base)
        if same and field.name not in elsewhere:
            unnoticed.append(field.name)
    assert not unnoticed, unnoticed


@pytest.mark.parametrize(
    ("model_type", "field", "value", "named"),
    [
        ("bert", "is_decoder", True, "is_decoder=True"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", "reorder_and_upcast_attn", True, "reorder_and_upcast_attn=True"),
        ("llama", "rope_parameters", {"rope_type": "mrope", "rope_theta": 1e4}, "rope_type='mrope'"),
        ("llama", "rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("bert", "problem_type", "ranking", "problem_type='ranking'"),
        ("qwen2", "head_dtype", "int3", "head_dtype.*'int3'"),
        ("bert", "sbert_ce_default_activation_function", "torch.nn.modules.activation.PReLU", "PReLU"),
        ("bert", "sbert_ce_default_activation_function", "os.system", "restricted to torch.nn.modules.*os.system"),
    ],
)
def test_values_we_do_not_implement_are_named(model_type: str, field: str, value: Any, named: str) -> None:
    made = config(model_type)
    setattr(made, field, value)
    with pytest.raises(ConfigError, match=named):
        spec_of(made)


def test_an_unknown_architecture_names_itself_and_what_is_supported() -> None:
    made = config("rwkv")
    with pytest.raises(UnsupportedArchitectureError, match=r"RwkvForSequenceClassification.*'rwkv'.*bert"):
        spec_of(made)


@pytest.mark.parametrize(
    ("architecture", "runner", "convert", "outcome"),
    [
        ("LlamaForSequenceClassification", "auto", "auto", "classify"),
        ("LlamaForSequenceClassification", "pooling", "none", "classify"),
        ("LlamaForTokenClassification", "auto", "auto", "classify"),
        ("LlamaForCausalLM", "pooling", "classify", "classify"),
        ("LlamaForCausalLM", "auto", "classify", "classify"),
        ("LlamaModel", "auto", "classify", "classify"),
        ("LlamaModel", "auto", "auto", "embed"),
        ("BertModel", "pooling", "none", "embed"),
        ("LlamaForCausalLM", "pooling", "auto", "embed"),
        ("LlamaForCausalLM", "auto", "embed", "embed"),
        ("GPT2LMHeadModel", "pooling", "auto", "embed"),
        ("BertForMaskedLM", "pooling", "auto", "classify"),
        ("BertForMaskedLM", "auto", "embed", "embed"),
        ("RobertaForMaskedLM", "auto", "auto", "embed"),
        ("DistilBertForMaskedLM", "pooling", "auto", "embed"),
        ("LlamaForSequenceClassification", "pooling", "embed", "embed"),
        ("LlamaForCausalLM", "auto", "auto", "language"),
        ("T5ForConditionalGeneration", "auto", "auto", 'Pass convert="classify".*convert="embed"'),
        ("LlamaForCausalLM", "pooling", "none", 'Pass convert="classify"'),
        ("LlamaForRewardModel", "auto", "auto", "reward model whose head"),
        ("Qwen2ForProcessRewardModel", "auto", "auto", "classify"),
        ("Qwen2ForRewardModel", "auto", "embed", "embed"),
        ("DistilBertForMaskedLM", "auto", "auto", 'Pass convert="classify"'),
        ("LlamaForSequenceClassification", "generate", "auto", "does not support `--runner generate`"),
        ("LlamaForSequenceClassification", "walk", "auto", "runner must be one of"),
        ("LlamaForSequenceClassification", "auto", "reward", "convert must be one of"),
    ],
)
def test_runner_and_convert(architecture: str, runner: str, convert: str, outcome: str) -> None:
    if outcome in ("classify", "embed", "language"):
        assert kind_of(architecture, runner, convert) == outcome
    else:
        with pytest.raises(ValidationError, match=outcome):
            kind_of(architecture, runner, convert)


def test_sentence_embedders_need_no_flag() -> None:
    assert kind_of("Qwen3ForCausalLM", "auto", "auto", sentence_embedder=True) == "embed"
    assert kind_of("BertForSequenceClassification", "auto", "auto", sentence_embedder=True) == "classify"


@pytest.mark.parametrize(
    ("fields", "activation", "problem"),
    [
        ({}, "classify", "single"),
        ({"problem_type": "single_label_classification"}, "classify", "single"),
        ({"problem_type": "multi_label_classification"}, "sigmoid", "multi"),
        ({"problem_type": "regression"}, "identity", "regression"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "tanh", "single"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity", "single"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, "classify", "single"),
    ],
)
def test_activation_follows_the_config_in_order(fields: dict[str, Any], activation: str, problem: str) -> None:
    made = config("bert")
    for name, value in fields.items():
        setattr(made, name, value)
    spec = spec_of(made)
    assert (spec.activation, spec.problem) == (activation, problem)


def test_dtype_auto_never_picks_float16_or_rounds_on_the_cpu_and_is_bfloat16_on_accelerators() -> None:
    for declared, cpu, tpu in (
        ("float32", "float32", "bfloat16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float32", "bfloat16"),
        (None, "float32", "bfloat16"),
    ):
        made = config("qwen2")
        made.dtype = declared
        assert (spec_of(made).dtype, spec_of(made, platform="tpu").dtype) == (cpu, tpu)
        assert spec_of(made).head.dtype == "float32"
    with pytest.raises(ValidationError, match="float16 overflows"):
        spec_of(config("qwen2"), dtype="half")
    made = config("qwen2")
    made.dtype, made.head_dtype = "bfloat16", "model"
    assert spec_of(made).head.dtype == "bfloat16"


def test_length_limits(tmp_path: Path) -> None:
    assert spec_of(config("bert")).max_length == 512
    assert spec_of(config("bert"), tokenizer_limit=256).max_length == 256, "positions are learned"
    assert spec_of(config("qwen2"), tokenizer_limit=256).max_length == 32768, "positions are rotary"
    assert spec_of(config("bert"), max_model_len=40).max_length == 40
    with pytest.raises(ValidationError, match=r"\(600\) is greater than the derived max_model_len \(512\)"):
        spec_of(config("bert"), max_model_len=600)
    stretched = config(
        "llama", max_position_embeddings=64, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}
    )
    assert spec_of(stretched).max_length == 192, "as vLLM counts"
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128}))
    assert spec_of(config("bert"), folder=tmp_path).max_length == 128
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 514}))
    roberta = config("roberta", max_position_embeddings=514)
    assert spec_of(roberta, folder=tmp_path).max_length == 512, "two of the positions are never a token's"
    with pytest.raises(ValidationError, match=r"derived max_model_len \(512\)"):
        spec_of(roberta, folder=tmp_path, max_model_len=514)


def test_labels_pooling_and_calibration() -> None:
    made = config("bert", id2label={0: "no", 1: "yes", 2: "maybe"})
    spec = spec_of(made, pooler_config=PoolerConfig(seq_pooling_type="MEAN", logit_mean=1.5, logit_sigma=2.0))
    assert spec.labels == ("no", "yes", "maybe")
    assert (spec.pooling, spec.logit_mean, spec.logit_sigma) == ("MEAN", 1.5, 2.0)
    assert spec_of(made).pooling == "CLS"
    assert spec_of(config("gpt2")).pooling == "LAST"
    with pytest.raises(ValidationError, match="division by zero"):
        spec_of(made, pooler_config=PoolerConfig(logit_sigma=0.0))
