"""``POST /score`` and ``POST /rerank``, for models of one label and for embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from aiohttp import web

from jaxpool.text.prompts import pairs, to_score
from jaxpool_serving.bodies import parse_body, request_id
from jaxpool_serving.compute import Job, check_sizes, compute, deadline
from jaxpool_serving.models import find_model
from jaxpool_serving.schemas.scoring import (
    ScoringRequest,
    parse_rerank,
    parse_score,
    rerank_response,
    score_response,
)
from jaxpool_serving.state import MODELS, TOKENIZER_THREADS, ServedModel
from jaxpool_serving.tokenization import tokenizer_errors

if TYPE_CHECKING:
    from jaxpool.llm import LLM

routes = web.RouteTableDef()


@routes.post("/score")
@routes.post("/v1/score")
async def score(request: web.Request) -> web.Response:
    """How well pairs of texts match."""
    _refuse_where_nothing_scores(request.app)
    body = await parse_body(request, parse_score)
    model = _scoring(request.app, body.model)
    _, scores, tokens = await _scores(request, model, body)
    return web.json_response(score_response(request_id(request, body), model.name, scores, tokens))


@routes.post("/rerank")
@routes.post("/v1/rerank")
@routes.post("/v2/rerank")
async def rerank(request: web.Request) -> web.Response:
    """Documents in the order in which they match a query."""
    _refuse_where_nothing_scores(request.app)
    body = await parse_body(request, parse_rerank)
    model = _scoring(request.app, body.model)
    documents, scores, tokens = await _scores(request, model, body)
    identity = request_id(request, body)
    return web.json_response(rerank_response(identity, model.name, documents, scores, body.top_n, tokens))


def _scores_pairs(llm: LLM) -> bool:
    spec = llm.engine.spec
    return spec.task == "embed" or (spec.task == "classify" and spec.num_labels == 1)


def _refuse_where_nothing_scores(app: web.Application) -> None:
    """404 whatever the body says, as from a server that has no such route; not while a model is still loading."""
    models = app[MODELS].values()
    if all(one.done() and not one.exception() and not _scores_pairs(one.result().llm) for one in models):
        raise web.HTTPNotFound


def _scoring(app: web.Application, name: str | None) -> ServedModel:
    model = find_model(app, name)
    if not _scores_pairs(model.llm):
        raise web.HTTPNotFound
    return model


async def _scores(request: web.Request, model: ServedModel, body: ScoringRequest) -> tuple[list[str], list[float], int]:
    """The texts on the second side, the score of each, and the tokens of all."""
    llm, spec = model.llm, model.llm.engine.spec
    limits = body.limits(spec.max_length)
    first, second = sides = to_score(*body.sides(spec.architecture))
    if any(limits):
        for texts in sides:
            check_sizes(request.app, [len(text) for text in texts])
        async with deadline(request, body.timeout):
            first, second = await request.app[TOKENIZER_THREADS].run(_shortened, llm, sides, limits)
    if spec.task == "classify":
        prompts = pairs(first, second, joined=llm.reads_pairs_joined)
        found = await compute(request, model, Job.of(body, prompts))
        return sides[1], [row[0] for row in found.values], found.tokens
    found = await compute(request, model, Job.of(body, [*first, *second]))
    vectors = np.asarray(found.values)
    return sides[1], list(_cosines(vectors[: len(first)], vectors[len(first) :])), found.tokens


def _shortened(llm: LLM, sides: tuple[list[str], list[str]], limits: tuple[int, int]) -> list[list[str]]:
    with tokenizer_errors(), llm.tokenizer.reading() as vocabulary:
        return [
            [vocabulary.beginning(text, limit) for text in texts] if limit else texts
            for texts, limit in zip(sides, limits, strict=True)
        ]


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each vector of ``second`` with its partner in ``first``, or with the only one there; float32."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / np.maximum(lengths, 1e-8).astype(np.float32)
