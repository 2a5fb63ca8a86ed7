"""The server's resources: ``/classify``, ``/health`` (alive) and ``/ready`` (warm)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool_serving.keys import OPTIONS, SERVED, TOKENIZER_THREADS, Served
from jaxpool_serving.schemas import ClassifyRequest, RequestError, classify_response, parse

if TYPE_CHECKING:
    from jaxpool.engine import Row
    from jaxpool.llm import LLM

# fields of a request that are the tokenizer's business
TOKENIZATION = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens", "padding")

routes = web.RouteTableDef()


@routes.get("/health", allow_head=False)
async def health(_: web.Request) -> web.Response:
    """200 as long as the process answers, warm or not."""
    return web.Response()


@routes.get("/ready", allow_head=False)
async def ready(request: web.Request) -> web.Response:
    """200 once the model is loaded and every program compiled; 503 before."""
    served = _served(request.app)
    return web.json_response({"status": "ready", "queued_texts": served.batcher.queued})


@routes.post("/classify")
async def classify(request: web.Request) -> web.Response:
    """Classify one text or a list of them; see `ClassifyRequest` and `classify_response`."""
    if request.content_type != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise RequestError(400, "Bad Request", message)
    body = parse(await request.read())
    options = request.app[OPTIONS]
    if body.model and body.model != options.model_name:
        raise RequestError(404, "NotFoundError", f"The model `{body.model}` does not exist.")
    served = _served(request.app)
    prompts = body.prompts()
    # a request larger than the queue would be answered 429 for ever
    most = min(options.max_inputs, options.max_queued_texts)
    _check(body, len(prompts), most, served.llm.engine.spec.max_length)

    with served.batcher.room(len(prompts)):
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(request.app[TOKENIZER_THREADS], _rows, served.llm, body, prompts)
        values = await served.batcher.classify(rows)
    request_id = request.headers.get("X-Request-Id", body.request_id)
    tokens = sum(len(row.ids) for row in rows)
    labels = served.llm.engine.spec.labels
    return web.json_response(classify_response(request_id, options.model_name, labels, values, tokens))


def _served(app: web.Application) -> Served:
    served = app[SERVED]
    if not served.done() or served.exception():
        raise RequestError(503, "ServiceUnavailableError", "The model is still loading.", retry_after=1)
    return served.result()


def _check(body: ClassifyRequest, prompts: int, max_inputs: int, max_length: int) -> None:
    """Refuse what a schema cannot see."""
    if not prompts:
        raise ValidationError("You must pass at least one prompt")
    if prompts > max_inputs:
        raise ValidationError(
            f"This request has {prompts} prompts and the server takes at most {max_inputs}; split it.",
            parameter="input",
            value=prompts,
        )
    if body.truncate_prompt_tokens is not None and body.truncate_prompt_tokens > max_length:
        raise ValidationError(
            "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size."
        )


def _rows(llm: LLM, body: ClassifyRequest, prompts: Sequence[str | list[int]]) -> list[Row]:
    """Tokenise a request; runs in a thread, where fast tokenizers let the event loop go on."""
    from jaxpool.engine import Row

    options = body.model_dump(include=set(TOKENIZATION), exclude_none=True)
    activated = llm.engine.spec.use_activation if body.use_activation is None else body.use_activation
    return [Row(text.ids, text.types, activated) for text in llm.tokenizer.encode(prompts, options)]
