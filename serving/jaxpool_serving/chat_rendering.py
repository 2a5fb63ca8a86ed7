"""Conversations to prompts, in other processes.

Chat templates are programs, so they run where one that does not end can be ended: see `render_worker`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool_serving.render_worker import HEAD, SIZE
from jaxpool_serving.schemas.errors import RequestError
from jaxpool_serving.schemas.request import ChatOptions, TextInput
from jaxpool_serving.state import OPTIONS, RENDERERS, TOKENIZER_THREADS

if TYPE_CHECKING:
    from aiohttp import web

    from jaxpool.llm import LLM
    from jaxpool_serving.options import Options
    from jaxpool_serving.state import ServedModel

log = logging.getLogger("jaxpool.serving")

COMMAND = (sys.executable, "-P", "-m", "jaxpool_serving.render_worker")

ENVIRONMENT = ("HOME", "LANG", "LC_", "LD_LIBRARY_PATH", "PATH", "PYTHON", "TZ", "VIRTUAL_ENV")
"""How the names of the variables begin that the processes see; keys are not among them."""

PROCESSES = 2
"""As many conversations are rendered at a time."""


async def renderer_context(app: web.Application) -> AsyncIterator[None]:
    """A cleanup context of the application: its `Renderers`."""
    app[RENDERERS] = renderers = Renderers(app[OPTIONS].template_timeout)
    yield
    renderers.close()


class Renderers:
    """Renders conversations in processes, which are started when they are needed and kept.

    Args:
        seconds: that the conversations of one request may take.

    Attributes:
        started: processes, so far.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, 0
        self._room = asyncio.Semaphore(PROCESSES)
        self._idle: list[_Process] = []
        self._ended: list[_Process] = []

    async def render(self, question: bytes) -> list[str]:
        """The texts of some conversations.

        Args:
            question: JSON of the arguments of ``scoring.rendered``, for ``tokenizer`` an object of the two fields that
                it reads.

        Raises:
            ValidationError: as ``chat.render``.
            RequestError: 504, the template has not ended in time, and its process is gone.
        """
        async with self._room:
            while True:
                fresh = not self._idle
                process = self._started() if fresh else self._idle.pop()
                try:
                    answer = json.loads(await process.ask(question, self.seconds))
                    break
                except (EOFError, OSError):
                    code = process.end()
                    if code == -signal.SIGALRM:
                        log.warning("a chat template had not ended after %g s and was stopped", self.seconds)
                        message = f"The chat template was not done within {self.seconds:g} s."
                        raise RequestError(504, "GatewayTimeoutError", message, "messages") from None
                    if fresh:
                        raise RuntimeError(f"the process that renders chat templates has ended: {code}") from None
                except BaseException:  # nobody waits any more
                    process.kill()
                    self._ended.append(process)
                    raise
            self._idle.append(process)
        if "texts" in answer:
            return list(answer["texts"])
        raise ValidationError(answer["message"], parameter=answer["parameter"], value=answer.get("value"))

    def _started(self) -> _Process:
        self._ended = [process for process in self._ended if not process.has_ended()]
        self.started += 1
        return _Process()

    def close(self) -> None:
        """End the processes."""
        for process in (*self._idle, *self._ended):
            process.end()
        self._idle, self._ended = [], []


class _Process:
    """One process, spoken to through a socket."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)},
                start_new_session=True,  # Ctrl-C is for the server, which may have conversations to finish
            )

    async def ask(self, question: bytes, seconds: float) -> bytes:
        """The answer; EOFError or OSError where the process has ended."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, HEAD.pack(seconds, len(question)) + question)
        [size] = SIZE.unpack(await self._read(SIZE.size))
        return await self._read(size)

    async def _read(self, size: int) -> bytes:
        loop, found = asyncio.get_running_loop(), bytearray()
        while len(found) < size:
            if not (part := await loop.sock_recv(self._socket, min(size - len(found), 1 << 20))):
                raise EOFError
            found += part
        return bytes(found)

    def kill(self) -> None:
        """Begin its end."""
        self._socket.close()
        self._process.kill()

    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def end(self) -> int:
        """End it, if it has not ended by itself; returns how it ended, as ``subprocess`` counts."""
        self._socket.close()
        try:
            return self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


GRACE = 0.5
"""Seconds for a process to end that is told to by the end of its input; one that broke off has done so already."""


UNTRUSTED = (
    "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with "
    "untrusted chat template."
)


async def request_prompts(app: web.Application, served: ServedModel, body: TextInput | ChatOptions) -> Sequence[Any]:
    """The prompts of a request in either form; a conversation is one.

    Raises:
        ValidationError: the conversation cannot be rendered, or brings a template that this server does not trust.
        RequestError: 504, the template does not end.
    """
    if isinstance(body, TextInput):
        return body.prompts()
    if body.templates() and not app[OPTIONS].trust_request_chat_template:
        raise ValidationError(UNTRUSTED)
    question = await app[TOKENIZER_THREADS].run(_question, served.llm, body, app[OPTIONS])
    texts, frame = await app[RENDERERS].render(question), served.llm.tokenizer.frame
    return texts if frame is None else [frame.ended(text) for text in texts]


def _question(llm: LLM, body: ChatOptions, options: Options) -> bytes:
    """The arguments of ``scoring.rendered`` as `Renderers` take them."""
    frame = llm.tokenizer.frame
    if frame is not None and frame.layout:
        raise ValidationError("This model compares two texts; send them to /score or /rerank.", parameter="messages")
    asked = templates(llm) | {
        "conversations": body.conversations(),
        "template": next(filter(None, body.templates()), options.chat_template),
        "add_generation_prompt": body.add_generation_prompt if frame is None else frame.generation,
        "continue_final_message": body.continue_final_message,
        "content_format": options.chat_template_content_format,
        "variables": {**({} if frame is None else frame.variables), **body.variables()},
        "max_chars": options.max_text_chars,
    }
    return json.dumps(asked).encode()


def templates(llm: LLM) -> dict[str, Any]:
    """The argument ``tokenizer`` of ``scoring.rendered`` as `Renderers` take it.

    Raises:
        ValidationError: the model has no tokenizer.
    """
    vocabulary = llm.tokenizer.vocabulary
    if vocabulary is None:
        raise ValidationError(llm.tokenizer.absent)
    return {
        "tokenizer": {
            "chat_template": vocabulary.chat_template,
            "special_tokens_map": vocabulary.special_tokens_map,
        }
    }
