"""``POST /classify``."""

from __future__ import annotations

from aiohttp import web

from jaxpool_serving.compute import Job, compute
from jaxpool_serving.models import served
from jaxpool_serving.routes.bodies import json_body, request_id
from jaxpool_serving.schemas.classify import classify_response, parse

routes = web.RouteTableDef()


@routes.post("/classify")
async def classify(request: web.Request) -> web.Response:
    """Classify one text or a list of them; see `ClassifyRequest` and `classify_response`."""
    body = parse(await json_body(request))
    model = served(request.app, body.model)
    scores = await compute(request, model, Job.of(body, body.prompts()))
    labels = model.llm.engine.spec.labels
    return web.json_response(
        classify_response(request_id(request, body), model.name, labels, scores.values, scores.tokens)
    )
