"""``POST /predict`` and ``POST /``: classification as other servers spell it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
from aiohttp import web

from jaxpool.ops.host_activations import activate
from jaxpool_serving.compute import Job, compute
from jaxpool_serving.models import classifier
from jaxpool_serving.routes.bodies import parsed
from jaxpool_serving.schemas.classify import ranked
from jaxpool_serving.schemas.errors import parse_as
from jaxpool_serving.schemas.predict import PredictRequest, TextClassificationRequest

ACTIVATIONS: Mapping[str | None, Literal["identity", "sigmoid", "softmax"]] = {
    None: "identity",  # the model has applied its own
    "none": "identity",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
}

routes = web.RouteTableDef()


@routes.post("/predict")
async def predict(request: web.Request) -> web.Response:
    """Labels and scores of texts, best first; the protocol of Text Embeddings Inference."""
    body = await parsed(request, partial(parse_as, PredictRequest))
    model = classifier(request.app, body.model)
    job = Job(body.prompts(), body.tokenization(), False if body.raw_scores else None)
    scores = await compute(request, model, job)
    answer = ranked(model.llm.labels, np.asarray(scores.values))
    return web.json_response(answer if body.is_batch else answer[0])


@routes.post("/")
async def inference(request: web.Request) -> web.Response:
    """Labels and scores of texts, best first; the protocol of Hugging Face Inference Endpoints."""
    body = await parsed(request, partial(parse_as, TextClassificationRequest))
    model = classifier(request.app, body.model)
    function = body.parameters.function_to_apply if body.parameters else None
    scores = await compute(request, model, Job(body.prompts(), {}, None if function is None else False))
    values = np.asarray(scores.values)
    top_k = body.parameters.top_k if body.parameters else None
    return web.json_response(ranked(model.llm.labels, activate(values, ACTIVATIONS[function]), top_k))
