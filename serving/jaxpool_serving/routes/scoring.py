"""``POST /score`` and ``POST /rerank``, for models of one label and for embeddings of texts or tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from jaxpool.outputs import likeness
from jaxpool.text.scoring import BY_LIKENESS, ScoreOptions, matched, pairs, shortened, to_score
from jaxpool_serving.bodies import parse_body, request_id
from jaxpool_serving.chat_rendering import templates
from jaxpool_serving.compute import Job, check_sizes, compute, deadline
from jaxpool_serving.models import find_model, refuse_where_none
from jaxpool_serving.schemas.scoring import (
    ScoringRequest,
    parse_rerank,
    parse_score,
    rerank_response,
    score_response,
)
from jaxpool_serving.state import OPTIONS, RENDERERS, TOKENIZER_THREADS, ServedModel
from jaxpool_serving.tokenization import tokenizer_errors

if TYPE_CHECKING:
    from jaxpool.llm import LLM
    from jaxpool_serving.options import Options

routes = web.RouteTableDef()


@routes.post("/score")
@routes.post("/v1/score")
async def score(request: web.Request) -> web.Response:
    """How well pairs of texts match."""
    refuse_where_none(request.app, _scores_pairs)
    body = await parse_body(request, parse_score)
    model = _scoring(request.app, body.model)
    _, scores, tokens = await _scores(request, model, body)
    return web.json_response(score_response(request_id(request, body), model.name, scores, tokens))


@routes.post("/rerank")
@routes.post("/v1/rerank")
@routes.post("/v2/rerank")
async def rerank(request: web.Request) -> web.Response:
    """Documents in the order in which they match a query."""
    refuse_where_none(request.app, _scores_pairs)
    body = await parse_body(request, parse_rerank)
    model = _scoring(request.app, body.model)
    documents, scores, tokens = await _scores(request, model, body)
    identity = request_id(request, body)
    return web.json_response(rerank_response(identity, model.name, documents, scores, body.top_n, tokens))


def _scores_pairs(llm: LLM) -> bool:
    spec = llm.engine.spec
    return spec.task in BY_LIKENESS or (spec.task == "classify" and spec.num_labels == 1)


def _scoring(app: web.Application, name: str | None) -> ServedModel:
    model = find_model(app, name)
    if not _scores_pairs(model.llm) or (model.adapter is not None and len(model.adapter.answers.labels) > 1):
        raise web.HTTPNotFound
    return model


async def _scores(request: web.Request, model: ServedModel, body: ScoringRequest) -> tuple[list[str], list[float], int]:
    """The texts on the second side, the score of each, and the tokens of all."""
    llm, spec = model.llm, model.llm.engine.spec
    options = body.options(spec.max_length)
    sides = to_score(*body.sides(spec.architecture))
    async with deadline(request, body.timeout):
        prompts, tokenization = await _prompts(request.app, llm, sides, options, body.tokenization())
    found = await compute(request, model, replace(Job.of(body, prompts), tokenization=tokenization))
    if spec.task == "classify":
        return sides[1], [row[0] for row in found.values], found.tokens
    first, second = (found.values[: len(sides[0])], found.values[len(sides[0]) :])
    return sides[1], [likeness(one, two) for one, two in zip(matched(first, second), second, strict=True)], found.tokens


async def _prompts(
    app: web.Application, llm: LLM, sides: tuple[list[str], list[str]], options: ScoreOptions, tokenization: Any
) -> tuple[Sequence[Any], dict[str, Any]]:
    """What the model reads, and how it is tokenised: all texts on their own where they are compared, else pairs."""
    reading = llm.reads_pairs(app[OPTIONS].chat_template)
    by_likeness = llm.engine.spec.task in BY_LIKENESS
    templated = reading.template is not None and not by_likeness
    first, second = sides
    if templated or any(options.limits):
        for texts in sides:
            check_sizes(app, [len(text) for text in texts])
    if any(options.limits):
        first, second = await app[TOKENIZER_THREADS].run(_shortened, llm, sides, options)
    if by_likeness:
        return [*first, *second], tokenization
    prompts: Sequence[Any]
    if templated:
        question = await app[TOKENIZER_THREADS].run(_question, llm, first, second, options, app[OPTIONS])
        prompts = await app[RENDERERS].render(question)
    else:
        prompts = pairs(first, second, joined=reading.joined, variables=options.chat_template_kwargs)
    return prompts, reading.tokenization(tokenization, options)


def _shortened(llm: LLM, sides: tuple[list[str], list[str]], options: ScoreOptions) -> list[list[str]]:
    with tokenizer_errors(), llm.tokenizer.reading() as vocabulary:
        return shortened(vocabulary, sides, options)


def _question(llm: LLM, first: list[str], second: list[str], asked: ScoreOptions, options: Options) -> bytes:
    found = llm.reads_pairs(options.chat_template).question(first, second, asked)
    return json.dumps(found | templates(llm) | {"max_chars": options.max_text_chars}).encode()
