"""``POST /v1/load_lora_adapter`` and ``POST /v1/unload_lora_adapter``, where the server was started to allow them."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool_serving.bodies import parse_body
from jaxpool_serving.models import find_model, loaded
from jaxpool_serving.schemas.adapters import LoadAdapterRequest, UnloadAdapterRequest
from jaxpool_serving.schemas.errors import RequestError, parse_model, truncated
from jaxpool_serving.state import MODELS, OPTIONS

routes = web.RouteTableDef()


@routes.post("/v1/load_lora_adapter")
async def load(request: web.Request) -> web.Response:
    """Load an adapter, for requests that name it as their model. Those under way are not disturbed."""
    _refuse_unless_allowed(request.app)
    body = await parse_body(request, partial(parse_model, LoadAdapterRequest))
    model = find_model(request.app, body.base_model_name)
    if body.lora_name in request.app[MODELS]:
        raise ValidationError(f"There is a model called {body.lora_name!r} already.", parameter="lora_name")
    adapters = model.llm.engine.adapters
    if adapters is None:
        raise ValidationError(f"The model {model.name!r} was started without room for adapters: --enable-lora.")
    await asyncio.to_thread(adapters.add, body.lora_name, body.lora_path, replace=body.load_inplace)
    return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@routes.post("/v1/unload_lora_adapter")
async def unload(request: web.Request) -> web.Response:
    """Let go of an adapter; requests that have named it already are still answered."""
    _refuse_unless_allowed(request.app)
    body = await parse_body(request, partial(parse_model, UnloadAdapterRequest))
    for model in loaded(request.app):
        adapters = model.llm.engine.adapters
        if adapters is not None and await asyncio.to_thread(adapters.drop, body.lora_name):
            return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
    raise RequestError(404, "NotFoundError", f"The lora adapter '{truncated(body.lora_name)}' cannot be found.")


def _refuse_unless_allowed(app: web.Application) -> None:
    """404, as from a server without these routes."""
    if not app[OPTIONS].allow_runtime_lora_updating:
        raise web.HTTPNotFound
