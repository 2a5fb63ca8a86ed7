"""Several models in one process."""

from __future__ import annotations

import asyncio
import copy
import threading
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from patience import PATIENCE

from jaxpool import LLM, AsyncClient
from jaxpool.errors import CheckpointError
from jaxpool_serving.app import init_app
from jaxpool_serving.command import named_models
from jaxpool_serving.options import Options

from .conftest import MODELS, TamperedEngine
from .test_batcher import has_queued
from .test_classify import TEXTS, offline, post, probs
from .test_lifecycle import SMALL, queued, server
from .test_metrics import scraped

BERT, GPT2 = str(MODELS / "bert-cls"), str(MODELS / "gpt2-cls")


def other(llm: LLM) -> LLM:
    """The same model with an engine of its own to hold."""
    twin = copy.copy(llm)
    twin.engine = TamperedEngine(llm.engine)  # type: ignore[assignment]
    return twin


async def test_the_real_command_serves_two_models_and_model_selects() -> None:
    with server("--model", f"one={BERT}", "--model", f"two={GPT2}", *SMALL) as (_, address):
        async with aiohttp.ClientSession(address) as session:
            await queued(session)
            async with session.get("/v1/models") as response:
                assert [card["id"] for card in (await response.json())["data"]] == ["one", "two"]
        async with AsyncClient(address) as client:
            answers = {name: await client.post("/classify", {"input": "a", "model": name}) for name in ("one", "two")}
            unnamed = await client.post("/classify", {"input": "a"})
    assert [answer["model"] for answer in answers.values()] == ["one", "two"]
    assert answers["one"]["data"] != answers["two"]["data"]
    assert unnamed["data"] == answers["one"]["data"]  # the first answers those that name none


async def test_a_model_of_several_names(llm: LLM) -> None:
    app = init_app({"one": llm, "two": other(llm)}, Options(aliases=("uno", "eins")))
    async with TestClient(TestServer(app)) as client:
        for name in ("one", "uno", "eins"):
            status, answer = await post(client, {"input": "a", "model": name})
            assert (status, answer["model"]) == (200, "one")
        assert (await post(client, {"input": "a", "model": "un"}))[0] == 404
        cards = (await (await client.get("/v1/models")).json())["data"]
        assert [(card["id"], card["root"]) for card in cards] == [
            *((name, "one") for name in ("one", "uno", "eins")),
            ("two", "two"),
        ]


async def test_each_model_has_its_own_queue(llm: LLM) -> None:
    one, two = other(llm), other(llm)
    async with TestClient(TestServer(init_app({"one": one, "two": two}, Options(max_queued_texts=8)))) as client:
        one.engine.hold = True  # type: ignore[attr-defined]
        waiting = asyncio.create_task(post(client, {"input": TEXTS * 2, "model": "one"}))
        await has_queued(client, 8)
        assert (await post(client, {"input": "a", "model": "one"}))[0] == 429
        status, answer = await post(client, {"input": TEXTS, "model": "two"})  # not behind the other's queue
        assert status == 200
        seen = await scraped(client)
        assert (seen["jaxpool_queued_texts", "one"], seen["jaxpool_queued_texts", "two"]) == (8, 0)
        assert seen["jaxpool_texts_total", "two"] == 4
        assert (await (await client.get("/ready")).json())["queued_texts"] == 8
        one.engine.release()  # type: ignore[attr-defined]
        assert (await waiting)[0] == 200
    assert probs(answer) == pytest.approx(offline(llm, TEXTS), abs=1e-5)


async def test_ready_when_the_last_one_is(llm: LLM) -> None:
    warm = threading.Event()

    def open_llm() -> LLM:
        warm.wait(PATIENCE)
        return other(llm)

    async with TestClient(TestServer(init_app({"one": llm, "two": open_llm}))) as client:
        assert (await client.get("/ready")).status == 503
        assert (await post(client, {"input": "a"}))[0] == 200  # the one that is warm answers
        assert (await post(client, {"input": "a", "model": "two"}))[0] == 503
        warm.set()
        async with asyncio.timeout(PATIENCE):
            while (await client.get("/ready")).status != 200:
                await asyncio.sleep(0.01)
        assert (await post(client, {"input": "a", "model": "two"}))[0] == 200


async def test_one_that_cannot_be_opened_keeps_the_application_unready(llm: LLM) -> None:
    def open_llm() -> LLM:
        raise CheckpointError("no such checkpoint")

    async with TestClient(TestServer(init_app({"one": llm, "two": open_llm}))) as client:
        await asyncio.sleep(0.1)
        assert (await client.get("/ready")).status == 503


def test_one_that_cannot_be_opened_ends_the_process_while_the_other_compiles() -> None:
    with server("--model", f"big={GPT2}", "--model", f"gone={MODELS / 'no-such-model'}") as (process, _):
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        said = process.stderr.read()
    assert "the model 'gone' cannot be opened, so nothing is served" in said
    assert "no-such-model" in said
    assert "Traceback" not in said
    assert "Fatal" not in said


@pytest.mark.parametrize(
    ("given", "served_as", "named"),
    [
        (None, None, {"default": None}),
        ([BERT], None, {"bert-cls": BERT}),
        ([BERT], "mine", {"mine": BERT}),
        (["org/name"], None, {"org/name": "org/name"}),
        (["mine=org/name"], None, {"mine": "org/name"}),
        ([f"one={BERT}", GPT2], None, {"one": BERT, "gpt2-cls": GPT2}),
    ],
)
def test_names(given: list[str] | None, served_as: str | None, named: dict[str, str | None]) -> None:
    assert named_models(given, served_as) == named


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").mkdir()
    assert named_models(["lr=0.1"], None) == {"lr=0.1": "lr=0.1"}
