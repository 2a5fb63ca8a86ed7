"""``POST /pooling``."""

from __future__ import annotations

from aiohttp import web

from jaxpool_serving.chats import prompts
from jaxpool_serving.compute import Job, compute
from jaxpool_serving.deadlines import in_time
from jaxpool_serving.models import served
from jaxpool_serving.routes.bodies import parsed, request_id
from jaxpool_serving.schemas.pooling import parse, pooling_bytes, pooling_response, to_pool

routes = web.RouteTableDef()


@routes.post("/pooling")
async def pooling(request: web.Request) -> web.Response:
    """Whatever task the model serves: the bare numbers of each prompt."""
    asked = await parsed(request, parse)
    model = served(request.app, asked.model)
    spec = model.llm.engine.spec
    body = to_pool(asked, spec.task, spec.supported_tasks)
    async with in_time(request, body.timeout):
        job = Job.of(body, await prompts(request.app, model, body))
    scores = await compute(request, model, job)
    answer = (request_id(request, body), model.name, body, scores.values, scores.tokens)
    if body.encoding_format in ("float", "base64"):
        return web.json_response(pooling_response(*answer))
    content, headers = pooling_bytes(*answer)
    return web.Response(body=content, content_type="application/octet-stream", headers=headers)
