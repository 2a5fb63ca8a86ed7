"""The one way from the prompts of a request to its scores: checked, admitted, tokenised, batched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool_serving.keys import OPTIONS, TOKENIZER_THREADS, Served

if TYPE_CHECKING:
    from jaxpool.engine import Row
    from jaxpool.llm import LLM


@dataclass(frozen=True, slots=True)
class Job:
    """What one request wants computed.

    Attributes:
        prompts: texts, lists of token ids, or pairs ``{"text": …, "text_pair": …}``.
        tokenization: options for the tokenizer (truncation, special tokens, padding).
        activated: whether scores are wanted after the activation; None: as the model is configured.
    """

    prompts: Sequence[Any]
    tokenization: Mapping[str, Any]
    activated: bool | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer to a job.

    Attributes:
        values: float32 ``[prompts, labels]``; for tasks of tokens a list of ``[tokens, labels]``.
        prompt_ids: token ids of each prompt, as they were computed.
    """

    values: np.ndarray
    prompt_ids: Sequence[Sequence[int] | np.ndarray]

    @property
    def tokens(self) -> int:
        """Tokens of all prompts, after truncation and padding."""
        return sum(map(len, self.prompt_ids))


async def compute(request: web.Request, served: Served, job: Job) -> Scores:
    """Computes a job in company of other requests. If the client leaves, what is not on the device yet is dropped.

    Raises:
        ValidationError: too many prompts, or one that cannot be tokenised as asked.
        QueueFullError: there is no room now.
        EngineError: the device failed at one of the prompts.
    """
    _check(job, request.app, served)
    with served.batcher.room(len(job.prompts)):
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(request.app[TOKENIZER_THREADS], _rows, served.llm, job)
        values = await served.batcher.classify(rows)
    return Scores(values, [row.ids for row in rows])


def _check(job: Job, app: web.Application, served: Served) -> None:
    """Refuse what a schema cannot see."""
    options, given = app[OPTIONS], len(job.prompts)
    # a request larger than the queue would be answered 429 for ever
    most = min(options.max_inputs, options.max_queued_texts)
    if not given:
        raise ValidationError("You must pass at least one prompt")
    if given > most:
        raise ValidationError(
            f"This request has {given} prompts and the server takes at most {most}; split it.",
            parameter="input",
            value=given,
        )
    truncate = job.tokenization.get("truncate_prompt_tokens")
    if truncate is not None and truncate > served.llm.engine.spec.max_length:
        raise ValidationError(
            "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size."
        )


def _rows(llm: LLM, job: Job) -> list[Row]:
    """Tokenise a request; runs in a thread, where fast tokenizers let the event loop go on."""
    from jaxpool.engine import Row

    activated = llm.engine.spec.use_activation if job.activated is None else job.activated
    return [Row(text.ids, text.types, activated) for text in llm.tokenizer.encode(job.prompts, job.tokenization)]
