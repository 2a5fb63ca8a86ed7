"""What a client makes of prompts that are none, and of answers that are none."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from jaxpool import LLM, AsyncClient
from jaxpool.client.http import LONGEST_BACKOFF, LONGEST_SLEEP
from jaxpool.errors import ServerError, ValidationError

from .test_client import ANSWER, answering


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "^You must pass at least one prompt$"),
        (None, "prompts is None, and should be a text"),
        (["a", None], r"prompts\[1\] is None, and should be a text, token ids or a pair"),
        (["a", 5], r"prompts\[1\] is int 5, "),
        ([[1, 2], [1.5]], r"prompts\[1\] is list \[1\.5\], "),
        ([1, "a"], r"prompts\[0\] is list "),
    ],
)
async def test_what_is_no_prompt_is_named_before_anything_is_sent(prompts: object, words: str) -> None:
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(ValidationError, match=words):
            await client.classify(prompts)  # type: ignore[arg-type]


async def test_no_prompt_is_refused_in_the_words_of_the_library(llm: LLM) -> None:
    with pytest.raises(ValidationError) as library:
        llm.classify([])
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(ValidationError) as ours:
            await client.classify([])
    assert str(ours.value) == str(library.value)


RESULT = {"index": 0, "label": "LABEL_0", "probs": [1.0], "num_classes": 1}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<html>welcome</html>", "no JSON but text/plain.*welcome"),
        ('{"data": [', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("null", "no list `data`: None"),
        ("[]", "no list `data`"),
        ('{"object": "list"}', "no list `data`"),
        (json.dumps({"data": []}), "0 results for 1 prompts"),
        (json.dumps({"data": [RESULT, RESULT]}), "2 results for 1 prompts"),
        (json.dumps({"data": [None]}), "result 0 of the answer is broken"),
        (json.dumps({"data": [{"label": "LABEL_0"}]}), "result 0 of the answer is broken .*probs"),
        (json.dumps({"data": [{"probs": [1.0]}]}), "result 0 of the answer is broken .*label"),
        (json.dumps({"data": [RESULT | {"probs": "high"}]}), "result 0 of the answer is broken .*probs"),
        (json.dumps({"data": [RESULT | {"top_k": [{"label": "a"}]}]}), "result 0 of the answer is broken .*score"),
        (json.dumps({"data": [RESULT | {"index": 3}]}), "result 0 of the answer is broken .*index"),
    ],
)
async def test_a_200_that_is_no_answer_is_an_error(body: str, words: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=body)

    async with answering(handler) as address, AsyncClient(address) as client:
        with pytest.raises(ServerError, match=words) as caught:
            await client.classify(["a"])
    assert caught.value.status == 200


async def test_a_redirect_is_followed_on_the_same_server_only() -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((await request.json())["input"][0])
        return web.json_response(ANSWER)

    async with answering(answer) as other:
        targets = iter(["?again", f"{other}/classify", f"{other}/classify"])

        async def redirect(request: web.Request) -> web.Response:
            if request.query_string == "again":
                return await answer(request)
            status = 302 if request.content_length and request.content_length > 50 else 307
            return web.Response(status=status, headers={"Location": next(targets)})

        async with answering(redirect) as address, AsyncClient(address) as client:
            assert len(await client.classify("mine")) == 1
            for text in ("short", "long " * 20):
                with pytest.raises(ServerError, match=f"redirected to '{other}/classify', which is not followed"):
                    await client.classify(text)
    assert seen == ["mine"]


async def test_the_client_caps_what_it_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
        await real(0)

    async def handler(_: web.Request) -> web.Response:
        return web.json_response(ANSWER) if slept else web.Response(status=429, headers={"Retry-After": "255"})

    async with answering(handler) as address, AsyncClient(address) as client:
        monkeypatch.setattr("jaxpool.client.http.asyncio.sleep", sleep)
        assert len(await client.classify("a")) == 1
    assert len(slept) == 1
    assert LONGEST_SLEEP <= slept[0] <= LONGEST_SLEEP + LONGEST_BACKOFF
