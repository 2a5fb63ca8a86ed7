"""``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool_serving.bodies import parse_body
from jaxpool_serving.chat_rendering import request_prompts
from jaxpool_serving.compute import check_sizes, deadline
from jaxpool_serving.models import find_model
from jaxpool_serving.schemas.errors import RequestError, parse_model, truncated
from jaxpool_serving.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizeForms,
    TokenizeResponse,
    parse_tokenize,
)
from jaxpool_serving.state import MODELS, OPTIONS, TOKENIZER_THREADS, ServedModel
from jaxpool_serving.tokenization import tokenizer_errors

if TYPE_CHECKING:
    from jaxpool.llm import LLM

JSON = "application/json"
AT_ONCE = 10_000
"""Token ids that are written in one call."""

routes = web.RouteTableDef()


@routes.post("/tokenize")
async def tokenize(request: web.Request) -> web.Response:
    """Token ids of a text, however many."""
    body = await parse_body(request, parse_tokenize)
    model = _named(request.app, body.model)
    async with deadline(request):
        [text] = (
            await request_prompts(request.app, model, body) if isinstance(body, TokenizeChatRequest) else [body.prompt]
        )
        check_sizes(request.app, [len(text)])
        return web.Response(text=await _in_thread(request, _tokenized, model.llm, text, body), content_type=JSON)


@routes.post("/detokenize")
async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids."""
    body = await parse_body(request, partial(parse_model, DetokenizeRequest))
    model = _named(request.app, body.model)
    check_sizes(request.app, [len(body.tokens)])
    async with deadline(request):
        return web.Response(text=await _in_thread(request, _detokenized, model.llm, body), content_type=JSON)


def _named(app: web.Application, name: str | None) -> ServedModel:
    names = [*app[MODELS], *app[OPTIONS].aliases]
    if name and name not in names:
        message = f"The model `{truncated(name)}` does not exist. Valid aliases: {', '.join(names)}."
        raise RequestError(404, "NotFoundError", message, "model")
    return find_model(app, name)


async def _in_thread(request: web.Request, work: Callable[..., str], *arguments: Any) -> str:
    return await request.app[TOKENIZER_THREADS].run(work, *arguments)


def _tokenized(llm: LLM, text: str, body: TokenizeForms) -> str:
    """The answer as JSON."""
    with tokenizer_errors(), llm.tokenizer.reading() as vocabulary:
        ids = vocabulary.ids(text, special_tokens=body.add_special_tokens)
        pieces = vocabulary.pieces(ids) if body.return_token_strs else None
    longest = llm.tokenizer.max_length
    answer: TokenizeResponse = {"count": len(ids), "max_model_len": longest, "tokens": ids, "token_strs": pieces}
    if len(ids) <= AT_ONCE:
        return json.dumps(answer)
    return "".join(json.JSONEncoder().iterencode(answer))  # in Python, where other threads get their turn


def _detokenized(llm: LLM, body: DetokenizeRequest) -> str:
    """The answer as JSON."""
    if stray := next((token for token in body.tokens if token >= 2**32), None):
        raise ValidationError(f"Token id {stray} is out of vocabulary")
    with tokenizer_errors(), llm.tokenizer.reading() as vocabulary:
        answer: DetokenizeResponse = {"prompt": vocabulary.text(body.tokens)}
    return json.dumps(answer)
