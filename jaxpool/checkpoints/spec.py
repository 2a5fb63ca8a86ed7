"""From a Hugging Face config to all a classifier must know: task, head, pooling, activation, labels, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from jaxpool.checkpoints import remote_code
from jaxpool.checkpoints.cross_encoder import read_scoring
from jaxpool.checkpoints.labels import (
    Problem,
    activation_of,
    config_field,
    declared_labels,
    label_names,
    padding_token,
    problem_of,
    refuse_quantised,
)
from jaxpool.checkpoints.language_models import language_head
from jaxpool.checkpoints.sentence_transformers import Dense, is_sentence_embedder, read_sentence_embedder
from jaxpool.checkpoints.tasks import MASKED, Task, choose, kind_of
from jaxpool.checkpoints.text_length import longest_text
from jaxpool.errors import ConfigError, MissingHeadError, ValidationError
from jaxpool.models.classifier import HeadConfig, ProjectionConfig
from jaxpool.models.language_head import LanguageHead
from jaxpool.ops.pooling import Activation, Pooling
from jaxpool.params import PoolerConfig
from jaxpool_conversions.families import Family, HeadStyle, find
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.table_rows import linear
from jaxpool_conversions.families.token_heads import REWARDS, Reward, with_masked_head, with_reward_head
from jaxpool_conversions.heads import has_pooler, headless
from jaxpool_conversions.rules import NO_HEAD, HeadSource

_DTYPES = {
    "half": "float16",
    "float16": "float16",
    "float": "float32",
    "float32": "float32",
    "bfloat16": "bfloat16",
}


@dataclass(frozen=True, slots=True)
class Spec:
    """One model, fully decided.

    Attributes:
        architecture: class name from ``config.json``.
        family: its family, with the conversion table of this task.
        config: the family's config dataclass (``BertConfig`` …).
        head: shape of the head; without labels for embeddings.
        source: where the head's last layer comes from in the checkpoint.
        modules: folders inside the checkpoint whose weights the head needs as well.
        pooling: CLS, LAST, MEAN, EOS or NOT_PAD; of no effect on tasks of tokens.
        activation: applied to logits where the request wants it.
        use_activation: whether a request that does not say wants it.
        logit_mean, logit_sigma: calibration, or None.
        labels: name of each label.
        problem: what the labels mean: one of them, any of them, or a number.
        max_length: longest text in tokens.
        dtype: compute and storage dtype of the backbone (``float32`` or ``bfloat16``).
        eos_token: whose last occurrence EOS pooling reads.
        pad_token: the token that NOT_PAD pooling passes over.
        late: whether the head reads every token and its logits are pooled.
        task: the one task that is served.
        supported_tasks: tasks that could be served.
        last_only: whether tokens skip what stands before the head's last layer (a pooler, made for one vector a text).
        steps: whether STEP pooling keeps only some tokens.
        step_token: which those are, or None for all.
        columns: logits (or hidden units) that are kept, in this order; None for all.
        matryoshka: sizes that embeddings may be cut to, empty for any; None if they may not.
        joins_pairs: whether two texts are read as one, end to end, instead of as the tokenizer makes pairs.
        templated: whether the checkpoint was trained on pairs in its chat template.
        dimensions: size they are cut to unless the request says otherwise; None for no cut.
        softcap: logits become ``softcap * tanh(logit / softcap)``, as those of the language model that a recipe makes
            a classifier of; None for no cap.
        language: how hidden states become logits of the vocabulary, where that is the task; None elsewhere.
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
    pad_token: int | None = None
    late: bool = False
    task: Task = "classify"
    supported_tasks: tuple[Task, ...] = ("classify", "token_classify")
    last_only: bool = False
    steps: bool = False
    step_token: int | None = None
    columns: tuple[int, ...] | None = None
    matryoshka: tuple[int, ...] | None = None
    dimensions: int | None = None
    modules: tuple[str, ...] = ()
    joins_pairs: bool = False
    templated: bool = False
    softcap: float | None = None
    language: LanguageHead | None = None

    @property
    def num_labels(self) -> int:
        """Number of labels; 0 for embeddings."""
        return self.head.labels

    @property
    def per_token(self) -> bool:
        """Whether every token has its own vector of results."""
        return self.task.startswith("token_")

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding; ids must lie below it."""
        return int(self.config.vocab)

    @property
    def token_types(self) -> int:
        """How many segment types the backbone reads; 0 where it reads none."""
        return int(self.config.types) if self.family.types else 0


def resolve(
    config: Any,
    find_source: Callable[[Family, int | None, int], HeadSource],
    *,
    find_vocabulary: Callable[[Family, int], HeadSource] | None = None,
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
        find_vocabulary: the same for the head of a language model, given the family and the hidden width; ``NO_HEAD``
            where it is the token embedding. None where no language model can be used as one.
        folder: the checkpoint folder, for Sentence-Transformers length limits.
        stored_dtype: dtype of the stored weights, used when the config does not say.
        platform: ``cpu``, ``gpu`` or ``tpu``; decides what ``dtype="auto"`` means.
        runner, convert, pooler_config, dtype, max_model_len: as given to ``LLM``.
        tokenizer_limit: the tokenizer's own maximum length, which binds where positions are learned.

    Raises:
        ConfigError, ValidationError, UnsupportedArchitectureError, MissingHeadError: each in words.
    """
    refuse_quantised(config)
    remote_code.mention(config)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    family = find(config.model_type, architecture or None)
    embedder = is_sentence_embedder(folder)
    # Without a name, the head of a checkpoint tells that it classifies; vLLM's runner asks for the bare model.
    bare = embedder or runner == "pooling" or convert == "embed"
    architecture = architecture or f"{family.prefix_class}{'Model' if bare else 'ForSequenceClassification'}"
    scoring = read_scoring(folder)
    if scoring is not None and scoring.tokens and convert == "auto":
        convert = "classify"
    kind = kind_of(architecture, runner, convert, embedder)
    fields = Fields(config)
    ours, style = family.config(fields), family.head(fields)
    fields.finish()
    if family.table_of is not None:
        family = replace(family, table=family.table_of(ours))
    pooler_config = pooler_config or PoolerConfig()
    reward = REWARDS.get(architecture) if kind == "classify" else None
    if reward is not None:
        family, style = with_reward_head(family, style, reward)
    masked = kind == "classify" and architecture in MASKED and convert != "classify"
    if masked:
        family, style = with_masked_head(family, style, ours)
    fixed = reward is not None or masked
    tokens = kind == "classify" and (fixed or architecture.endswith("ForTokenClassification"))
    task, supported = choose(kind, tokens=tokens, before_head=style.dense is not None, asked=pooler_config.task)
    last_only = task == "token_classify" and not tokens and has_pooler(family.table)
    dense: tuple[Dense, ...] = ()
    if kind == "embed":
        dense, style = _embedder(pooler_config, style, folder)
        head = tuple(row for i, one in enumerate(dense) for row in linear(f"{one.folder}.linear", f"head.project{i}"))
        family = replace(family, table=replace(headless(family.table), head=head))
    elif tokens and not style.token_dense:
        table = replace(headless(family.table), head_names=("classifier", "score"))
        family, style = replace(family, table=table), replace(style, dense=None, norm_eps=None)
    width = getattr(ours, "pooled_width", ours.width)
    declared = ours.vocab if masked else declared_labels(config) if reward is None else reward.labels
    language: LanguageHead | None = None
    if kind == "language":
        family = replace(family, table=headless(family.table))
        language, source = language_head(config, ours, family, find_vocabulary)
        style = HeadStyle("LAST")
    else:
        source = NO_HEAD if kind == "embed" else find_source(family, declared, width)
    if kind == "classify" and source == NO_HEAD:
        raise MissingHeadError(
            f"{folder} was converted for embeddings and has no head; convert its original checkpoint."
        )
    mean, sigma = _calibration(pooler_config)
    trained = architecture.endswith("ForSequenceClassification") and kind == "classify" and source.rows is None
    pad_token = padding_token(config) if trained else None
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
            dtype=compute if language else _head_dtype(config, compute),
            projections=tuple(ProjectionConfig(one.width, one.bias, one.activation) for one in dense),
        ),
        modules=tuple(one.folder for one in dense),
        source=source,
        pooling=_pooling(pooler_config, style, pad_token),
        eos_token=style.eos_token,
        pad_token=pad_token,
        late=style.late and pooler_config.seq_pooling_type is None,
        activation="normalize"
        if kind == "embed"
        else activation_of(config, None if scoring is None else scoring.activation),
        use_activation=style.use_activation if pooler_config.use_activation is None else pooler_config.use_activation,
        logit_mean=mean,
        logit_sigma=sigma,
        labels=() if language or masked else label_names(config, source.num_labels),
        problem=problem_of(config),
        max_length=longest_text(config, ours, folder, tokenizer_limit, max_model_len),
        dtype=compute,
        task=task,
        supported_tasks=supported,
        last_only=last_only,
        **_steps(pooler_config, task, source.num_labels or width, reward),
        matryoshka=_matryoshka(config) if kind == "embed" else None,
        dimensions=pooler_config.dimensions,
        joins_pairs=_joins_pairs(config, source),
        templated=scoring is not None and scoring.templated,
        softcap=getattr(config, "answer_softcap", None),
        language=language,
    )


def _embedder(
    pooler_config: PoolerConfig, style: HeadStyle, folder: Path | None
) -> tuple[tuple[Dense, ...], HeadStyle]:
    """How hidden states become embeddings: as Sentence-Transformers' files say, else as the family does."""
    files = read_sentence_embedder(folder)
    pooling = style.embedding or style.pooling if files is None else files.pooling
    if pooling == "EOS" and pooler_config.seq_pooling_type is None:
        raise ValidationError(
            'This model has no pooling of its own for embeddings; pass pooler_config={"pooling_type": "MEAN"}, '
            "or CLS or LAST."
        )
    return () if files is None else files.dense, HeadStyle(pooling, use_activation=files is None or files.normalize)


def _steps(pooler_config: PoolerConfig, task: Task, width: int, reward: Reward | None) -> dict[str, Any]:
    """STEP pooling (process reward models): which tokens and which columns stay."""
    own = None if reward is None else reward.step_token
    kind = pooler_config.tok_pooling_type or ("ALL" if own is None else "STEP")
    if not task.startswith("token_") or kind != "STEP":
        return {}
    columns = tuple(pooler_config.returned_token_ids or ()) or None
    if columns is not None and not all(0 <= column < width for column in columns):
        raise ValidationError(
            f"returned_token_ids {list(columns)} reach beyond the {width} values of each token; for logits of tokens "
            'of a language model: hf_overrides={"classifier_from_token": […], "method": "no_post_processing"}.',
            parameter="returned_token_ids",
        )
    step = own if pooler_config.step_tag_id is None else pooler_config.step_tag_id
    return {"steps": True, "step_token": step, "columns": columns}


def _matryoshka(config: Any) -> tuple[int, ...] | None:
    sizes = getattr(config, "matryoshka_dimensions", None)
    return tuple(sizes) if sizes else () if getattr(config, "is_matryoshka", False) else None


def _joins_pairs(config: Any, source: HeadSource) -> bool:
    """As vLLM's converter writes it (``use_pad_token`` is the older name); language models join unless it says."""
    said = [config_field(config, name) for name in ("use_sep_token", "use_pad_token")]
    return next((not one for one in said if isinstance(one, bool)), source.rows is not None)


def _calibration(pooler_config: PoolerConfig) -> tuple[float | None, float | None]:
    mean, sigma = pooler_config.logit_mean, pooler_config.logit_sigma
    if sigma == 0:
        raise ValidationError("logit_sigma cannot be 0 (division by zero)")
    return mean, sigma


def _pooling(pooler_config: PoolerConfig, style: HeadStyle, pad_token: int | None) -> Pooling:
    kind = pooler_config.seq_pooling_type or style.pooling
    if kind == "NOT_PAD" and pad_token is None:
        kind = "LAST"
    if kind not in get_args(Pooling) or (kind == "EOS" and style.eos_token is None):
        raise NotImplementedError(f"pooling type {kind!r}; jaxpool pools {', '.join(get_args(Pooling))}.")
    return kind  # type: ignore[return-value]


def _dtype(asked: str, config: Any, stored: str | None, platform: str) -> str:
    """``auto``: bfloat16 on accelerators; on the CPU what the checkpoint declares, and float32 for float16.

    float16 itself overflows, and bfloat16 in its place would round what the checkpoint holds.
    """
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
    return "float32" if declared in ("float32", "float16") and platform == "cpu" else "bfloat16"


def _head_dtype(config: Any, compute: str) -> str:
    asked = getattr(config, "head_dtype", None)
    if asked is None:
        return "float32"
    if asked == "model":
        return compute
    if asked not in _DTYPES:
        raise ConfigError(f"head_dtype must be 'model' or one of {', '.join(_DTYPES)}; got {asked!r}.")
    return _DTYPES[asked]
