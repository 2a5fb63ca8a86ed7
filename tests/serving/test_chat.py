"""The chat form of ``POST /classify``: every answer as vLLM gave it, and who may bring a template."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient
from replay import check_all, recorded

from jaxpool import LLM, ValidationError
from jaxpool.commands.main import main
from jaxpool.engine.buckets import Bucket
from jaxpool.text import chat
from jaxpool.text.chat_template import NO_TEMPLATE
from jaxpool_serving.options import template_options

from .conftest import MODELS, serving

CHAT = [{"role": "system", "content": "You are a judge."}, {"role": "user", "content": "Was the food spoiled?"}]
PIPED = "{% for m in messages %}{{ m.content }}|{% endfor %}"
REFUSED = (
    "Chat template is passed with request, but --trust-request-chat-template is not set. "
    "Refused request with untrusted chat template."
)

DECISIONS: dict[str, tuple[str, ...]] = {
    "padding that was asked for is passed over, as the class was trained": ("padding",),
    "a message is told its own problem, not those it would have as each of nine types of OpenAI's": (
        "content int",
        "content null",
        "content object",
        "empty chat",
        "messages list of conversations",
        "messages of strings",
        "role int",
        "role missing",
    ),
    "a part that is no text is refused for that, before anybody tries to load it": (
        "parts image",
        "parts input_audio",
        "parts input_text",
        "parts number",
        "parts output_text",
        "parts text int",
        "parts text missing",
        "parts text null",
        "parts unknown type",
        "parts video",
        "parts without type",
    ),
    "strings are parts, also where no other part tells vLLM so": ("parts strings",),
    "names of Python's arguments are nobody's business": ("kwargs conversation", "kwargs messages"),
    "a tool that is called without arguments was called without arguments": ("tool call arguments missing",),
    "a list of objects is a list of pairs here": ("input of objects",),
}
"""Why an answer differs from vLLM's -> the requests that show it."""

STATUSES = {
    "input of objects": 200,
    "kwargs conversation": 200,
    "parts input_audio": 400,
    "parts strings": 200,
    "tool call arguments missing": 200,
}
"""Where the status differs too."""


@pytest.fixture(scope="module")
def judge() -> Iterator[LLM]:
    """qwen2-cls: two labels, and a chat template that comes with its tokenizer."""
    with LLM(str(MODELS / "qwen2-cls"), data_parallel_size=1, dtype="float32") as llm:
        llm.engine.buckets = (Bucket(4, 128), Bucket(1, llm.engine.spec.max_length))
        llm.engine.warm()
        yield llm


async def post(client: TestClient, **body: Any) -> tuple[int, Any]:
    response = await client.post("/classify", json={"messages": CHAT, **body})
    return response.status, await response.json()


def probs(answer: dict[str, Any]) -> list[float]:
    [entry] = answer["data"]
    return entry["probs"]


def offline(llm: LLM, text: str) -> list[float]:
    [output] = llm.classify(text, use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
    return output.outputs.probs


async def test_every_recorded_answer(judge: LLM) -> None:
    decided = {case for cases in DECISIONS.values() for case in cases}
    async with serving(judge, name="qwen2-cls", trust_request_chat_template=True) as client:
        await check_all(client, recorded("online_qwen2-cls_chat.json"), decided, STATUSES)


async def test_a_request_brings_no_template_unless_it_is_trusted(judge: LLM) -> None:
    async with serving(judge) as client:
        for body in (
            {"chat_template": PIPED},
            {"chat_template": ""},
            {"chat_template_kwargs": {"chat_template": PIPED}},
            {"chat_template_kwargs": {"chat_template": PIPED}, "chat_template": None},
        ):
            status, answer = await post(client, **body)
            assert (status, answer["error"]["message"], answer["error"]["type"]) == (400, REFUSED, "BadRequestError")
        assert (await post(client, chat_template=None, chat_template_kwargs={"extra": "x"}))[0] == 200


async def test_a_template_goes_before_another(judge: LLM) -> None:
    own, of_server, of_request = (chat.render(judge.get_tokenizer(), CHAT, t) for t in (None, PIPED, "{{ 'x' }}"))
    async with serving(judge) as client:
        _, answer = await post(client)
        np.testing.assert_allclose(probs(answer), offline(judge, own), atol=1e-5)
    async with serving(judge, chat_template=PIPED, trust_request_chat_template=True) as client:
        _, answer = await post(client)
        np.testing.assert_allclose(probs(answer), offline(judge, of_server), atol=1e-5)
        for body in ({"chat_template": "{{ 'x' }}"}, {"chat_template_kwargs": {"chat_template": "{{ 'x' }}"}}):
            _, answer = await post(client, **body)
            np.testing.assert_allclose(probs(answer), offline(judge, of_request), atol=1e-5)


async def test_a_server_can_give_a_model_its_template(llm: LLM) -> None:
    async with serving(llm) as client:
        status, answer = await post(client)
        assert (status, answer["error"]["message"]) == (400, NO_TEMPLATE)
    async with serving(llm, chat_template=PIPED) as client:
        status, answer = await post(client)
        assert status == 200
        np.testing.assert_allclose(probs(answer), offline(llm, "You are a judge.|Was the food spoiled?|"), atol=1e-5)


async def test_the_server_says_how_templates_want_contents(judge: LLM) -> None:
    shown = "{% for m in messages %}{{ m.content is string }}{% endfor %}"
    for content_format, text in (("auto", "True"), ("string", "True"), ("openai", "False")):
        async with serving(judge, chat_template=shown, chat_template_content_format=content_format) as client:
            _, answer = await post(client, messages=CHAT[:1])
            np.testing.assert_allclose(probs(answer), offline(judge, text), atol=1e-5)


async def test_a_conversation_takes_the_options_of_texts(judge: LLM) -> None:
    async with serving(judge) as client:
        _, answer = await post(client, top_k=1, threshold=0.5, return_logits=True, request_id="mine")
        [entry] = answer["data"]
        assert answer["id"] == "classify-mine"
        assert entry["labels"] == [entry["label"]] == [entry["top_k"][0]["label"]]
        _, logits = await post(client, use_activation=False)
        np.testing.assert_allclose(entry["logits"], probs(logits), atol=1e-6)


async def test_messages_win_over_any_number_of_pairs(judge: LLM) -> None:
    async with serving(judge) as client:
        _, alone = await post(client)
        _, found = await post(client, input=[{"text": "a", "text_pair": "b"}] * 9)
    assert (probs(found), found["usage"]) == (probs(alone), alone["usage"])


async def test_many_conversations_at_once(judge: LLM) -> None:
    talks = [[{"role": "user", "content": f"Number {n}"}] for n in range(40)]
    async with serving(judge) as client:
        answers = await asyncio.gather(*(post(client, messages=talk) for talk in talks))
    for talk, (status, answer) in zip(talks, answers, strict=True):
        assert status == 200
        np.testing.assert_allclose(probs(answer), offline(judge, chat.render(judge.get_tokenizer(), talk)), atol=1e-5)


def test_a_template_is_a_file_or_its_text(tmp_path: Path) -> None:
    class Args:
        trust_request_chat_template = True
        chat_template_content_format = "openai"

    file = tmp_path / "chat.jinja"
    file.write_text(PIPED + "ü", encoding="utf-8")
    for word, text in ((str(file), PIPED + "ü"), (PIPED, PIPED), (None, None)):
        Args.chat_template = word  # type: ignore[attr-defined]
        assert template_options(Args) == {  # type: ignore[arg-type]
            "chat_template": text,
            "trust_request_chat_template": True,
            "chat_template_content_format": "openai",
        }


@pytest.mark.parametrize(
    ("template", "message"),
    [("nowhere.jinja", "neither a template nor a file"), ("{{ bad", "not well-formed: unexpected end of template")],
)
def test_a_server_does_not_start_with_a_bad_template(
    template: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", str(MODELS / "qwen2-cls"), "--chat-template", template]) == 1
    assert message in capsys.readouterr().err


async def test_templates_that_are_none(judge: LLM) -> None:
    async with serving(judge, trust_request_chat_template=True) as client:
        for template in (5, ["a"], {"a": 1}, True):
            status, answer = await post(client, chat_template_kwargs={"chat_template": template})
            assert (status, answer["error"]["param"]) == (400, "chat_template"), answer


async def test_no_conversation_is_an_internal_error(judge: LLM) -> None:
    odd = [
        None,
        5,
        -1.5,
        True,
        "",
        "x",
        "\ud800",
        [],
        [5],
        [[]],
        {},
        {"a": 1},
        {"type": []},
        {"type": "text", "text": {}},
    ]
    shown = "{{ messages | tojson }}{{ tools }}{{ documents }}{% for m in messages %}{{ m.name }}{% endfor %}"
    async with serving(judge, chat_template=shown) as client:
        for value in odd:
            for body in (
                {"messages": value},
                {"messages": [value]},
                {"messages": [{"role": value, "content": value}]},
                *({"messages": [{"role": "user", "content": content}]} for content in (value, [value], [CHAT, value])),
                *({"messages": [{"role": "assistant", key: value}]} for key in ("tool_calls", "reasoning", "name")),
                {"messages": [{"role": "assistant", "tool_calls": [{"function": value}]}]},
                {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": value}}]}]},
                {"chat_template_kwargs": value},
                *({"chat_template_kwargs": {name: value}} for name in ("tools", "documents", "self", "padding", "x")),
                {"continue_final_message": True, "messages": [{"role": "user", "content": value}]},
            ):
                status, answer = await post(client, **body)
                assert status in (200, 400), (body, answer)


def test_messages_that_are_none(judge: LLM) -> None:
    for message, wrong in (
        ({"content": "a"}, "needs a role"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "part of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "needs its text"),
        ({"role": "assistant", "tool_calls": [5]}, "of type 'function'"),
    ):
        with pytest.raises(ValidationError, match=wrong):
            chat.render(judge.get_tokenizer(), [message])
