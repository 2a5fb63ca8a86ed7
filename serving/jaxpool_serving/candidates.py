"""Labels that a request names: put into words, computed in the company of other requests, made into scores."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from aiohttp import web

from jaxpool.errors import EngineError, ValidationError
from jaxpool.zero_shot.prompts import text_of
from jaxpool_serving.chat_rendering import templates
from jaxpool_serving.compute import Job, Scores, check_sizes, check_tokens, compute, deadline
from jaxpool_serving.schemas.request import TextInput
from jaxpool_serving.state import OPTIONS, RECORD, RENDERERS, TOKENIZER_THREADS, ServedModel
from jaxpool_serving.tokenization import CHARACTERS_PER_TOKEN, PIECE, tokenizer_errors

if TYPE_CHECKING:
    from jaxpool.zero_shot.kinds import Kind
    from jaxpool.zero_shot.options import Question
    from jaxpool_serving.schemas.classify import ClassifyChatRequest, ClassifyRequest

REMEMBERED = 64
"""Questions of a model whose words and trees are kept, so that the next request with the same one finds them."""
MOST_REMEMBERED = 32_000
"""Characters of such a question."""


async def judge(
    request: web.Request, served: ServedModel, body: ClassifyRequest | ClassifyChatRequest, question: Question
) -> Scores:
    """How well labels fit texts: values are float32 ``[texts, labels]``, in logarithms.

    Raises:
        ValidationError: the question does not fit the model or the server's limits, or a text does not fit.
        others: as `compute`.
    """
    if not isinstance(body, TextInput):
        raise ValidationError("candidate_labels go with input, not with messages.", parameter="candidate_labels")
    if body.long_texts():
        raise ValidationError("candidate_labels do not go with long_text: texts are read whole.", parameter="long_text")
    texts, app = [text_of(prompt) for prompt in body.prompts()], request.app
    _check(app, question, texts)
    language = served.llm.engine.spec.language is not None
    job = Job.of(body, texts)
    if language and set(job.tokenization) - {"add_special_tokens"}:
        raise ValidationError(
            "truncate_prompt_tokens and padding would change the prompt, not the text; shorten the texts.",
            parameter="truncate_prompt_tokens",
        )
    async with deadline(request, body.timeout):
        kind = await _kind(app, served, question)
        read: Sequence[Any]
        if language:
            works, values, read = await _answers(request, served, kind, job)
            cached = 0 if request.app[OPTIONS].enable_prompt_tokens_details else None
        else:
            works = kind.work(texts)
            prompts = [*kind.common, *itertools.chain.from_iterable(works)]
            found = await compute(request, served, replace(job, prompts=prompts, activated=kind.params.use_activation))
            values, read, cached = list(found.values), found.prompt_ids, found.cached
    numbers = iter(values)
    common = list(itertools.islice(numbers, len(kind.common)))
    scores = np.stack([kind.score(work, list(itertools.islice(numbers, len(work))), common) for work in works])
    if not np.isfinite(scores).all():
        raise EngineError("scores are not finite")
    return Scores(scores.astype(np.float32), read, cached)


def _check(app: web.Application, question: Question, texts: Sequence[str]) -> None:
    """Refuse what would be too much, before anything is tokenised."""
    options, labels, around = app[OPTIONS], len(question.labels), question.size
    check_sizes(app, [len(text) + around for text in texts])
    for count, what in (
        (labels, "candidate labels"),
        (len(texts) * labels if question.multi_label else 0, "questions (texts times labels)"),
    ):
        if count > options.texts_per_request:
            raise ValidationError(
                f"This request has {count} {what} and the server takes at most {options.texts_per_request}.",
                parameter="candidate_labels",
                value=count,
            )
    # labels are tokenised behind the prompt, each of them
    if around * labels > CHARACTERS_PER_TOKEN * options.tokens_per_request:
        raise ValidationError(
            f"The prompt with its examples is too long for {labels} labels: {around} characters each.",
            parameter="prompt",
            value=around,
        )


async def _kind(app: web.Application, served: ServedModel, question: Question) -> Kind:
    """How the model answers this question, made in a thread, or found where it was asked before."""
    kept = served.questions
    if question in kept:
        kept[question] = kept.pop(question)  # the last one used comes last
        return kept[question]
    found = await app[TOKENIZER_THREADS].run(_made, app, served, question, asyncio.get_running_loop())
    if question.size <= MOST_REMEMBERED:
        kept[question] = found
        while len(kept) > REMEMBERED:
            del kept[next(iter(kept))]
    return found


def _made(app: web.Application, served: ServedModel, question: Question, loop: asyncio.AbstractEventLoop) -> Kind:
    from jaxpool.zero_shot.kinds import kind_of
    from jaxpool.zero_shot.served import READS, STEPS

    llm = served.llm

    def render(conversations: list[Any], options: Mapping[str, Any]) -> list[str]:
        asked = templates(llm) | {"conversations": conversations, "template": app[OPTIONS].chat_template, **options}
        asked["max_chars"] = app[OPTIONS].max_text_chars
        return asyncio.run_coroutine_threadsafe(app[RENDERERS].render(json.dumps(asked).encode()), loop).result()

    with tokenizer_errors():
        return kind_of(
            question,
            llm.engine.spec,
            llm.tokenizer,
            asking=llm.asking,
            render=render,
            reads=READS,
            steps=STEPS,
        )


async def _answers(
    request: web.Request, served: ServedModel, kind: Kind, job: Job
) -> tuple[list[list[Any]], list[np.ndarray], list[np.ndarray]]:
    """Of a language model: pieces of each text, what came of all of them, those of the question first, and tokens."""
    options, record, threads = request.app[OPTIONS], request[RECORD], request.app[TOKENIZER_THREADS]
    sizes = [len(text) for text in job.prompts]
    record.model = served.name
    with served.batcher.admission.room(len(sizes), sum(sizes) // CHARACTERS_PER_TOKEN + len(sizes)) as room:
        record.texts, started = len(sizes), time.perf_counter()
        works: list[list[Any]] = []
        count = 0
        for texts in _stretches(job.prompts):
            works += await threads.run(partial(_work, kind, texts))
            count += sum(len(piece.ids) for work in works[-len(texts) :] for piece in work)
            check_tokens(options, count)
        rows = [*kind.common, *itertools.chain.from_iterable(works)]
        record.tokens, record.tokenise = sum(len(row.ids) for row in rows), time.perf_counter() - started
        room.holds(record.tokens, len(rows))
        values, record.queue, record.device, _ = await served.batcher.classify(rows, job.priority)
    return works, values, [row.ids for row in rows]


def _work(kind: Kind, texts: Sequence[str]) -> list[list[Any]]:
    with tokenizer_errors():
        return kind.work(texts)


def _stretches(texts: Sequence[str], most: int = 64) -> list[Sequence[str]]:
    """Some texts at a time, so that requests take turns in the tokenizer and what is too much is seen early."""
    found, start, weight = [], 0, 0
    for index, text in enumerate(texts):
        if index > start and (weight + len(text) > PIECE or index - start == most):
            found.append(texts[start:index])
            start, weight = index, 0
        weight += len(text)
    return [*found, texts[start:]]
