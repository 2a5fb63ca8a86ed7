"""``POST /classify``, and ``/predict`` and ``/``: classification as other servers spell it; ``POST /pooling``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool.ops.host_activations import activate
from jaxpool.zero_shot.options import Question
from jaxpool_serving.bodies import parse_body, request_id
from jaxpool_serving.candidates import judge
from jaxpool_serving.chat_rendering import request_prompts
from jaxpool_serving.compute import Job, compute, deadline
from jaxpool_serving.models import find_classifier, find_model, refuse_questions
from jaxpool_serving.schemas.classify import (
    ClassifyChatRequest,
    ClassifyRequest,
    PredictRequest,
    TextClassificationRequest,
    classify_response,
    parse_classify,
    top_labels,
)
from jaxpool_serving.schemas.errors import parse_model
from jaxpool_serving.schemas.pooling import check_task, parse_pooling, pooling_bytes, pooling_response

routes = web.RouteTableDef()


@routes.post("/classify")
async def classify(request: web.Request) -> web.Response:
    """Labels and probabilities of texts, or of a conversation."""
    body = await parse_body(request, parse_classify)
    if (asked := body.asked()) and (question := Question.of(asked)) is not None:
        return await _judged(request, body, question)
    model = find_classifier(request.app, body.model)
    spec = model.llm.engine.spec
    activated = spec.use_activation if body.use_activation is None else body.use_activation
    # Who wants both gets them from one computation: the activation is nothing, the model is everything.
    if body.return_logits and body.long_text == "window":
        raise ValidationError(
            "Windows are put together by probabilities or by logits, not both: ask for return_logits without "
            "long_text='window', or for use_activation=false.",
            parameter="return_logits",
        )
    async with deadline(request, body.timeout):
        job = replace(Job.of(body, await request_prompts(request.app, model, body)), long_text=body.long_texts())
    scores = await compute(request, model, replace(job, activated=activated and not body.return_logits))
    values, logits = scores.values, scores.values if body.return_logits else None
    if activated and body.return_logits:
        values = activate(values, model.answers.activation)
    name = request_id(request, body)
    return web.json_response(
        classify_response(name, model.name, model.answers.labels, values, scores.tokens, body, logits, scores.cached),
    )


async def _judged(
    request: web.Request, body: ClassifyRequest | ClassifyChatRequest, question: Question
) -> web.Response:
    """The same for labels that the request names."""
    model = find_model(request.app, body.model)
    if model.adapter is not None:
        raise ValidationError("Labels of your own are for the model itself, not for an adapter.", parameter="model")
    scores = await judge(request, model, body, question)
    activated = body.use_activation is not False
    values = activate(scores.values, "sigmoid" if question.multi_label else "softmax") if activated else scores.values
    logits, name = scores.values if body.return_logits else None, request_id(request, body)
    return web.json_response(
        classify_response(name, model.name, question.labels, values, scores.tokens, body, logits, scores.cached),
    )


ACTIVATIONS: Mapping[str | None, Literal["identity", "sigmoid", "softmax"]] = {
    None: "identity",  # the model has applied its own
    "none": "identity",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
}


@routes.post("/predict")
async def predict(request: web.Request) -> web.Response:
    """Labels and scores of texts, best first; the protocol of Text Embeddings Inference."""
    body = await parse_body(request, partial(parse_model, PredictRequest))
    model = find_classifier(request.app, body.model)
    job = Job(body.prompts(), body.tokenization(), False if body.raw_scores else None)
    scores = await compute(request, model, job)
    answer = top_labels(model.answers.labels, np.asarray(scores.values))
    return web.json_response(answer if body.is_batch else answer[0])


@routes.post("/")
async def inference(request: web.Request) -> web.Response:
    """Labels and scores of texts, best first; the protocol of Hugging Face Inference Endpoints."""
    body = await parse_body(request, partial(parse_model, TextClassificationRequest))
    model = find_classifier(request.app, body.model)
    function = body.parameters.function_to_apply if body.parameters else None
    scores = await compute(request, model, Job(body.prompts(), {}, None if function is None else False))
    values = np.asarray(scores.values)
    top_k = body.parameters.top_k if body.parameters else None
    return web.json_response(top_labels(model.answers.labels, activate(values, ACTIVATIONS[function]), top_k))


@routes.post("/pooling")
async def pooling(request: web.Request) -> web.Response:
    """Whatever task the model serves: the bare numbers of each prompt."""
    asked = await parse_body(request, parse_pooling)
    model = find_model(request.app, asked.model)
    refuse_questions(model.llm)
    spec = model.llm.engine.spec
    body = check_task(asked, spec.task, spec.supported_tasks)
    async with deadline(request, body.timeout):
        job = Job.of(body, await request_prompts(request.app, model, body))
    scores = await compute(request, model, job)
    name, rest = request_id(request, body), (model.name, body, scores.values, scores.tokens)
    if body.encoding_format in ("float", "base64"):
        return web.json_response(pooling_response(name, *rest))
    content, headers = pooling_bytes(f"pooling-{name}", *rest)
    return web.Response(body=content, content_type="application/octet-stream", headers=headers)
