"""The one way from the prompts of a request to its scores: checked, admitted, tokenised, batched, all in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool.params import PoolingParams
from jaxpool.text import aggregate
from jaxpool.text.windows import LongText
from jaxpool_serving.schemas.errors import RequestError
from jaxpool_serving.state import OPTIONS, RECORD, TOKENIZER_THREADS, ServedModel
from jaxpool_serving.tokenization import estimate_tokens, prompt_size, rows_of, tokenise

if TYPE_CHECKING:
    import numpy as np

    from jaxpool_serving.options import Options
    from jaxpool_serving.schemas.request import PoolingRequest


@dataclass(frozen=True, slots=True)
class Job:
    """What one request wants computed.

    Attributes:
        prompts: texts, lists of token ids, or pairs ``{"prompt": …, "text_pair": …}``.
        tokenization: options for the tokenizer (truncation, special tokens, padding).
        activated: whether scores are wanted after the activation; None: as the model is configured.
        priority: lower goes first.
        timeout: seconds from the request's arrival, after which nobody wants the answer; None: as the server is
            configured.
        long_text: what becomes of texts that are longer than the model reads; see ``LongText``.
        dimensions: size that embeddings are cut to; None: as the model is configured.
        salt: requests of another one do not share what is computed of their texts' beginnings.
    """

    prompts: Sequence[Any]
    tokenization: Mapping[str, Any]
    activated: bool | None = None
    priority: int = 0
    timeout: float | None = None
    long_text: Mapping[str, Any] = field(default_factory=dict)
    dimensions: int | None = None
    salt: str | None = None

    @classmethod
    def of(cls, body: PoolingRequest, prompts: Sequence[Any]) -> Job:
        """What a request's body asks for."""
        salt = body.cache_salt
        return cls(prompts, body.tokenization(), body.use_activation, body.priority, body.timeout, salt=salt)


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer to a job.

    Attributes:
        values: float32 ``[prompts, labels]``; for tasks of tokens a list of ``[tokens, labels]``.
        prompt_ids: token ids of each prompt, as they were computed.
        cached: how many of them were not computed for this request; None: the server does not tell.
    """

    values: Any
    prompt_ids: Sequence[Sequence[int] | np.ndarray]
    cached: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all prompts, after truncation and padding."""
        return sum(map(len, self.prompt_ids))


async def compute(request: web.Request, served: ServedModel, job: Job) -> Scores:
    """Computes a job in company of other requests.

    If its client leaves or its deadline passes, what is not on the device yet is dropped.

    Raises:
        ValidationError: too many prompts, or one that cannot be tokenised as asked.
        QueueFullError: there is no room now.
        RequestError: 504, the deadline has passed.
        TokenizerError, EngineError: the tokenizer or the device failed at one of the prompts.
    """
    async with deadline(request, job.timeout):
        return await _compute(request, served, job)


async def _compute(request: web.Request, served: ServedModel, job: Job) -> Scores:
    spec, options, record = served.llm.engine.spec, request.app[OPTIONS], request[RECORD]
    sizes = [prompt_size(prompt) for prompt in job.prompts]
    _check(job, sizes, request.app, served)
    params = PoolingParams(dimensions=job.dimensions)
    if job.dimensions is not None:
        from jaxpool.engine import postprocess

        postprocess.check(spec, served.name, params)
    record.model = served.base or served.name
    with served.batcher.admission.room(len(sizes), estimate_tokens(job.prompts, sizes, spec.max_length)) as room:
        record.texts, started = len(sizes), time.perf_counter()
        activated = spec.use_activation if job.activated is None else job.activated
        threads = request.app[TOKENIZER_THREADS]
        long = LongText.of(job.long_text, spec.max_length)
        texts = await tokenise(served.llm, threads, job.prompts, sizes, job.tokenization, long)
        rows = rows_of(texts, activated, job.salt, served.adapter)
        if len(rows) > len(texts) and len(rows) > options.max_windows_per_request:
            raise ValidationError(
                f"This request's texts have {len(rows)} windows and the server takes at most "
                f"{options.max_windows_per_request}; split it, or ask for longer windows.",
                parameter="window",
                value=len(rows),
            )
        record.tokens = sum(len(row.ids) for row in rows)
        record.tokenise = time.perf_counter() - started
        check_tokens(options, record.tokens)
        room.holds(record.tokens, len(rows))
        values, record.queue, record.device, cached = await served.batcher.classify(rows, job.priority)
    if long is not None and len(rows) > len(texts):
        how = long.aggregate_for(served.answers.problem == "multi")
        values = aggregate.of_texts(values, texts, how, per_token=spec.per_token)
    if spec.steps or spec.dimensions is not None or job.dimensions is not None:
        from jaxpool.engine.postprocess import (
            select,  # not above: it brings JAX, and the server listens before that is there
        )

        values = [select(spec, params, row, one) for row, one in zip(rows, values, strict=True)]
    return Scores(values, [text.ids for text in texts], cached if options.enable_prompt_tokens_details else None)


def _check(job: Job, sizes: Sequence[int], app: web.Application, served: ServedModel) -> None:
    """Refuse what a schema cannot see."""
    check_sizes(app, sizes)
    truncate = job.tokenization.get("truncate_prompt_tokens")
    if truncate is not None and truncate > served.llm.engine.spec.max_length:
        raise ValidationError(
            "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size."
        )


def check_sizes(app: web.Application, sizes: Sequence[int]) -> None:
    """Raise ValidationError for more prompts, or a longer one, than the server takes; before any are tokenised.

    ``sizes`` are the characters, or token ids, of each prompt.
    """
    options, given = app[OPTIONS], len(sizes)
    if not given:
        raise ValidationError("You must pass at least one prompt")
    if given > options.texts_per_request:
        raise ValidationError(
            f"This request has {given} prompts and the server takes at most {options.texts_per_request}; split it.",
            parameter="input",
            value=given,
        )
    if max(sizes) > options.max_text_chars:
        raise ValidationError(
            f"Prompt {sizes.index(max(sizes))} has {max(sizes)} characters (or token ids) and the server takes at most "
            f"{options.max_text_chars}, even where it would be truncated.",
            parameter="input",
            value=max(sizes),
        )


def check_tokens(options: Options, tokens: int) -> None:
    """Raise ValidationError for more tokens than a request may have."""
    if tokens > options.tokens_per_request:
        raise ValidationError(
            f"This request has {tokens} tokens and the server takes at most {options.tokens_per_request}; split it.",
            parameter="input",
        )


DEADLINE = "X-Request-Timeout"
"""Header with the seconds that the client waits; it beats the field ``timeout``."""


@asynccontextmanager
async def deadline(request: web.Request, timeout: float | None = None) -> AsyncIterator[None]:
    """Inside, everything is cancelled once the deadline of ``request`` has passed.

    Args:
        request: from whose arrival the seconds count.
        timeout: what its body says of them, or None; then the server's default counts.

    Raises:
        RequestError: 504, the deadline has passed.
        ValidationError: the header `DEADLINE` is no number of seconds.
    """
    seconds = _seconds(request, timeout)
    if seconds is None:
        yield
        return
    try:
        async with asyncio.timeout(request[RECORD].arrived + seconds - time.monotonic()) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        message = f"The answer was not ready within {seconds:g} s."
        raise RequestError(504, "GatewayTimeoutError", message, "timeout") from None


def _seconds(request: web.Request, timeout: float | None) -> float | None:
    word = request.headers.get(DEADLINE)
    if word is None:
        return request.app[OPTIONS].request_timeout if timeout is None else timeout
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValidationError(f"The header {DEADLINE} must be a positive number of seconds.")
    return seconds
