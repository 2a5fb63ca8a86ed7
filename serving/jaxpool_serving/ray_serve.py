"""The same server as a Ray Serve deployment: each replica is one application with its own models, behind Serve's proxy.

    from ray import serve
    from jaxpool_serving.ray_serve import deployment

    serve.run(deployment({"my-model": {"model": "org/name"}}, num_replicas=4, ray_actor_options={"num_gpus": 1}))

Serve speaks ASGI and the application does not, so a replica listens on a socket of its own and hands requests on;
answers are byte for byte the server's.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from jaxpool_serving.app import init_app
from jaxpool_serving.connections import BACKLOG
from jaxpool_serving.options import Options
from jaxpool_serving.run import make_runner
from jaxpool_serving.state import MODELS

if TYPE_CHECKING:
    from jaxpool.llm import LLM

AT_A_TIME = 512
"""Requests that a replica holds at a time; beyond it they wait in Serve."""
HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length", "te", "trailer"})
"""Headers that concern one connection."""


def open_llm(arguments: Mapping[str, Any]) -> LLM:
    """A model, warm with a few programs."""
    from jaxpool.llm import LLM

    return LLM(**{"compile": "behind", **arguments})


class Replica:
    """One server of a deployment.

    Args:
        models: served name -> arguments of ``LLM``.
        options: fields of the server's ``Options``.
    """

    def __init__(self, models: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> None:
        self._models, self._options = models, options
        self._folder = tempfile.TemporaryDirectory(prefix="jaxpool-")
        self._starting: asyncio.Task[aiohttp.ClientSession] | None = None

    async def _session(self) -> aiohttp.ClientSession:
        """A client of the application, which is started by the first who asks."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> aiohttp.ClientSession:
        models = {name: partial(open_llm, arguments) for name, arguments in self._models.items()}
        app = init_app(models, Options(**{"access_log": None, **self._options}))
        runner = make_runner(app)
        await runner.setup()
        socket = str(Path(self._folder.name) / "socket")
        await web.UnixSite(runner, socket, backlog=BACKLOG).start()
        await asyncio.gather(*app[MODELS].values())
        connector = aiohttp.UnixConnector(socket, limit=AT_A_TIME)
        # Bodies are handed on as they came: compressed ones stay so
        timeout = aiohttp.ClientTimeout(total=None)
        return aiohttp.ClientSession("http://replica", connector=connector, timeout=timeout, auto_decompress=False)

    async def check_health(self) -> None:
        """Serve asks it: a replica is healthy once its models are warm; raises what kept them from opening."""
        await self._session()

    async def __call__(self, request: Request) -> Response:
        """The server's answer to one request."""
        session = await self._session()
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in HOP}
        body = await request.body()
        async with session.request(request.method, path, headers=headers, data=body) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            return Response(await answer.read(), answer.status, kept)


def deployment(
    models: Mapping[str, Mapping[str, Any]], *, options: Mapping[str, Any] | None = None, **deployed: Any
) -> Any:
    """A Ray Serve application.

    Args:
        models: served name -> arguments of ``LLM``; the first answers requests that name none.
        options: fields of the server's ``Options``.
        **deployed: options of ``serve.deployment``: ``num_replicas``, ``autoscaling_config``, ``ray_actor_options``
            (``{"num_gpus": 1}``, ``{"resources": {"TPU": 4}}``) and so on.

    Returns:
        what ``serve.run`` takes.
    """
    made = serve.deployment(Replica, **{"name": "jaxpool", "max_ongoing_requests": AT_A_TIME, **deployed})
    return made.bind({name: dict(arguments) for name, arguments in models.items()}, dict(options or {}))
