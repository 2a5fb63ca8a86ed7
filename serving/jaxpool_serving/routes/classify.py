"""``POST /classify``."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from jaxpool.ops.host_activations import activate
from jaxpool_serving.chats import prompts
from jaxpool_serving.compute import Job, compute
from jaxpool_serving.deadlines import in_time
from jaxpool_serving.models import classifier
from jaxpool_serving.routes.bodies import parsed, request_id
from jaxpool_serving.schemas.classify import classify_response, parse

routes = web.RouteTableDef()


@routes.post("/classify")
async def classify(request: web.Request) -> web.Response:
    """Labels and probabilities of texts, or of a conversation."""
    body = await parsed(request, parse)
    model = classifier(request.app, body.model)
    spec = model.llm.engine.spec
    activated = spec.use_activation if body.use_activation is None else body.use_activation
    # Who wants both gets them from one computation: the activation is nothing, the model is everything.
    async with in_time(request, body.timeout):
        job = Job.of(body, await prompts(request.app, model, body))
    scores = await compute(request, model, replace(job, activated=activated and not body.return_logits))
    values, logits = scores.values, scores.values if body.return_logits else None
    if activated and body.return_logits:
        values = activate(values, spec.activation)
    name = request_id(request, body)
    return web.json_response(
        classify_response(name, model.name, spec.labels, values, scores.tokens, body, logits),
    )
