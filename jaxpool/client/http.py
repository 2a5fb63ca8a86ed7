"""Clients of the server: ``AsyncClient``, and ``Client`` for programs without an event loop of their own."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Self, TypeVar, cast

import aiohttp
import yarl

from jaxpool.client.protocol import Classification, Prompt, answered, classifications, inputs, refusal, retry_after
from jaxpool.errors import ValidationError

API_KEY = "JAXPOOL_API_KEY"
"""Environment variable that holds the key when none is given; the server reads it too."""
RETRIED = frozenset({429, 502, 503})
"""The server is busy, loading or restarting, as it says itself or as a proxy before it does. Not 504: time is up."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 8.0
"""Seconds; doubled from retry to retry."""
LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more patience than this is not waited for."""
LONGEST_SLEEP = 30.0
"""Seconds; one that asks for more than this is asked again earlier, since queues shrink faster than thought."""
SAME_REQUEST = frozenset({307, 308})
"""Redirects that keep the method and the body."""
MOST_REDIRECTS = 5

Result = TypeVar("Result")


class AsyncClient:
    """Asks a jaxpool server, or another one with vLLM's ``/classify``.

    Refusals that pass (429, 502, 503) and lost connections are retried: after as long as ``Retry-After``
    says (30 s at most), and a random time that grows from retry to retry. That is safe, since nothing on the server
    changes. Texts and key go to the server of ``base_url`` alone: a redirect to another one is an error.

    Args:
        base_url: of the server, with a path if it is mounted under one.
        api_key: bearer token; None takes the environment variable ``JAXPOOL_API_KEY``, if there is one.
        timeout: seconds that one attempt may take.
        max_retries: attempts after the first, for each request.
        max_inputs: most prompts of a request; longer lists become several requests.
        concurrency: most requests under way at a time.
        ssl_context: certificates to trust and to show; None trusts what the system trusts.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 10,
        max_inputs: int = 256,
        concurrency: int = 8,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if min(max_inputs, concurrency) < 1 or max_retries < 0:
            raise ValidationError("max_inputs and concurrency must be at least 1, max_retries at least 0.")
        self.base_url = base_url.rstrip("/")
        self.max_retries, self.max_inputs, self.concurrency = max_retries, max_inputs, concurrency
        key = os.environ.get(API_KEY) if api_key is None else api_key
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        # not the connector's limit: the time-out of an attempt should not run while it waits for its turn
        self._slots = asyncio.Semaphore(concurrency)
        self._ssl = True if ssl_context is None else ssl_context
        self._session: aiohttp.ClientSession | None = None  # made by the first request: it needs a running loop

    async def classify(self, prompts: Prompt | Sequence[Prompt], **fields: Any) -> list[Classification]:
        """Labels and probabilities, one result per prompt and in their order.

        Args:
            prompts: one prompt or a list of them. A flat list of integers is one.
            **fields: other fields of the request, such as ``model``, ``truncate_prompt_tokens`` or ``timeout``.

        Raises:
            ValidationError: there is no prompt, or one is none.
            ServerError: a request was refused, every attempt has failed, or the answer is not one result per prompt;
                requests still under way are dropped.
            ConnectionError: there is no server, after every attempt.
            TimeoutError: an attempt took longer than ``timeout``.
        """
        asked = inputs(prompts)
        pieces = [asked[start : start + self.max_inputs] for start in range(0, len(asked), self.max_inputs)]
        answers: list[list[Classification]] = [[]] * len(pieces)
        numbered = enumerate(pieces)

        async def worker() -> None:
            for number, piece in numbered:
                answer = await self.post("/classify", {**fields, "input": piece})
                answers[number] = classifications(answer, len(piece))

        workers = [asyncio.ensure_future(worker()) for _ in range(min(self.concurrency, len(pieces)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [result for answer in answers for result in answer]

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Any other resource of the server, such as ``/tokenize``: one JSON body for another.

        Raises:
            ServerError, ConnectionError, TimeoutError: as in `classify`.
        """
        return await self._request("POST", path, json=body)

    async def wait_until_ready(self, timeout: float = 600.0) -> None:
        """Returns when every model of the server is warm.

        Raises:
            TimeoutError: that took longer than ``timeout`` seconds.
        """
        async with asyncio.timeout(timeout):
            while True:
                try:
                    address = f"{self.base_url}/ready"
                    async with self._opened().get(address, ssl=self._ssl, allow_redirects=False) as response:
                        if response.status == 200:
                            return
                        if response.status not in RETRIED:
                            raise await refusal(response)
                except aiohttp.ClientConnectionError:
                    pass  # not listening yet
                await asyncio.sleep(FIRST_BACKOFF)

    async def close(self) -> None:
        """Closes the connections. Safe to call twice; a later request opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0),
            )
        return self._session

    async def _request(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        for attempt in range(self.max_retries + 1):
            failure: Exception
            try:
                async with self._slots:
                    response = await self._follow(method, f"{self.base_url}/{path.lstrip('/')}", body)
                    async with response:
                        if response.status == 200:
                            return cast("dict[str, Any]", await answered(response))
                        failure, asked = await refusal(response), retry_after(response)
                if response.status not in RETRIED or asked > LONGEST_WAIT:
                    raise failure
            except TimeoutError:
                raise TimeoutError(f"no answer from {self.base_url} within {self._timeout.total} s") from None
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                failure, asked = ConnectionError(f"no answer from {self.base_url}: {error}"), 0.0
                if isinstance(error, aiohttp.ClientSSLError):  # will not get better
                    raise failure from error
            except aiohttp.ClientError as error:  # an address that is none, an answer that is not HTTP
                raise ConnectionError(f"no answer from {self.base_url}: {error}") from error
            if attempt < self.max_retries:
                backoff = min(FIRST_BACKOFF * 2**attempt, LONGEST_BACKOFF)
                # many clients that were refused together should not come back together
                await asyncio.sleep(min(asked, LONGEST_SLEEP) + random.uniform(0, backoff))
        raise failure

    async def _follow(self, method: str, address: str, body: Mapping[str, Any]) -> aiohttp.ClientResponse:
        """The answer, after redirects that stay on the server and keep the request."""
        for _ in range(MOST_REDIRECTS):
            response = await self._opened().request(method, address, ssl=self._ssl, allow_redirects=False, **body)
            try:
                target = response.url.join(yarl.URL(response.headers["Location"]))
            except (KeyError, ValueError):
                return response
            if response.status not in SAME_REQUEST or target.origin() != response.url.origin():
                return response
            response.release()
            address = str(target)
        return response


class Client:
    """`AsyncClient` for programs that do not wait: the same methods, each returning when the answer is there.

    Works inside a running event loop too, as in notebooks; threads may share one. Its own event loop runs in a
    thread until the client is closed, or forgotten.

    Args:
        base_url: of the server.
        **settings: keyword arguments of `AsyncClient`.
    """

    def __init__(self, base_url: str = "http://127.0.0.1:8000", **settings: Any) -> None:
        self._client = AsyncClient(base_url, **settings)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="jaxpool client", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _close, self._client, self._loop, thread)
        """Closes the connections and ends the thread. Safe to call twice."""

    def classify(self, prompts: Prompt | Sequence[Prompt], **fields: Any) -> list[Classification]:
        """See `AsyncClient.classify`."""
        return self._wait(self._client.classify(prompts, **fields))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `AsyncClient.post`."""
        return self._wait(self._client.post(path, body))

    def wait_until_ready(self, timeout: float = 600.0) -> None:
        """See `AsyncClient.wait_until_ready`."""
        self._wait(self._client.wait_until_ready(timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        if not self.close.alive:
            work.close()
            raise ConnectionError("the client is closed")
        answer = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return answer.result()
        except BaseException:  # Ctrl-C
            answer.cancel()
            raise


def _close(client: AsyncClient, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    async def end() -> None:
        unfinished = asyncio.all_tasks() - {asyncio.current_task()}  # of a call that Ctrl-C ended
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await client.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    if thread is not threading.current_thread():  # garbage may be collected in it
        thread.join()
        loop.close()
