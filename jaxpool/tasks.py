"""Which tasks a classifier serves, and what vLLM says about the others."""

from __future__ import annotations

from jaxpool.errors import ValidationError

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
ONE_LABEL = "Scoring API is only enabled for num_labels == 1."
NOT_GENERATIVE = (
    "LLM.{}() is only supported for generative models. "
    "Try passing `--runner generate` to use the model as a generative model."
)


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
    if task in ("embed", "token_embed"):
        raise ValidationError(NO_EMBEDDING)
    if task not in supported:
        raise ValidationError(f"Unsupported task: {task!r} Supported tasks: {supported}")
    if task != served:
        raise ValidationError(f'Try switching the model\'s pooling_task via `PoolerConfig(task="{task}")`')
    return task
