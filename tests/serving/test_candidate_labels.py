"""Labels that a request names: as offline, in company, within limits, and without a compile."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from patience import PATIENCE

from jaxpool import LLM, PoolingParams
from jaxpool_serving.state import MODELS as LOADED
from tests.support.tiny import save

from .conftest import MODELS, serving
from .test_scoring import post

TEXTS = ["The update broke everything.", "Good coffee", "I was charged twice for one coffee, pay it back."]
LABELS = ["billing", "bug report", "bug", "praise for the team"]
PROMPT = "Text: {text}\nKind:"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4}
QUESTIONS: list[dict[str, Any]] = [
    {"candidate_labels": LABELS, "prompt": PROMPT},
    {"candidate_labels": ["yes", "no"], "prompt": "{text} {labels}?\n"},
    {"candidate_labels": LABELS, "prompt": PROMPT, "calibrate": True, "length_normalize": True},
    {"candidate_labels": LABELS[:2], "prompt": "{text} {label}? {labels}:", "multi_label": True, "answers": ["n", "y"]},
    {"candidate_labels": LABELS[:2], "prompt": PROMPT, "examples": [["Thanks!", "billing"]]},
]


def language_model(folder: Path, kind: str = "llama", **more: Any) -> Path:
    from transformers import AutoTokenizer

    vocab = len(AutoTokenizer.from_pretrained(MODELS / "llama-causal"))
    save(folder, kind, head="causal", vocab_size=vocab, **SIZES, **more)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "llama-causal" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def language(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float32", max_model_len=64, max_num_batched_tokens=128) as llm:
        yield llm


def offline(llm: LLM, activated: bool = True, texts: list[str] = TEXTS, **question: Any) -> list[list[float]]:
    params = PoolingParams(use_activation=activated)
    return [one.outputs.probs for one in llm.classify(texts, pooling_params=params, use_tqdm=False, **question)]


def near(rows: list[list[float]]) -> Any:
    return [pytest.approx(row, abs=1e-5) for row in rows]


async def metric(client: TestClient, name: str) -> float:
    text = await (await client.get("/metrics")).text()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"jaxpool_{name}{{"))


async def test_every_question_is_answered_as_offline_and_nothing_is_compiled_for_it(folder: Path) -> None:
    """Requests with different questions share batches; the programs are those of the start."""

    def open_llm() -> LLM:
        return LLM(folder, dtype="float32", max_model_len=64, max_num_batched_tokens=128, compile="ahead")

    async with serving(open_llm) as client:
        served = client.app[LOADED]["bert"].result()  # type: ignore[index]
        begun = served.batcher.engine.begun
        assert begun == 2 * len(served.batcher.engine.buckets) == 2 * len(served.batcher.engine.usable)
        bodies = [{"input": TEXTS, **question} for question in QUESTIONS for _ in range(3)]
        answers = await asyncio.gather(*(post(client, "/classify", **body) for body in bodies))
        for (status, answer), body in zip(answers, bodies):
            question = {name: value for name, value in body.items() if name != "input"}
            assert status == 200
            wanted = offline(served.llm, **question)
            assert [one["probs"] for one in answer["data"]] == near(wanted)
            assert [one["label"] for one in answer["data"]] == [
                body["candidate_labels"][row.index(max(row))] for row in wanted
            ]
        body = {"input": TEXTS, **QUESTIONS[0], "return_logits": True, "top_k": 1, "threshold": 0.3}
        _, answer = await post(client, "/classify", **body)
        assert [one["logits"] for one in answer["data"]] == near(offline(served.llm, False, **QUESTIONS[0]))
        assert all(one["top_k"][0]["label"] == one["label"] and "labels" in one for one in answer["data"])
        assert served.batcher.engine.begun == begun
        assert await metric(client, "compiles_after_ready") == 0
        assert len(served.questions) == len(QUESTIONS)
        assert served.batcher.queued == 0
        status, answer = await post(client, "/classify", input=TEXTS)
        assert (status, "no labels of its own" in answer["error"]["message"]) == (400, True)
        for path in ("/pooling", "/predict"):
            status, answer = await post(client, path, input="a", inputs="a")
            assert (status, "no labels of its own" in answer["error"]["message"]) == (400, True)
        assert (await (await client.get("/ready")).json())["programs_to_come"] == 0


async def test_behind_it_is_ready_with_the_few_programs_that_hold_anything(folder: Path) -> None:
    def open_llm() -> LLM:
        return LLM(folder, dtype="float32", max_model_len=64, max_num_batched_tokens=128, compile="behind")

    async with serving(open_llm) as client:
        served = client.app[LOADED]["bert"].result()  # type: ignore[index]
        assert served.batcher.engine.usable
        status, answer = await post(client, "/classify", input=TEXTS, **QUESTIONS[1])
        assert status == 200
        assert [one["probs"] for one in answer["data"]] == near(offline(served.llm, **QUESTIONS[1]))


async def test_more_labels_than_a_row_holds_take_more_rows(language: LLM) -> None:
    words = ["bug", "praise", "money", "coffee", "update", "team", "paying", "back"]
    labels = [f"{one} {other} this" for one in words for other in words]
    async with serving(language) as client:
        status, answer = await post(client, "/classify", input="Tea", candidate_labels=labels, prompt=PROMPT)
    assert status == 200
    [wanted] = offline(language, texts=["Tea"], candidate_labels=labels, prompt=PROMPT)
    assert answer["data"][0]["probs"] == pytest.approx(wanted, abs=1e-5)


async def test_a_conversation_is_rendered_elsewhere(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, chatty := tmp_path / "chatty")
    (chatty / "chat_template.jinja").write_text(CHAT)
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 64, "max_num_batched_tokens": 128}
    with LLM(chatty, **options) as llm:
        async with serving(llm) as client:
            question = {"candidate_labels": LABELS[:2], "examples": [["Hi", "billing"]], "prompt": "{text}"}
            status, answer = await post(client, "/classify", input=TEXTS, **question)
            assert status == 200
            assert [one["probs"] for one in answer["data"]] == near(offline(llm, **question))
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    (chatty / "chat_template.jinja").write_text(endless)
    with LLM(chatty, **options) as llm:
        async with serving(llm, template_timeout=0.5) as client:
            asked = asyncio.ensure_future(post(client, "/classify", input="a", **QUESTIONS[0]))
            async with asyncio.timeout(PATIENCE):
                assert (await client.get("/ready")).status == 200  # the event loop goes on
                assert (await asked)[0] == 504


async def test_a_model_with_a_state(tmp_path: Path) -> None:
    with LLM(language_model(tmp_path, "jamba", **JAMBA), dtype="float32", max_num_batched_tokens=256) as llm:
        async with serving(llm) as client:
            _, answer = await post(client, "/classify", input=TEXTS[:1], **QUESTIONS[0])
            wanted = offline(llm, texts=TEXTS[:1], **QUESTIONS[0])
            assert [one["probs"] for one in answer["data"]] == near(wanted)


async def test_entailment_and_likeness_are_asked_the_same(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "bert-cls", nli := tmp_path / "nli")
    config = json.loads((nli / "config.json").read_text())
    names = ["contradiction", "neutral", "entailment"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (nli / "config.json").write_text(json.dumps(config))
    with LLM(nli, dtype="float32") as llm:
        async with serving(llm, max_inputs=8) as client:
            for more in ({}, {"multi_label": True, "prompt": "It is {label}"}):
                _, answer = await post(client, "/classify", input=TEXTS[:2], candidate_labels=LABELS, **more)
                wanted = offline(llm, texts=TEXTS[:2], candidate_labels=LABELS, **more)
                assert [one["probs"] for one in answer["data"]] == near(wanted)
            status, answer = await post(client, "/classify", input=TEXTS, candidate_labels=LABELS)
            assert (status, "12 prompts" in answer["error"]["message"]) == (400, True)
    with LLM(MODELS / "bert-cls", convert="embed", dtype="float32") as llm:
        async with serving(llm) as client:
            _, answer = await post(client, "/classify", input=TEXTS, candidate_labels=LABELS)
            assert [one["probs"] for one in answer["data"]] == near(offline(llm, candidate_labels=LABELS))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "Kind:"}, "The prompt needs {text}"),
        ({"prompt": "{text}", "multi_label": True}, "needs {label}"),
        ({"candidate_labels": []}, "candidate_labels is empty"),
        ({"candidate_labels": ["a", " "]}, "a text that is not empty"),
        ({"candidate_labels": ["bug", "bug"]}, "'bug' is named twice"),
        ({"candidate_labels": None}, "with candidate_labels only"),
        ({"candidate_labels": ["a", 3]}, "valid string"),
        ({"candidate_labels": "a, b"}, "valid list"),
        ({"examples": [["text", "other"]]}, "none of candidate_labels"),
        ({"examples": [{"text": "a"}]}, "examples"),
        ({"examples": [{"text": "a", "label": "bug"}], "multi_label": True, "prompt": "{text}{label}"}, "into the"),
        ({"answers": ["yes"]}, "answers"),
        ({"input": "a " * 100}, "the model reads 64|maximum context length is 64"),
        ({"input": [1, 2]}, "pass texts"),
        ({"input": [{"text": "a", "text_pair": "b"}]}, "pass texts"),
        ({"input": None, "messages": [{"role": "user", "content": "a"}]}, "not with messages"),
        ({"long_text": "window"}, "texts are read whole"),
        ({"truncate_prompt_tokens": 4}, "shorten the texts"),
        ({"candidate_labels": [str(n) for n in range(9)]}, "9 candidate labels"),
        ({"input": ["a"] * 3, "prompt": "{text}{label}", "multi_label": True}, "12 questions"),
        ({"prompt": "{text}" + "x" * 500}, "characters"),
        ({"examples": [["x" * 300, "bug"]]}, "characters"),
        ({"input": [" ".join("abcdef")] * 8, "candidate_labels": LABELS}, "has .* tokens"),
        ({"prompt": "{text}" + "x" * 150}, "too long for 4 labels"),
    ],
)
async def test_bad_input_is_a_400_with_a_sentence(language: LLM, body: dict[str, Any], message: str) -> None:
    limits = {"max_inputs": 8, "max_text_chars": 310, "max_tokens_per_request": 150}
    async with serving(language, **limits) as client:
        status, answer = await post(client, "/classify", **{"input": "Tea", **QUESTIONS[0], **body})
        assert status == 400
        said = answer["error"]["message"]
        assert re.search(message.replace("{", r"\{"), said)
        assert len(said) < 400 or "validation error" in said  # of the schema, as elsewhere
        assert (await post(client, "/classify", input="Tea", **QUESTIONS[1]))[0] == 200
