"""From a Hugging Face config to all a classifier must know: task, head, pooling, activation, labels, limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jaxpool.errors import ConfigError, ValidationError
from jaxpool.models.classifier import HeadConfig
from jaxpool.params import PoolerConfig
from jaxpool.pooling import Activation, Pooling
from jaxpool_conversions.families import Family, HeadStyle, find
from jaxpool_conversions.families.fields import Fields
from jaxpool_conversions.rules import HeadSource

Problem = Literal["single", "multi", "regression"]

SUFFIXES: tuple[tuple[str, str, str], ...] = (
    ("ForCausalLM", "generate", "none"),
    ("ForConditionalGeneration", "generate", "none"),
    ("ChatModel", "generate", "none"),
    ("LMHeadModel", "generate", "none"),
    ("ForTextEncoding", "pooling", "embed"),
    ("EmbeddingModel", "pooling", "embed"),
    ("ForSequenceClassification", "pooling", "classify"),
    ("ForTokenClassification", "pooling", "classify"),
    ("ClassificationModel", "pooling", "classify"),
    ("ForRewardModeling", "pooling", "embed"),
    ("RewardModel", "pooling", "embed"),
    ("Model", "pooling", "embed"),
)
"""Architecture suffix -> (runner, convert); the first match decides, as in vLLM."""

LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
"""Config fields that may bound the text length, in tokens; the smallest counts."""

_DTYPES = {
    "half": "float16",
    "float16": "float16",
    "float": "float32",
    "float32": "float32",
    "bfloat16": "bfloat16",
}

_TORCH_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "identity",
    "Sigmoid": "classify",  # vLLM's reading: softmax from two labels on
    "Softmax": "classify",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Softplus": "softplus",
    "ELU": "elu",
}


@dataclass(frozen=True, slots=True)
class Spec:
    """One classifier, fully decided.

    Attributes:
        architecture: class name from ``config.json``.
        family: its family.
        config: the family's config dataclass (``BertConfig`` …).
        head: shape of the head.
        source: where the head's last layer comes from in the checkpoint.
        pooling: CLS, LAST, MEAN or EOS.
        activation: applied to logits where the request wants it.
        use_activation: whether a request that does not say wants it.
        logit_mean, logit_sigma: calibration, or None.
        labels: name of each label.
        problem: what the labels mean: one of them, any of them, or a number.
        max_length: longest text in tokens.
        dtype: compute and storage dtype of the backbone (``float32`` or ``bfloat16``).
        eos_token: whose last occurrence EOS pooling reads.
        late: whether the head reads every token and its logits are pooled.
    """

    architecture: str
    family: Family
    config: Any
    head: HeadConfig
    source: HeadSource
    pooling: Pooling
    activation: Activation
    use_activation: bool
    logit_mean: float | None
    logit_sigma: float | None
    labels: tuple[str, ...]
    problem: Problem
    max_length: int
    dtype: str
    eos_token: int | None = None
    late: bool = False
    task: str = "classify"
    supported_tasks: tuple[str, ...] = ("classify", "token_classify")

    @property
    def num_labels(self) -> int:
        """Number of labels."""
        return self.head.labels

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding; ids must lie below it."""
        return int(self.config.vocab)

    @property
    def token_types(self) -> bool:
        """Whether the backbone reads segment types."""
        return self.family.types


def resolve(
    config: Any,
    find_source: Callable[[Family, int | None, int], HeadSource],
    *,
    folder: Path | None = None,
    stored_dtype: str | None = None,
    platform: str = "cpu",
    runner: str = "auto",
    convert: str = "auto",
    pooler_config: PoolerConfig | None = None,
    dtype: str = "auto",
    max_model_len: int | None = None,
    tokenizer_limit: int | None = None,
) -> Spec:
    """Decides everything about one classifier.

    Args:
        config: transformers config, overrides applied.
        find_source: finds the head, given the family, the declared number of labels (None if it must follow from the
            weights) and the hidden width.
        folder: the checkpoint folder, for Sentence-Transformers length limits.
        stored_dtype: dtype of the stored weights, used when the config does not say.
        platform: ``cpu``, ``gpu`` or ``tpu``; decides what ``dtype="auto"`` means.
        runner, convert, pooler_config, dtype, max_model_len: as given to ``LLM``.
        tokenizer_limit: the tokenizer's own maximum length, which binds where positions are learned.

    Raises:
        ConfigError, ValidationError, UnsupportedArchitectureError, MissingHeadError: each in words.
    """
    architecture = (getattr(config, "architectures", None) or [""])[0]
    family = find(config.model_type, architecture or None)
    architecture = architecture or f"{family.prefix_class}ForCausalLM"
    check_task(architecture, runner, convert)
    fields = Fields(config)
    ours, style = family.config(fields), family.head(fields)
    fields.finish()
    if family.table_of is not None:
        family = replace(family, table=family.table_of(ours))
    pooler_config = pooler_config or PoolerConfig()
    declared = None if getattr(config, "classifier_from_token", None) else config.num_labels
    width = getattr(ours, "pooled_width", ours.width)
    source = find_source(family, declared, width)
    mean, sigma = _calibration(pooler_config)
    compute = _dtype(dtype, config, stored_dtype, platform)
    return Spec(
        architecture=architecture,
        family=family,
        config=ours,
        head=HeadConfig(
            width=width,
            labels=source.num_labels,
            bias=source.bias is not None,
            dense=style.dense,
            dense_bias=style.dense_bias,
            norm_eps=style.norm_eps,
            norm_bias=style.norm_bias,
            dtype=_head_dtype(config, compute),
        ),
        source=source,
        pooling=_pooling(pooler_config, style),
        eos_token=style.eos_token,
        late=style.late and pooler_config.seq_pooling_type is None,
        activation=activation_of(config),
        use_activation=style.use_activation if pooler_config.use_activation is None else pooler_config.use_activation,
        logit_mean=mean,
        logit_sigma=sigma,
        labels=_labels(config, source.num_labels),
        problem=_problem(config),
        max_length=_max_length(config, folder, max_model_len, tokenizer_limit, ours),
        dtype=compute,
        task=_task(pooler_config),
    )


def check_task(architecture: str, runner: str, convert: str) -> None:
    """Raises unless an architecture becomes a classifier under these flags (vLLM's runner and convert).

    Raises:
        ValidationError: naming the flag to pass.
    """
    _one_of("runner", runner, ("auto", "pooling", "generate", "draft"))
    _one_of("convert", convert, ("auto", "none", "embed", "classify"))
    by_suffix = next((row[1:] for row in SUFFIXES if architecture.endswith(row[0])), ("generate", "none"))
    if runner in ("generate", "draft"):
        raise ValidationError(
            f"This model does not support `--runner {runner}`: jaxpool classifies, it does not generate."
        )
    decided = by_suffix[1] if convert == "auto" else convert
    if decided == "classify" or (convert == "none" and by_suffix[1] == "classify"):
        return
    raise ValidationError(
        f"{architecture} is not a classifier by itself (runner={runner!r}, convert={convert!r}). "
        'Pass convert="classify" (`--convert classify`) to use its score head, or LM-head rows as one.'
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValidationError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.", parameter=name)


def _task(pooler_config: PoolerConfig) -> str:
    task = pooler_config.task or "classify"
    if task not in ("classify", "token_classify"):
        raise ValidationError(f"Unsupported task: {task!r} Supported tasks: ('classify', 'token_classify')")
    if task == "token_classify":
        raise ValidationError("pooling task 'token_classify' is not implemented yet; jaxpool serves 'classify'.")
    return task


def activation_of(config: Any) -> Activation:
    """The activation a config asks for, in vLLM's order: problem_type, Sentence-Transformers keys, the default."""
    problem = getattr(config, "problem_type", None)
    if problem is not None:
        known: dict[str, Activation] = {
            "regression": "identity",
            "single_label_classification": "classify",
            "multi_label_classification": "sigmoid",
        }
        if problem not in known:
            raise ConfigError(f"config.json sets problem_type={problem!r}; known are {', '.join(known)}.")
        return known[problem]
    nested = getattr(config, "sentence_transformers", None)
    name = nested.get("activation_fn") if isinstance(nested, Mapping) else None
    name = name or getattr(config, "sbert_ce_default_activation_function", None)
    if name is None:
        return "classify"
    if not name.startswith("torch.nn.modules."):
        raise ConfigError(
            "Loading of activation functions is restricted to torch.nn.modules for security reasons; "
            f"config.json names {name!r}."
        )
    short = name.rsplit(".", 1)[-1]
    if short not in _TORCH_ACTIVATIONS:
        raise ConfigError(
            f"config.json names the activation {name!r}, which jaxpool does not implement; "
            f"it implements {', '.join(_TORCH_ACTIVATIONS)}."
        )
    return _TORCH_ACTIVATIONS[short]


def _problem(config: Any) -> Problem:
    kinds: dict[str, Problem] = {"regression": "regression", "multi_label_classification": "multi"}
    return kinds.get(getattr(config, "problem_type", None) or "", "single")


def _calibration(pooler_config: PoolerConfig) -> tuple[float | None, float | None]:
    mean, sigma = pooler_config.logit_mean, pooler_config.logit_sigma
    if sigma == 0:
        raise ValidationError("logit_sigma cannot be 0 (division by zero)")
    return mean, sigma


def _pooling(pooler_config: PoolerConfig, style: HeadStyle) -> Pooling:
    kind = pooler_config.seq_pooling_type or style.pooling
    if kind not in get_args(Pooling) or (kind == "EOS" and style.eos_token is None):
        raise NotImplementedError(f"pooling type {kind!r}; jaxpool pools {', '.join(get_args(Pooling))}.")
    return kind  # type: ignore[return-value]


def _labels(config: Any, num_labels: int) -> tuple[str, ...]:
    names = {int(key): str(value) for key, value in (getattr(config, "id2label", None) or {}).items()}
    return tuple(names.get(i, f"LABEL_{i}") for i in range(num_labels))


def _dtype(asked: str, config: Any, stored: str | None, platform: str) -> str:
    """``auto``: what the checkpoint declares, but never float16, and bfloat16 on accelerators."""
    if asked != "auto":
        if asked not in _DTYPES:
            raise ValidationError(f"dtype must be auto, {', '.join(_DTYPES)}; got {asked!r}.", parameter="dtype")
        if _DTYPES[asked] == "float16":
            raise ValidationError(
                "float16 overflows in many classifiers (NaN scores); use dtype='bfloat16' or 'float32'.",
                parameter="dtype",
            )
        return _DTYPES[asked]
    declared = str(getattr(config, "dtype", None) or stored or "float32").removeprefix("torch.")
    return "float32" if declared == "float32" and platform == "cpu" else "bfloat16"


def _head_dtype(config: Any, compute: str) -> str:
    asked = getattr(config, "head_dtype", None)
    if asked is None:
        return "float32"
    if asked == "model":
        return compute
    if asked not in _DTYPES:
        raise ConfigError(f"head_dtype must be 'model' or one of {', '.join(_DTYPES)}; got {asked!r}.")
    return _DTYPES[asked]


def _max_length(config: Any, folder: Path | None, asked: int | None, tokenizer_limit: int | None, ours: Any) -> int:
    parts = (config, getattr(config, "text_config", None))  # of models of text and images, the text part
    limits = [value for part in parts for name in LENGTH_FIELDS if isinstance(value := getattr(part, name, None), int)]
    limits += [limit] if (limit := getattr(ours, "limit", None)) is not None else []
    learned = getattr(ours, "positions", None)
    if learned is not None:
        limits.append(learned)
        if tokenizer_limit is not None:
            limits.append(tokenizer_limit)
    derived = min(limits, default=2048)
    for file in sorted(folder.glob("sentence_*_config.json")) if folder else ():
        value = json.loads(file.read_text()).get("max_seq_length")
        derived = value if isinstance(value, int) else derived
    if asked is None or asked == -1:
        return derived
    if asked < 1:
        raise ValidationError(f"max_model_len must be at least 1; got {asked}.", parameter="max_model_len")
    if asked > derived:
        raise ValidationError(
            f"User-specified max_model_len ({asked}) is greater than the derived max_model_len ({derived}), "
            "the longest text this checkpoint supports.",
            parameter="max_model_len",
        )
    return asked
