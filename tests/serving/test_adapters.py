"""Adapters over HTTP: chosen by ``model``, listed, loaded and unloaded while other requests are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peft_files
import pytest

from jaxpool import LLM, LoRARequest

from .conftest import MODELS, serving

TEXTS = ["hello world", "a longer text for the model to read"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters: of two labels with names, of five without, and one that keeps the model's own head."""
    root, base = tmp_path_factory.mktemp("adapters"), MODELS / "bert-cls"
    return {
        "spam": _named(root / "spam", base),
        "topics": peft_files.of_bert(root / "topics", base, 2, 5),
        "bare": peft_files.of_bert(root / "bare", base, 3),
    }


def _named(folder: Path, base: Path) -> Path:
    made = peft_files.of_bert(folder, base, 1, 2)
    (made / "config.json").write_text('{"id2label": {"0": "ham", "1": "spam"}}')
    return made


@pytest.fixture(scope="module")
def adapted() -> Iterator[LLM]:
    """bert-cls with room for two adapters."""
    sizes = {"max_model_len": 16, "max_num_batched_tokens": 64, "compile": "ahead"}
    room = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8, "max_lora_cls_labels": 5}
    with LLM(str(MODELS / "bert-cls"), **sizes, **room) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(adapted: LLM, folders: dict[str, Path]) -> dict[str, list[list[float]]]:
    """Probabilities of `TEXTS` by each adapter offline; ``bert`` is the model itself."""
    found = {"bert": adapted.classify(TEXTS, use_tqdm=False)}
    for number, (name, folder) in enumerate(folders.items(), 1):
        found[name] = adapted.classify(TEXTS, use_tqdm=False, lora_request=LoRARequest(name, number, str(folder)))
        adapted.engine.adapters.drop(name)
    return {name: [output.outputs.probs for output in outputs] for name, outputs in found.items()}


async def test_adapters_are_models(adapted: LLM, folders: dict[str, Path], expected: dict) -> None:
    adapted.engine.adapters.add("spam", str(folders["spam"]))
    adapted.engine.adapters.add("topics", str(folders["topics"]))
    async with serving(adapted) as client:
        cards = (await (await client.get("/v1/models")).json())["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [
            ("bert", None),
            ("spam", "bert"),
            ("topics", "bert"),
        ]
        for name, probs in expected.items():
            response = await client.post("/classify", json={"model": name, "input": TEXTS})
            if name == "bare":
                assert response.status == 404
                continue
            answer = await response.json()
            assert answer["model"] == name
            assert [one["num_classes"] for one in answer["data"]] == [len(one) for one in probs]
            for one, wanted in zip(answer["data"], probs):
                np.testing.assert_allclose(one["probs"], wanted, atol=1e-6)
                if name == "spam":
                    assert one["label"] == ("ham", "spam")[int(np.argmax(wanted))]
                if name == "topics":
                    assert one["label"] == f"LABEL_{int(np.argmax(wanted))}"
        named = await (await client.post("/predict", json={"model": "spam", "inputs": TEXTS[0]})).json()
        assert sorted(one["label"] for one in named) == ["ham", "spam"]
    adapted.engine.adapters.drop("spam")
    adapted.engine.adapters.drop("topics")


async def test_loading_and_unloading_disturb_nobody(adapted: LLM, folders: dict[str, Path], expected: dict) -> None:
    """A slot changes hands ten times under load; every answer is that of the adapter which its request named."""
    async with serving(adapted, allow_runtime_lora_updating=True) as client:

        async def load(name: str, **more: object) -> int:
            body = {"lora_name": name, "lora_path": str(folders[name]), **more}
            return (await client.post("/v1/load_lora_adapter", json=body)).status

        async def ask(name: str) -> None:
            answer = await (await client.post("/classify", json={"model": name, "input": TEXTS})).json()
            for one, wanted in zip(answer["data"], expected[name], strict=True):
                np.testing.assert_allclose(one["probs"], wanted, atol=1e-6)

        async def keep_asking(name: str, until: asyncio.Event) -> None:
            while not until.is_set():
                await ask(name)

        assert await load("spam") == 200
        before, done = adapted.engine.begun, asyncio.Event()
        asking = [asyncio.create_task(keep_asking(name, done)) for name in ("bert", "spam", "bert", "spam")]
        for turn in range(10):
            name = ("topics", "bare")[turn % 2]
            assert await load(name) == 200
            await asyncio.gather(*(ask(name) for _ in range(3)))
            assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": name})).status == 200
        done.set()
        await asyncio.gather(*asking)
        assert adapted.engine.begun == before, "loading an adapter compiles no program"
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "spam"})).status == 200


async def test_what_cannot_be_loaded_says_why(adapted: LLM, folders: dict[str, Path], tmp_path: Path) -> None:
    async with serving(adapted, allow_runtime_lora_updating=True) as client:

        async def load(name: str, path: Path | str) -> tuple[int, str]:
            response = await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})
            return response.status, await response.text()

        assert "There is a model called 'bert'" in (await load("bert", folders["spam"]))[1]
        assert (await load("none", tmp_path / "nowhere"))[0] in (400, 500)
        wide = peft_files.of_bert(tmp_path / "wide", MODELS / "bert-cls", 4, 6)
        assert "raise max_lora_cls_labels" in (await load("wide", wide))[1]
        assert (await load("spam", folders["spam"]))[0] == 200
        assert "has already been loaded" in (await load("spam", folders["spam"]))[1]
        assert (await load("topics", folders["topics"]))[0] == 200
        status, text = await load("bare", folders["bare"])
        assert status == 400
        assert "There is room for 2 adapters, and spam, topics take it" in text
        for name in ("spam", "topics"):
            assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": name})).status == 200
        gone = await client.post("/v1/unload_lora_adapter", json={"lora_name": "spam"})
        assert gone.status == 404


async def test_nobody_loads_adapters_unless_it_is_allowed(adapted: LLM, folders: dict[str, Path]) -> None:
    async with serving(adapted) as client:
        body = {"lora_name": "spam", "lora_path": str(folders["spam"])}
        for route in ("load", "unload"):
            assert (await client.post(f"/v1/{route}_lora_adapter", json=body)).status == 404
    assert not adapted.engine.adapters.held()
