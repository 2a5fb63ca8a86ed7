"""Which tasks a checkpoint serves, and what vLLM says about the others."""

from __future__ import annotations

from typing import Literal, get_args

from jaxpool.errors import ValidationError
from jaxpool.params import NO_PLUGIN

Task = Literal["classify", "token_classify", "embed", "token_embed", "zero_shot"]
Kind = Literal["classify", "embed", "language"]
"""What hidden states pass: a head of labels, none, or the vocabulary's."""

OF_KIND: dict[Kind, tuple[Task, ...]] = {
    "classify": ("classify", "token_classify"),
    "embed": ("embed", "token_embed"),
    "language": ("zero_shot",),
}
"""Tasks of a kind; the first is served unless another is asked for."""

SUFFIXES: tuple[tuple[str, str, Kind | None], ...] = (
    ("ForCausalLM", "generate", None),
    ("ForConditionalGeneration", "generate", None),
    ("ChatModel", "generate", None),
    ("LMHeadModel", "generate", None),
    ("ForTextEncoding", "pooling", "embed"),
    ("EmbeddingModel", "pooling", "embed"),
    ("ForSequenceClassification", "pooling", "classify"),
    ("ForTokenClassification", "pooling", "classify"),
    ("ClassificationModel", "pooling", "classify"),
    ("Qwen2ForRewardModel", "pooling", "classify"),
    ("Qwen2ForProcessRewardModel", "pooling", "classify"),
    ("ForRewardModeling", "pooling", "embed"),
    ("RewardModel", "pooling", "embed"),
    ("Model", "pooling", "embed"),
)
"""Architecture suffix -> (runner, kind); the first match decides, as in vLLM."""

MASKED: dict[str, Kind] = {"BertForMaskedLM": "classify", "RobertaForMaskedLM": "embed"}
"""Masked language models that vLLM opens without a flag, and what as: classifiers of tokens, or embedders."""

TASK_REQUIRED = """
                pooling_task required for `LLM.encode`.
                Please use one of the more specific methods or set the pooling_task when using `LLM.encode`:
                  - For embeddings, use `LLM.embed(...)` or `pooling_task="embed"`.
                  - For classification logits, use `LLM.classify(...)` or `pooling_task="classify"`.
                  - For similarity scores, use `LLM.score(...)`.
                  - For rewards, `pooling_task="classify"` or `pooling_task="token_classify"`.
                  - For token classification, use `pooling_task="token_classify"`.
                  - For multi-vector retrieval, use `pooling_task="token_embed"`.
                """
NO_EMBEDDING = "Embedding API is not supported by this model. Try converting the model using `--convert embed`."
NO_CLASSES = "Classification API is not supported by this model. Try converting the model using `--convert classify`."
NO_LABELS = (
    "This is a language model, which has no labels of its own: pass some, as in candidate_labels=['bug', 'praise']. "
    + NO_CLASSES
)
NOT_GENERATIVE = (
    "LLM.{}() is only supported for generative models. "
    "Try passing `--runner generate` to use the model as a generative model."
)


def kind_of(architecture: str, runner: str, convert: str, sentence_embedder: bool = False) -> Kind:
    """What an architecture becomes under these flags (vLLM's runner and convert).

    Args:
        architecture: class name from ``config.json``.
        runner, convert: as given to ``LLM``.
        sentence_embedder: whether the folder says how sentences are embedded (a Sentence-Transformers Pooling module).

    Raises:
        ValidationError: naming the flag to pass.
    """
    _one_of("runner", runner, ("auto", "pooling", "generate", "draft"))
    _one_of("convert", convert, ("auto", "none", "classify", "embed"))
    if runner in ("generate", "draft"):
        raise ValidationError(
            f"This model does not support `--runner {runner}`: jaxpool classifies, it does not generate."
        )
    by_suffix = next((kind for suffix, _, kind in SUFFIXES if architecture.endswith(suffix)), None)
    if convert in ("classify", "embed"):
        return "classify" if convert == "classify" else "embed"
    if by_suffix == "embed" and architecture.endswith(("RewardModel", "ForRewardModeling")):
        raise ValidationError(
            f"{architecture} is a reward model whose head jaxpool does not implement; "
            'convert="embed" (`--convert embed`) gives its hidden states.'
        )
    if by_suffix is not None:
        return by_suffix
    if architecture in MASKED:
        return "embed" if sentence_embedder else MASKED[architecture]
    if convert == "auto" and (runner == "pooling" or sentence_embedder):
        return "embed"
    if convert == "auto" and architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "language"
    raise ValidationError(
        f"{architecture} is not a classifier by itself (runner={runner!r}, convert={convert!r}). "
        'Pass convert="classify" (`--convert classify`) to use its score head, or LM-head rows as one, '
        'or convert="embed" (`--convert embed`) for embeddings.'
    )


def choose(kind: Kind, *, tokens: bool, before_head: bool, asked: str | None = None) -> tuple[Task, tuple[Task, ...]]:
    """The one task that is served, and those that could be.

    Args:
        kind: from ``kind_of``.
        tokens: whether the architecture classifies tokens.
        before_head: whether a classifier of sequences has layers before its head that one of tokens lacks.
        asked: ``PoolerConfig.task``.

    Raises:
        ValidationError: the architecture has no such task.
    """
    supported = OF_KIND[kind]
    if tokens and kind == "classify":
        supported = ("token_classify",) if before_head else ("token_classify", "classify")
    for task in supported:
        if asked in (None, task):
            return task, supported
    if kind == "language" and asked == "classify":
        raise ValidationError(NO_LABELS)
    other = next((name for name, names in OF_KIND.items() if asked in names and name != kind), None)
    hint = f". Try converting the model using `--convert {other}`." if other else ""
    raise ValidationError(f"Unsupported task: {asked!r} Supported tasks: {supported}{hint}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValidationError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.", parameter=name)


def check(task: str | None, served: str, supported: tuple[str, ...]) -> str:
    """``task``, if it is the one that is served.

    Args:
        task: what the caller of ``LLM.encode`` asked for.
        served: the one task of this instance.
        supported: tasks of the architecture; vLLM would serve one of them at a time.

    Raises:
        ValidationError: it is not served; the message says what would help.
    """
    if task is None:
        raise ValidationError(TASK_REQUIRED)
    if task == "classify" and served == "zero_shot":
        raise ValidationError(NO_LABELS)
    if task == "plugin":
        raise ValidationError(NO_PLUGIN)
    if task not in supported and task in get_args(Task):
        raise ValidationError(NO_EMBEDDING if task in OF_KIND["embed"] else NO_CLASSES)
    if task not in supported:
        raise ValidationError(f"Unsupported task: {task!r} Supported tasks: {supported}")
    if task != served:
        raise ValidationError(f'Try switching the model\'s pooling_task via `PoolerConfig(task="{task}")`')
    return task
