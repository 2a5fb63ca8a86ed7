"""What a config means, and that no field of it can change the answer unnoticed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from jaxpool.errors import ConfigError, UnsupportedArchitectureError, ValidationError
from jaxpool.params import PoolerConfig
from jaxpool.resolve import Spec, check_task, resolve
from jaxpool_conversions.families import families
from jaxpool_conversions.families.fields import INERT
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
    "deepseek_v3": {"num_mtp_layers": "further layers that predict further tokens, not read"},
    "granitemoe": {"logits_scaling": "of the vocabulary projection"},
    "minicpm3": {"dim_model_base": "of the vocabulary projection"},
    "mixtral": {"router_jitter_noise": "training only"},
    "phimoe": {"input_jitter_noise": "training only", "lm_head_bias": "of the vocabulary projection"},
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


TYPED = {"esmfold_config": {"esm_type": "x"}, "vocab_list": ["a"], "languages": ["en_XX", "de_DE"],
         "default_language": "de_DE", "mlp_only_layers": [1], "normalization_type": "layer_norm"}  # fmt: skip
"""Fields that config classes type narrowly, or that must stay meaningful -> another value."""


def changed(value: Any, name: str) -> Any:
    if name == "rope_parameters":
        return {"rope_type": "linear", "rope_theta": 77.0, "factor": 2.0}
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


WINDOWS = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
ESM = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary",
       "token_dropout": True, "emb_layer_norm_before": True}  # fmt: skip
DEEPSEEK = {"first_k_dense_replace": 1, "num_experts_per_tok": 2, "topk_method": "group_limited_greedy", "n_group": 4,
            "topk_group": 1}  # fmt: skip
SPARSE = {"mlp_only_layers": [2], "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 16}
BASE: dict[str, dict[str, Any]] = {
    "qwen2": WINDOWS,
    "qwen3": WINDOWS,
    "deepseek_v2": DEEPSEEK,
    "qwen3_moe": SPARSE,
    "qwen2_moe": SPARSE | {"max_window_layers": 4},
    "ernie": {"use_task_id": True},
    "esm": ESM,
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
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
        setattr(made, field.name, changed(getattr(made, field.name, None), field.name))
        made.architectures = ["XForSequenceClassification"]
        try:
            other = spec_of(made)
        except (ConfigError, ValidationError) as error:
            if field.name not in str(error) and field.name not in elsewhere:
                unnoticed.append(f"{field.name}: {error}")
            continue
        same = (other.config, other.head, other.max_length) == (base.config, base.head, base.max_length)
        if same and field.name not in elsewhere:
            unnoticed.append(field.name)
    assert not unnoticed


@pytest.mark.parametrize(
    ("model_type", "field", "value", "named"),
    [
        ("bert", "is_decoder", True, "is_decoder=True"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", "reorder_and_upcast_attn", True, "reorder_and_upcast_attn=True"),
        ("llama", "rope_parameters", {"rope_type": "longrope", "rope_theta": 1e4}, "rope_type='longrope'"),
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
    made = config("xlnet")
    with pytest.raises(UnsupportedArchitectureError, match=r"XlnetForSequenceClassification.*'xlnet'.*bert"):
        spec_of(made)


@pytest.mark.parametrize(
    ("architecture", "runner", "convert", "message"),
    [
        ("LlamaForSequenceClassification", "auto", "auto", None),
        ("LlamaForSequenceClassification", "pooling", "none", None),
        ("LlamaForCausalLM", "pooling", "classify", None),
        ("LlamaModel", "auto", "classify", None),
        ("LlamaForCausalLM", "auto", "auto", 'Pass convert="classify"'),
        ("LlamaForCausalLM", "pooling", "auto", 'Pass convert="classify"'),
        ("LlamaForSequenceClassification", "pooling", "embed", 'Pass convert="classify"'),
        ("LlamaForSequenceClassification", "generate", "auto", "does not support `--runner generate`"),
        ("LlamaForSequenceClassification", "walk", "auto", "runner must be one of"),
        ("LlamaForSequenceClassification", "auto", "reward", "convert must be one of"),
    ],
)
def test_runner_and_convert(architecture: str, runner: str, convert: str, message: str | None) -> None:
    if message is None:
        check_task(architecture, runner, convert)
    else:
        with pytest.raises(ValidationError, match=message):
            check_task(architecture, runner, convert)


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


def test_dtype_auto_never_picks_float16_and_is_bfloat16_on_accelerators() -> None:
    for declared, cpu, tpu in (
        ("float32", "float32", "bfloat16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "bfloat16", "bfloat16"),
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
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128}))
    assert spec_of(config("bert"), folder=tmp_path).max_length == 128


def test_labels_pooling_and_calibration() -> None:
    made = config("bert", id2label={0: "no", 1: "yes", 2: "maybe"})
    spec = spec_of(made, pooler_config=PoolerConfig(seq_pooling_type="MEAN", logit_mean=1.5, logit_sigma=2.0))
    assert spec.labels == ("no", "yes", "maybe")
    assert (spec.pooling, spec.logit_mean, spec.logit_sigma) == ("MEAN", 1.5, 2.0)
    assert spec_of(made).pooling == "CLS"
    assert spec_of(config("gpt2")).pooling == "LAST"
    with pytest.raises(ValidationError, match="division by zero"):
        spec_of(made, pooler_config=PoolerConfig(logit_sigma=0.0))
