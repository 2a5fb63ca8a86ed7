"""A vector for every text or conversation: ``POST /v1/embeddings`` for OpenAI's clients, ``/v2/embed`` for Cohere's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool.text.prompts import TextPrompt
from jaxpool_serving.bodies import parse_body, request_id
from jaxpool_serving.chat_rendering import request_prompts
from jaxpool_serving.compute import Job, compute, deadline
from jaxpool_serving.models import could_embed, find_embedder, refuse_where_none
from jaxpool_serving.schemas.cohere import CohereRequest, cohere_response
from jaxpool_serving.schemas.embeddings import EmbeddingChatsRequest, embedding_response, parse_embeddings
from jaxpool_serving.schemas.errors import parse_model
from jaxpool_serving.schemas.pooling import pooling_bytes
from jaxpool_serving.state import OPTIONS

if TYPE_CHECKING:
    from jaxpool_serving.state import ServedModel

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


@routes.post("/v2/embed")
async def embed(request: web.Request) -> web.Response:
    """A vector for every text, with a prompt of the checkpoint's own; the protocol of Cohere."""
    refuse_where_none(request.app, could_embed)
    body = await parse_body(request, partial(parse_model, CohereRequest))
    model = find_embedder(request.app, body.model)
    async with deadline(request, body.timeout):
        prompts, special = await _prompts(request.app, model, body)
    job = Job(prompts, body.tokenization() | special, None, body.priority, body.timeout)
    found = await compute(request, model, replace(job, dimensions=body.output_dimension))
    body.check_lengths(found.prompt_ids)
    identity = f"embd-{request_id(request, body)}"
    return web.json_response(cohere_response(identity, body, np.asarray(found.values), found.tokens))


async def _prompts(app: web.Application, model: ServedModel, body: CohereRequest) -> tuple[list[Any], dict[str, bool]]:
    """What is read, and the tokenizer's option for it: through the chat template if there is one and a prompt to say.

    Without an ``input_type`` the checkpoint's default prompt stands before texts, as everywhere.
    """
    tokenizer, named = model.llm.tokenizer, body.input_type
    if named is not None and named not in tokenizer.prefixes:
        known = ", ".join(sorted(tokenizer.prefixes))
        raise ValidationError(
            f"Unsupported input_type {named!r}. "
            + (
                f"Supported values: {known}"
                if known
                else "This model does not define any input_type task instructions."
            ),
            parameter="input_type",
        )
    prompt = tokenizer.prefixes[named] if named is not None else ""
    template = app[OPTIONS].chat_template or (tokenizer.vocabulary and tokenizer.vocabulary.chat_template)
    if body.texts is not None and not (prompt and template):
        return [text if named is None else TextPrompt(prompt + text) for text in body.texts], {}
    chats = EmbeddingChatsRequest.model_validate({"messages": body.messages(prompt)})
    texts = await request_prompts(app, model, chats)
    return [text if named is None else TextPrompt(text) for text in texts], {"add_special_tokens": False}
