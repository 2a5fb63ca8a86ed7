"""``/score`` and ``/rerank``: pairs of texts, scored as offline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from one_label import one_label
from patience import PATIENCE

from jaxpool import LLM, PoolingParams
from jaxpool.engine.buckets import Bucket
from jaxpool_serving.app import init_app
from jaxpool_serving.options import Options
from jaxpool_serving.state import MODELS as LOADED

from .conftest import MODELS, serving

QUERY = "what is the capital?"
DOCUMENTS = ["a cat", "Tokyo is the capital.", "", "banana"]
TEMPLATE = "{{ instruction or 'judge' }}: {{ messages[0].content }} / {{ messages[1].content }}"


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = one_label(MODELS / "bert-cls", tmp_path_factory.mktemp("models"))
    with LLM(folder, dtype="float32", max_model_len=64) as llm:
        llm.engine.buckets = (Bucket(4, 64),)
        yield llm


async def post(client: TestClient, path: str, **body: Any) -> tuple[int, Any]:
    response = await client.post(path, json=body)
    return response.status, await response.json()


def offline(llm: LLM, *sides: Any, **options: Any) -> list[float]:
    return [one.outputs.score for one in llm.score(*sides, use_tqdm=False, **options)]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
async def test_scores_are_those_of_llm_score(cross_encoder: LLM, path: str, names: tuple[str, str]) -> None:
    async with serving(cross_encoder) as client:
        for sides in ((QUERY, DOCUMENTS), (["a", "b"], ["c", "d"]), ("a", "b")):
            status, answer = await post(client, path, **dict(zip(names, sides)))
            assert status == 200
            assert [entry["score"] for entry in answer["data"]] == pytest.approx(offline(cross_encoder, *sides))
        _, logits = await post(client, path, **dict(zip(names, (QUERY, DOCUMENTS))), use_activation=False)
    raw = offline(cross_encoder, QUERY, DOCUMENTS, pooling_params=PoolingParams(use_activation=False))
    assert [entry["score"] for entry in logits["data"]] == pytest.approx(raw, abs=1e-5)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_come_back_best_first(cross_encoder: LLM, path: str) -> None:
    scores = offline(cross_encoder, QUERY, DOCUMENTS)
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -scores[index])
    async with serving(cross_encoder) as client:
        _, everything = await post(client, path, query=QUERY, documents=DOCUMENTS)
        _, best = await post(client, path, query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [result["index"] for result in everything["results"]] == order
    assert [result["document"]["text"] for result in everything["results"]] == [DOCUMENTS[index] for index in order]
    assert [result["relevance_score"] for result in best["results"]] == pytest.approx([scores[i] for i in order[:2]])


async def test_texts_are_cut_by_their_own_limits(cross_encoder: LLM) -> None:
    long = "Tokyo is the capital. " * 20
    with cross_encoder.tokenizer.reading() as vocabulary:
        short, few = vocabulary.beginning(long, 5), vocabulary.beginning(QUERY, 2)
    async with serving(cross_encoder) as client:
        assert (await post(client, "/score", queries=QUERY, documents=long))[0] == 400
        _, answer = await post(client, "/score", queries=QUERY, documents=[long, "a"], max_tokens_per_doc=5)
        _, both = await post(
            client, "/rerank", query=QUERY, documents=long, max_tokens_per_doc=5, max_tokens_per_query=2
        )
    found = [entry["score"] for entry in answer["data"]]
    assert found == pytest.approx(offline(cross_encoder, QUERY, [short, "a"]))
    [result] = both["results"]
    assert result["relevance_score"] == pytest.approx(offline(cross_encoder, few, short)[0])
    assert result["document"]["text"] == long  # as it was sent


async def test_pairs_are_read_through_the_servers_template(cross_encoder: LLM) -> None:
    sides = {"query": QUERY, "documents": DOCUMENTS}
    plain = offline(cross_encoder, QUERY, DOCUMENTS)
    expected = offline(cross_encoder, QUERY, DOCUMENTS, chat_template=TEMPLATE)
    asked = PoolingParams(extra_kwargs={"instruction": "compare", "max_tokens_per_doc": 2})
    other = offline(cross_encoder, QUERY, DOCUMENTS, chat_template=TEMPLATE, pooling_params=asked)
    assert not set(expected) & set(plain)
    assert not set(expected) & set(other)
    outputs = cross_encoder.score(QUERY, DOCUMENTS, chat_template=TEMPLATE, use_tqdm=False)
    async with serving(cross_encoder, chat_template=TEMPLATE) as client:
        _, answer = await post(client, "/score", queries=QUERY, documents=DOCUMENTS)
        assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected)
        assert answer["usage"]["prompt_tokens"] == sum(len(one.prompt_token_ids) for one in outputs)
        for given in ({"instruction": "compare"}, {"chat_template_kwargs": {"instruction": "compare"}}):
            _, answer = await post(client, "/rerank", **sides, **given, max_tokens_per_doc=2)
            found = {entry["index"]: entry["relevance_score"] for entry in answer["results"]}
            assert [found[index] for index in range(len(DOCUMENTS))] == pytest.approx(other)
        status, answer = await post(client, "/score", queries="a", documents="b", chat_template_kwargs={"tools": []})
        assert (status, "reserved keys" in answer["error"]["message"]) == (400, True)


async def test_a_template_without_an_end_fails_its_own_request(cross_encoder: LLM) -> None:
    endless = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% if messages[1].content == 'z' %}{% else %}"
        "{% break %}{% endif %}{% endfor %}{% if messages[1].content != 'z' %}{% break %}{% endif %}{% endfor %}x"
    )
    async with serving(cross_encoder, chat_template=endless, template_timeout=0.5) as client:
        assert (await post(client, "/score", queries=QUERY, documents="z"))[0] == 504
        assert (await post(client, "/score", queries=QUERY, documents="y"))[0] == 200


async def test_a_model_of_several_labels_has_no_such_routes(llm: LLM) -> None:
    async with serving(llm) as client:
        for path in ("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"):
            for body in ({"queries": "a", "documents": "b", "query": "a"}, {}):
                assert await post(client, path, **body) == (404, {"detail": "Not Found"})


async def test_what_is_too_much_is_refused_before_it_is_cut(cross_encoder: LLM) -> None:
    async with serving(cross_encoder, max_inputs=3, max_text_chars=100) as client:
        for documents, message in ((["a"] * 4, "4 prompts"), (["a", "b" * 101], "101 characters")):
            status, answer = await post(client, "/score", queries=QUERY, documents=documents, max_tokens_per_doc=1)
            assert status == 400
            assert message in answer["error"]["message"]


async def test_a_model_that_scores_beside_one_that_does_not(cross_encoder: LLM, llm: LLM) -> None:
    app = init_app({"labels": llm, "pairs": cross_encoder}, Options())
    async with TestClient(TestServer(app)) as client:
        sides = {"queries": QUERY, "documents": DOCUMENTS}
        assert (await post(client, "/score", **sides, model="pairs"))[0] == 200
        assert (await post(client, "/score", **sides))[0] == 404  # the first model has three labels


async def test_a_warm_model_scores_while_another_is_loading(cross_encoder: LLM) -> None:
    warm = threading.Event()

    def loading() -> LLM:
        warm.wait(PATIENCE)
        return cross_encoder

    async with TestClient(TestServer(init_app({"late": loading, "warm": cross_encoder}))) as client:
        sides = {"text_1": "a", "text_2": "b"}
        assert (await post(client, "/score", **sides, model="warm"))[0] == 200
        assert (await post(client, "/score", **sides, model="late"))[0] == 503
        warm.set()
        await client.app[LOADED]["late"]  # type: ignore[index]
        assert (await post(client, "/score", **sides, model="late"))[0] == 200
