"""Bodies that are made to stop the server: bombs, giants, and lists of wrong things."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from jaxpool import LLM
from jaxpool.errors import ValidationError
from jaxpool_serving.bodies import MIN_UNPACKED
from jaxpool_serving.schemas import json_body
from jaxpool_serving.schemas.errors import SchemaError, parse_model, parse_object
from jaxpool_serving.schemas.json_body import MAX_MEMBERS
from jaxpool_serving.schemas.tokenize import DetokenizeRequest

from .conftest import serving
from .test_classify import post, probs
from .test_faults import Wire, close, head, status_of, wire

JSON = {"Content-Type": "application/json"}
MIB = 2**20


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """256 MiB in one."""
    return gzip.compress(bytes(256 * MIB), 1)


async def send(server: Wire, data: bytes, path: str = "/classify", **headers: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{server.port}{path}"
    with io.BytesIO(data) as body:
        async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=JSON | headers) as response:
            return response.status, await response.text()


@pytest.mark.parametrize("key", [None, "s3cret"])
async def test_bombs_are_refused_unopened_on_every_path(
    llm: LLM, bomb: bytes, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(zlib, "decompressobj", lambda *how, **more: opened.append(how))
    async with wire(llm, api_keys=(key,) if key else ()) as server:
        for path in ("/classify", "/detokenize", "/health", "/nope", "/classify/") * 4:
            reader, writer = await server.open()
            writer.write(head(len(bomb), "Content-Encoding: gzip").replace(b"/classify", path.encode()) + bomb)
            status = await status_of(reader)
            assert status == (401 if key and path != "/health" else 307 if path.endswith("/") else 415)
            await close(writer)
    assert not opened


async def test_a_request_that_is_refused_is_closed_at_once(llm: LLM) -> None:
    async with wire(llm, api_keys=("s3cret",)) as server:
        for path in (b"/classify", b"/nope"):
            reader, writer = await server.open()
            writer.write(head(10**6).replace(b"/classify", path) + b" " * 1000)  # and nothing more
            async with asyncio.timeout(PATIENCE):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 401")
            assert b"connection: close" in answer.lower()
            await close(writer)


async def test_compressed_bodies_where_they_are_switched_on(llm: LLM, bomb: bytes) -> None:
    body = json.dumps({"input": "It was great."}).encode()
    plain = json.dumps({"input": ["It was great."] * 1000}).encode()
    async with wire(llm, compressed_bodies=True, max_body_bytes=2**20, max_body_ratio=50) as server:
        for encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            status, answer = await send(server, compress(body), **{"Content-Encoding": encoding})
            assert status == 200
            assert len(probs(json.loads(answer))) == 1
        wrong = {
            bomb: 413,
            gzip.compress(b" " * 2**19): 413,  # in size it could pass
            gzip.compress(plain)[:-9]: 400,
            gzip.compress(plain) + gzip.compress(b" "): 400,
            b"no gzip": 400,
            b"": 400,
        }
        for data, expected in wrong.items():
            assert (await send(server, data, **{"Content-Encoding": "gzip"}))[0] == expected, data[:20]
        for other in ("br", "zstd", "gzip, gzip"):
            assert (await send(server, body, **{"Content-Encoding": other}))[0] == 415
        assert (await send(server, body, **{"Content-Encoding": "identity"}))[0] == 200
    assert len(gzip.compress(b" " * MIN_UNPACKED)) < MIN_UNPACKED / 50  # so that the ratio decides above, and not this


def hostile() -> dict[str, bytes]:
    """Bodies that are a burden to read, or to complain about."""
    return {
        "one string": b'{"input": "' + b"a" * (16 * MIB - 20) + b'"}',
        "escapes": b'{"input": [' + b",".join([b'"' + b"\\n" * MIB + b'"'] * 7) + b"]}",
        "more than ASCII": json.dumps({"input": ["бв" * MIB] * 3}, ensure_ascii=False).encode(),
        "ids": b'{"input": [' + b"1," * 8 * (MIB - 10) + b"1]}",
        "lists": b'{"input": [' + b"[]," * 500_000 + b"1]}",
        "keys": b"{" + b",".join(b'"%d":1' % n for n in range(500_000)) + b"}",
        "brackets": b'{"input": ' + b"[" * 16 * (MIB - 10),
        "spaces": b'{"input": ' + b" " * 16 * (MIB - 10),
        "wrong members": b'{"messages": [' + b"1," * 32_000 + b"null]}",
        "wrong lists": b'{"input": [' + b"[]," * 32_000 + b"null]}",
    }


@contextlib.asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """The longest that the event loop stood still, in seconds of this process: others on the machine do not count."""
    longest = [0.0]

    async def ticking() -> None:
        before = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            longest[0] = max(longest[0], now - before)
            before = now

    task = asyncio.create_task(ticking())
    yield longest
    task.cancel()


async def test_no_body_stops_the_event_loop(llm: LLM) -> None:
    bodies = hostile()
    async with wire(llm) as server, lag() as longest:
        for path in ("/classify", "/score"):
            for name, body in bodies.items():
                assert (await send(server, body, path))[0] == (400 if path == "/classify" else 404), name
        worst = b'{"tokens": [' + b"-1," * 10**6 + b"1]}"
        assert (await send(server, worst, "/detokenize"))[0] == 400
    assert longest[0] < 1.5, "a tenth of a second is meant; seconds are the defect"


async def test_half_a_million_characters_do_not_stop_the_event_loop(llm: LLM) -> None:
    async with wire(llm) as server:
        async with lag() as longest:
            body = {"prompt": "great " * 80_000, "return_token_strs": True}
            answer = json.loads((await send(server, json.dumps(body).encode(), "/tokenize"))[1])
            tokens = json.dumps({"tokens": answer["tokens"]}).encode()
            text = json.loads((await send(server, tokens, "/detokenize"))[1])["prompt"]
        assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
        assert text.count("great") == 80_000
    assert longest[0] < 1.5


def test_bounds_of_ids_are_one_complaint() -> None:
    for tokens, complaints in (([-1] * 200_000, 1), ([-1, 2**63, 5], 2)):
        with pytest.raises(SchemaError, match=f"^{complaints} validation error"):
            parse_model(DetokenizeRequest, json.dumps({"tokens": tokens}).encode())


def test_keys_of_the_outermost_object_are_members() -> None:
    with pytest.raises(ValidationError, match="more than 32768 members"):
        parse_object(b"{" + b",".join(b'"%d":1' % n for n in range(MAX_MEMBERS + 1)) + b"}")
    assert len(parse_object(b"{" + b",".join(b'"%d":1' % n for n in range(MAX_MEMBERS)) + b"}")) == MAX_MEMBERS


WORDS = st.text(st.sampled_from('ab\\"\n\tбя\U0001f600,[]{}: '))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inside: st.lists(inside) | st.dictionaries(WORDS, inside),
)


@settings(max_examples=300, deadline=None)
@given(
    VALUES,
    st.booleans(),
    st.integers(1, 9),
    st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
    st.integers(0, 40),
    st.sampled_from(["", "", '"', "]", "}", ",", "\\", "x"]),
)
def test_large_bodies_read_as_small_ones(
    value: Any, ascii_only: bool, step: int, encoding: str, where: int, junk: str
) -> None:
    def read(load: Any) -> object:
        try:
            return load(body)
        except json.JSONDecodeError as error:
            return error.msg, error.pos

    text = " " + json.dumps(value, ensure_ascii=ascii_only)
    body = (text[:where] + junk + text[where:]).encode(encoding)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(json_body, "AT_ONCE", 0)
        small.setattr(json_body, "STEP", step)
        assert read(json_body.loads) == read(json.loads)


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, max_size=6), st.integers(1, 9), st.integers(1, 30))
def test_the_longest_string_is_found_wherever_steps_begin(texts: list[str], step: int, most: int) -> None:
    body = json.dumps(texts, ensure_ascii=False).encode()
    longest = max((len(json.dumps(text, ensure_ascii=False).encode()) - 1 for text in texts), default=0)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(json_body, "STEP", step)
        small.setattr(json_body, "MAX_STRING_BYTES", most)
        with pytest.raises(ValidationError) if longest > most else contextlib.nullcontext():
            json_body.check_json_size(body)


async def test_large_bodies_get_the_same_answers(llm: LLM) -> None:
    async with serving(llm, max_tokens_per_request=10**6) as client:
        texts = ["It was great.", "bad", 'a \\ " é 日本 \U0001f600']
        _, small = await post(client, {"input": texts})
        _, large = await post(client, {"input": texts, "unknown": "x" * 2 * json_body.AT_ONCE})
        np.testing.assert_allclose(probs(large), probs(small), atol=1e-5)
        for body in ({"input": [[1, "a"]]}, {"messages": [{"role": 1}]}):
            status, small = await post(client, body | {"unknown": "x"})
            assert (status, small) == await post(client, body | {"unknown": "x" * 2 * json_body.AT_ONCE})
