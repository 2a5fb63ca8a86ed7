"""``/tokenize``, ``/detokenize``, and classification of tokens through ``/pooling``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import ClientSession
from transformers import AutoTokenizer

from jaxpool import LLM
from jaxpool.engine.buckets import Bucket
from jaxpool.text.vocabulary import Vocabulary

from .conftest import MODELS, serving
from .test_lifecycle import SMALL, queued, server
from .test_predict import post

TEXTS = ["Hello world", "a", "The movie was great, I loved it!"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)


async def test_tokens_are_the_tokenizers(llm: LLM) -> None:
    hf = AutoTokenizer.from_pretrained(MODELS / "bert-cls")
    async with serving(llm) as client:
        for text in (*TEXTS, "", "longer than the model reads " * 20):
            for special in (True, False):
                ids = hf.encode(text, add_special_tokens=special)
                status, answer = await post(
                    client, "/tokenize", prompt=text, add_special_tokens=special, return_token_strs=True
                )
                assert status == 200
                assert answer == {
                    "count": len(ids),
                    "max_model_len": 48,
                    "tokens": ids,
                    "token_strs": hf.convert_ids_to_tokens(ids),
                }
                assert (await post(client, "/detokenize", tokens=ids))[1] == {"prompt": hf.decode(ids)}
        status, answer = await post(client, "/tokenize", prompt="\ud800")
        assert (status, answer["error"]["type"]) == (400, "BadRequestError")


async def test_conversations_are_tokenised_as_they_are_rendered(llm: LLM) -> None:
    hf = AutoTokenizer.from_pretrained(MODELS / "bert-cls")
    messages = [{"role": "user", "content": "hi"}]
    async with serving(llm, chat_template=TEMPLATE) as client:
        _, asked = await post(client, "/tokenize", messages=messages)  # the generation prompt is vLLM's default here
        _, plain = await post(client, "/tokenize", messages=messages, add_generation_prompt=False)
    assert asked["tokens"] == hf.encode("user: hi\nbot:", add_special_tokens=False)
    assert plain["tokens"] == hf.encode("user: hi\n", add_special_tokens=False)


@pytest.fixture(scope="module")
def tokens_of_gpt2() -> Iterator[LLM]:
    with LLM(MODELS / "gpt2-cls", dtype="float32", max_model_len=64, pooler_config={"task": "token_classify"}) as llm:
        llm.engine.buckets = (Bucket(4, 64),)
        yield llm


async def test_every_token_has_its_scores(tokens_of_gpt2: LLM) -> None:
    expected = tokens_of_gpt2.encode(TEXTS, pooling_task="token_classify", use_tqdm=False)
    async with serving(tokens_of_gpt2) as client:
        status, answer = await post(client, "/pooling", input=TEXTS)
    assert status == 200
    for entry, output in zip(answer["data"], expected, strict=True):
        np.testing.assert_allclose(np.array(entry["data"]), output.outputs.data, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == sum(len(output.prompt_token_ids) for output in expected)


async def test_a_server_of_tokens_does_not_classify_texts(tokens_of_gpt2: LLM) -> None:
    async with serving(tokens_of_gpt2) as client:
        for path in ("/classify", "/predict", "/"):
            status, answer = await post(client, path, input="a", inputs="a")
            assert (status, answer["error"]["message"]) == (501, "The model does not support Classification API")


async def test_only_the_tokens_that_step_pooling_keeps() -> None:
    config = {"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": 7}
    with LLM(MODELS / "bert-cls", dtype="float32", max_model_len=64, pooler_config=config) as llm:
        llm.engine.buckets = (Bucket(4, 64),)
        prompts = [[2, 7, 9, 7, 3], [2, 9, 3]]
        expected = llm.encode(prompts, pooling_task="token_classify", use_tqdm=False)
        async with serving(llm) as client:
            _, answer = await post(client, "/pooling", input=prompts)
            _, content = await post(client, "/pooling", input=prompts, encoding_format="base64")
    assert [len(entry["data"]) for entry in answer["data"]] == [2, 0]
    np.testing.assert_allclose(np.array(answer["data"][0]["data"]), expected[0].outputs.data, atol=1e-5)
    assert content["data"][1]["data"] == ""


async def test_texts_that_are_not_tokenised_for_their_size(llm: LLM) -> None:
    async with serving(llm, max_text_chars=100) as client:
        assert (await post(client, "/tokenize", prompt="a" * 100))[0] == 200
        for path, body in (("/tokenize", {"prompt": "a" * 101}), ("/detokenize", {"tokens": [5] * 101})):
            status, answer = await post(client, path, **body)
            assert (status, answer["error"]["param"]) == (400, "input")


async def test_the_command_serves_another_task() -> None:
    task = ("--pooler-config", '{"use_activation": false}', "--pooler-config.task", "token_classify")
    changes_nothing = ("--seed", "0", "--no-enable-prefix-caching", "--hf_overrides", "{}")
    with server(str(MODELS / "gpt2-cls"), *SMALL, *task, *changes_nothing) as (_, address):
        async with ClientSession(address) as session:
            await queued(session)
            async with session.post("/pooling", json={"input": TEXTS[0]}) as response:
                [entry] = (await response.json())["data"]
    with LLM(MODELS / "gpt2-cls", pooler_config={"task": "token_classify", "use_activation": False}) as llm:
        [output] = llm.encode(TEXTS[0], pooling_task="token_classify", use_tqdm=False)
    np.testing.assert_allclose(np.array(entry["data"]), output.outputs.data, atol=1e-4)


async def test_a_model_without_a_tokenizer_reads_ids_and_tells_no_paths(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS / "bert-cls", tmp_path / "bare"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with LLM(folder, dtype="float32", max_model_len=64) as llm:
        async with serving(llm) as client:
            assert (await post(client, "/classify", input=[2, 43, 3]))[0] == 200
            for path, body in (
                ("/classify", {"input": "a"}),
                ("/tokenize", {"prompt": "a"}),
                ("/detokenize", {"tokens": [5]}),
            ):
                status, answer = await post(client, path, **body)
                assert (status, answer["error"]["type"]) == (400, "BadRequestError")
                assert "bare has no tokenizer files" in answer["error"]["message"]
                assert str(tmp_path) not in answer["error"]["message"]


async def test_a_tokenizer_that_fails_is_a_500_of_one_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """What a Rust tokenizer raises."""

    def panic(*_: object, **__: object) -> None:
        raise Panic

    async with serving(llm) as client:
        with monkeypatch.context() as broken:
            for name in ("ids", "text"):
                broken.setattr(Vocabulary, name, panic)
            for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
                status, answer = await post(client, path, **body)
                assert (status, answer["error"]["message"]) == (500, "The tokenizer could not read this request.")
        assert (await post(client, "/tokenize", prompt="a"))[0] == 200
