"""Files of requests in OpenAI's batch format, answered by the server itself, in order, as many at a time as pays.

A line is ``{"custom_id", "method", "url", "body"}``, its answer ``{"id", "custom_id", "response", "error"}``, as vLLM's
``run_batch`` reads and writes them. Every answer is the one that the server gives to that request over HTTP: the
application runs here, behind a socket of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from jaxpool.errors import InputFileError, JaxpoolError
from jaxpool_serving.app import init_app
from jaxpool_serving.connections import BACKLOG
from jaxpool_serving.options import Options
from jaxpool_serving.run import make_runner
from jaxpool_serving.schemas.request import random_id
from jaxpool_serving.state import MODELS

if TYPE_CHECKING:
    from jaxpool.llm import LLM

AT_A_TIME = 256
"""Requests in flight: more than the device takes at once, and few enough to hold."""

URLS = (
    *("/classify", "/pooling", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    "/v1/embeddings",
)
"""What a line may ask for."""

_HUGE = 1 << 40


class BatchFile:
    """One run of a file, which may be a continuation of an earlier one.

    Args:
        source: file of requests.
        target: file of answers; it appears when all are there.
        job: what must be the same for an earlier run to be gone on with; JSON values.

    Attributes:
        before: answers that an earlier run has left.

    Raises:
        InputFileError: there is no such file.
        JaxpoolError: the target cannot be written, or an earlier run of another job left answers beside it.
    """

    def __init__(self, source: Path, target: Path, job: Mapping[str, Any]) -> None:
        if not source.is_file():
            raise InputFileError(f"{source} does not exist")
        if target.is_dir() or not target.parent.is_dir():
            raise JaxpoolError(f"cannot write {target}: name a file in a folder that exists")
        self.source, self.target = source, target
        self._part = target.with_name(f".{target.name}.part")
        self._job = target.with_name(f".{target.name}.job.json")
        status = source.stat()
        described = dict(job) | {"input": [str(source.absolute()), status.st_size, status.st_mtime_ns]}
        self.before = self._continued(json.loads(json.dumps(described)))

    def _continued(self, described: dict[str, Any]) -> int:
        """Whole answers in what an earlier run left, after half a one is cut off; 0 for a new run."""
        if self._part.exists() and self._job.exists():
            known = json.loads(self._job.read_text(encoding="utf-8"))
            different = sorted(
                name for name in known.keys() | described.keys() if known.get(name) != described.get(name)
            )
            if different:
                raise JaxpoolError(
                    f"{self._part} is what an earlier run left, with another {', '.join(different)}; go on as it was "
                    f"begun, or remove it to begin anew"
                )
            with self._part.open("rb+") as file:
                lines = end = 0
                for line in file:
                    if line.endswith(b"\n"):
                        lines, end = lines + 1, end + len(line)
                file.truncate(end)
            return lines
        self._part.unlink(missing_ok=True)
        self._job.write_text(json.dumps(described), encoding="utf-8")
        return 0

    def lines(self) -> Iterator[str]:
        """Requests that have no answer yet."""
        with self.source.open(encoding="utf-8-sig", errors="replace") as file:
            wanted = (line for line in file if line.strip())
            for number, line in enumerate(wanted):
                if number >= self.before:
                    yield line

    async def answer(
        self,
        name: str,
        model: Callable[[], LLM],
        options: Options | None = None,
        report: Callable[[int], object] = lambda _answers: None,
    ) -> int:
        """Answers every line, and makes the target appear.

        Args:
            name: under which the model is served.
            model: opens it.
            options: of the server.
            report: called with the number of answers whenever one more is written.

        Returns:
            how many answers say that a request failed, of those of this run.
        """
        options = options or Options(max_queued_texts=_HUGE, max_queued_tokens=_HUGE, access_log=None)
        app = init_app({name: model}, options)
        runner = make_runner(app)
        with tempfile.TemporaryDirectory(prefix="jaxpool-") as folder:
            await runner.setup()
            try:
                socket = str(Path(folder) / "socket")
                await web.UnixSite(runner, socket, backlog=BACKLOG).start()
                await asyncio.gather(*app[MODELS].values())
                connector = aiohttp.UnixConnector(socket, limit=AT_A_TIME)
                timeout = aiohttp.ClientTimeout(total=None)
                async with aiohttp.ClientSession("http://batch", connector=connector, timeout=timeout) as session:
                    failed = await self._answer(session, report)
            finally:
                await runner.cleanup()
        self._part.replace(self.target)
        self._job.unlink()
        return failed

    async def _answer(self, session: aiohttp.ClientSession, report: Callable[[int], object]) -> int:
        under_way: deque[asyncio.Task[dict[str, Any]]] = deque()
        failed, written = 0, self.before
        with self._part.open("a", encoding="utf-8") as file:

            async def write() -> None:
                nonlocal failed, written
                answer = await under_way.popleft()
                failed += answer["error"] is not None
                written += 1
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
                file.flush()
                report(written)

            try:
                for line in self.lines():
                    under_way.append(asyncio.create_task(_ask(session, line)))
                    if len(under_way) >= AT_A_TIME:
                        await write()
                while under_way:
                    await write()
                os.fsync(file.fileno())
            finally:
                for task in under_way:
                    task.cancel()
        return failed


async def _ask(session: aiohttp.ClientSession, line: str) -> dict[str, Any]:
    """The answer to one line, whatever is on it."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _refused(None, f"The line is not JSON: {error}")
    if not isinstance(request, dict):
        return _refused(None, "The line must be a JSON object with custom_id, method, url and body.")
    custom_id, url, body = request.get("custom_id"), request.get("url"), request.get("body")
    if url not in URLS:
        return _refused(custom_id, f"The URL {url!r} is not supported here; there are {', '.join(URLS)}.")
    if request.get("method", "POST") != "POST":
        return _refused(custom_id, f"The method must be POST, not {request['method']!r}.")
    embeddings = url == "/v1/embeddings"
    async with session.post("/pooling" if embeddings else url, json=body) as response:
        try:
            found = json.loads(await response.read())
        except ValueError:
            found = {"error": {"message": "The answer is no JSON; ask for encoding_format float or base64."}}
    if response.status != 200 or "error" in found:
        return _line(custom_id, response.status if response.status != 200 else 400, None, found.get("error", found))
    return _line(custom_id, 200, _embeddings(found) if embeddings else found, None)


def _embeddings(pooled: dict[str, Any]) -> dict[str, Any]:
    """An answer of ``/pooling`` in the form of ``/v1/embeddings``."""
    data = [{"index": one["index"], "object": "embedding", "embedding": one["data"]} for one in pooled["data"]]
    return {**pooled, "id": pooled["id"].replace("pool", "embd", 1), "data": data}


def _refused(custom_id: Any, message: str) -> dict[str, Any]:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return _line(custom_id, 400, None, error)


def _line(custom_id: Any, status: int, body: Any, error: Any) -> dict[str, Any]:
    return {
        "id": f"jaxpool-{random_id()}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"jaxpool-batch-{random_id()}", "body": body},
        "error": error,
    }
