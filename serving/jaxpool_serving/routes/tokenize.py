"""``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool_serving.chats import prompts
from jaxpool_serving.compute import check_sizes
from jaxpool_serving.deadlines import in_time
from jaxpool_serving.keys import MODELS, TOKENIZER_THREADS, Served
from jaxpool_serving.models import served
from jaxpool_serving.routes.bodies import json_body
from jaxpool_serving.schemas.errors import RequestError, document, validated
from jaxpool_serving.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizeForms,
    TokenizeResponse,
    parse,
)
from jaxpool_serving.tokenise import blaming_the_tokenizer

if TYPE_CHECKING:
    from jaxpool.llm import LLM

Answer = TypeVar("Answer")

routes = web.RouteTableDef()


@routes.post("/tokenize")
async def tokenize(request: web.Request) -> web.Response:
    """Token ids of a text, however many."""
    body = parse(await json_body(request))
    model = _named(request.app, body.model)
    async with in_time(request):
        [text] = await prompts(request.app, model, body) if isinstance(body, TokenizeChatRequest) else [body.prompt]
        check_sizes(request.app, [len(text)])
        return web.json_response(await _in_thread(request, _tokenized, model.llm, text, body))


@routes.post("/detokenize")
async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids."""
    body = validated(DetokenizeRequest, document(await json_body(request)))
    model = _named(request.app, body.model)
    check_sizes(request.app, [len(body.tokens)])
    async with in_time(request):
        return web.json_response(await _in_thread(request, _detokenized, model.llm, body))


def _named(app: web.Application, name: str | None) -> Served:
    models = app[MODELS]
    if name and name not in models:
        message = f"The model `{name}` does not exist. Valid aliases: {', '.join(models)}."
        raise RequestError(404, "NotFoundError", message, "model")
    return served(app, name)


async def _in_thread(request: web.Request, work: Callable[..., Answer], *arguments: Any) -> Answer:
    return await request.app[TOKENIZER_THREADS].run(work, *arguments)


def _tokenized(llm: LLM, text: str, body: TokenizeForms) -> TokenizeResponse:
    with blaming_the_tokenizer(), llm.tokenizer.reading() as vocabulary:
        ids = vocabulary.ids(text, special_tokens=body.add_special_tokens)
        pieces = vocabulary.pieces(ids) if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": llm.tokenizer.max_length, "tokens": ids, "token_strs": pieces}


def _detokenized(llm: LLM, body: DetokenizeRequest) -> DetokenizeResponse:
    if stray := next((token for token in body.tokens if token >= 2**32), None):
        raise ValidationError(f"Token id {stray} is out of vocabulary")
    with blaming_the_tokenizer(), llm.tokenizer.reading() as vocabulary:
        return {"prompt": vocabulary.text(body.tokens)}
