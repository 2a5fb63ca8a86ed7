"""``POST /v1/embeddings``: a vector for every text or conversation, for the clients of OpenAI and vLLM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from aiohttp import web

from jaxpool_serving.bodies import parse_body, request_id
from jaxpool_serving.chat_rendering import request_prompts
from jaxpool_serving.compute import Job, compute, deadline
from jaxpool_serving.models import could_embed, find_embedder, refuse_where_none
from jaxpool_serving.schemas.embeddings import embedding_response, parse_embeddings
from jaxpool_serving.schemas.pooling import pooling_bytes

routes = web.RouteTableDef()


@routes.post("/v1/embeddings")
async def embeddings(request: web.Request) -> web.Response:
    """A vector for every text, or for every conversation."""
    refuse_where_none(request.app, could_embed)
    body = await parse_body(request, parse_embeddings)
    model = find_embedder(request.app, body.model)
    async with deadline(request, body.timeout):
        job = Job.of(body, await request_prompts(request.app, model, body))
    found = await compute(request, model, replace(job, dimensions=body.dimensions))
    answer = (f"embd-{request_id(request, body)}", model.name, body, list(map(np.asarray, found.values)), found.tokens)
    if body.encoding_format in ("float", "base64"):
        return web.json_response(embedding_response(*answer))
    content, headers = pooling_bytes(*answer)
    return web.Response(body=content, content_type="application/octet-stream", headers=headers)
