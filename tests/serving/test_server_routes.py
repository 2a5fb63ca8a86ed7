"""What the server says about itself."""

from __future__ import annotations

import asyncio
import importlib.metadata
import subprocess
import sys
import threading

from patience import PATIENCE

from jaxpool import LLM

from .conftest import serving


async def test_models_and_version(llm: LLM) -> None:
    async with serving(llm) as client:
        models = await (await client.get("/v1/models")).json()
        version = await (await client.get("/version")).json()
    [model] = models["data"]
    assert (models["object"], model["id"], model["object"]) == ("list", "bert", "model")
    assert (model["root"], model["parent"], model["max_model_len"]) == ("bert", None, 48)
    assert model["permission"][0]["id"].startswith("modelperm-")
    assert version == {"version": importlib.metadata.version("jaxpool")}


async def test_load_counts_texts_that_are_not_answered_yet(tampered: LLM) -> None:
    async with serving(tampered) as client:
        with tampered.engine.holding():  # type: ignore[attr-defined]
            asked = asyncio.ensure_future(client.post("/classify", json={"input": ["a", "b", "c"]}))
            async with asyncio.timeout(PATIENCE):
                while (await (await client.get("/load")).json())["server_load"] != 3:
                    await asyncio.sleep(0.01)
        assert (await asked).status == 200
        assert await (await client.get("/load")).json() == {"server_load": 0}


async def test_ping_and_models_while_loading_and_after(tampered: LLM) -> None:
    warm = threading.Event()

    def open_llm() -> LLM:
        warm.wait(PATIENCE)
        return tampered

    async with serving(open_llm, ready=False) as client:
        for response in (await client.get("/ping"), await client.post("/ping", json={})):
            assert response.status == 503
        assert (await (await client.get("/v1/models")).json())["data"] == []
        warm.set()
        async with asyncio.timeout(PATIENCE):
            while (await client.get("/ping")).status != 200:
                await asyncio.sleep(0.01)
        response = await client.post("/ping", json={})
        assert (response.status, await response.text()) == (200, "")
        assert len((await (await client.get("/v1/models")).json())["data"]) == 1


def test_the_server_listens_before_jax_is_there() -> None:
    code = "import jaxpool_serving.command, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "jaxpool_serving.app" in loaded
    assert not {"jax", "transformers", "torch"} & set(loaded)
