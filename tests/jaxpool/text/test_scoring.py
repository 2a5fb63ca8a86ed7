"""Score templates: what is scored is what vLLM's examples score, in all three ways to make a score of two tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_label import one_label

from jaxpool import LLM, PoolingParams, ValidationError
from jaxpool.text.scoring import ScoreOptions

MODELS = Path(__file__).parents[2] / "data" / "models"
TEMPLATE = (
    "Instruct: {{ instruction | default('find what answers') }}\n"
    "Query: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "Document: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "{% if add_generation_prompt %} answer{% endif %}"
)
QUERY, DOCUMENTS = "what is the capital?", ["Tokyo is the capital.", "", "a banana\nand a cat"]


def text(query: str, document: str, instruction: str = "find what answers", end: str = "") -> str:
    return f"Instruct: {instruction}\nQuery: {query}\nDocument: {document}{end}"


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(one_label(MODELS / "qwen2-cls", tmp_path_factory.mktemp("models")), dtype="float32") as llm:
        yield llm


@pytest.mark.parametrize(
    ("tokens", "overrides"),
    [
        (["no", "yes"], {"is_original_qwen3_reranker": True}),  # Qwen3-Reranker
        (["no", "yes"], {"method": "from_2_way_softmax"}),  # mxbai-rerank-v2
        (["yes"], {"method": "no_post_processing"}),  # bge-reranker-v2-gemma
    ],
)
def test_language_models_score_as_in_vllms_examples(
    tokens: list[str], overrides: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = MODELS / "llama-causal"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = tokenizer.convert_ids_to_tokens([20, 30])[-len(tokens) :]
    ids = tokenizer.convert_tokens_to_ids(names)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    theirs = []
    for document in DOCUMENTS:
        messages = [{"role": "query", "content": QUERY}, {"role": "document", "content": document}]
        written = tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False)
        with torch.no_grad():
            logits = model(**tokenizer(written, return_tensors="pt", return_token_type_ids=False)).logits[0, -1, ids]
        theirs.append(float(torch.sigmoid(logits[-1] - logits[0] if len(ids) > 1 else logits[0])))
    overrides = {"architectures": ["LlamaForSequenceClassification"], "classifier_from_token": names, **overrides}
    with caplog.at_level(logging.WARNING, "jaxpool"):
        llm = LLM(folder, runner="pooling", hf_overrides=overrides, dtype="float32", enforce_eager=True)
    assert ("trained on pairs in a template" in caplog.text) is ("is_original_qwen3_reranker" in overrides)
    with llm:
        outputs = llm.score(QUERY, DOCUMENTS, chat_template=TEMPLATE, use_tqdm=False)
    np.testing.assert_allclose([one.outputs.score for one in outputs], theirs, atol=1e-4, rtol=0)


def ids(llm: LLM, *sides: Any, extra: dict[str, Any] | None = None, **options: Any) -> list[list[int]]:
    params = PoolingParams(extra_kwargs=extra)
    return [one.prompt_token_ids for one in llm.score(*sides, pooling_params=params, use_tqdm=False, **options)]


def read(llm: LLM, *texts: str) -> list[list[int]]:
    return [one.ids for one in llm.tokenizer.encode(texts)]


def test_what_the_template_sees(reranker: LLM) -> None:
    plain = [text(QUERY, one) for one in DOCUMENTS]
    assert ids(reranker, QUERY, DOCUMENTS, chat_template=TEMPLATE) == read(reranker, *plain)
    assert ids(reranker, ["a", "b"], ["c", "d"], chat_template=TEMPLATE) == read(
        reranker, text("a", "c"), text("b", "d")
    )
    extra: dict[str, Any] = {"chat_template_kwargs": {"instruction": "look", "add_generation_prompt": True}}
    asked = ids(reranker, QUERY, "x", extra=extra, chat_template=TEMPLATE)
    assert asked == read(reranker, text(QUERY, "x", "look", " answer"))
    short = ids(reranker, QUERY, "x", extra={"instruction": "look"}, chat_template=TEMPLATE)
    assert short == read(reranker, text(QUERY, "x", "look"))
    both = ids(reranker, QUERY, "x", extra=extra | {"instruction": "no"}, chat_template=TEMPLATE)
    assert both == asked
    assert ids(reranker, QUERY, "x") != short


def test_texts_are_cut_before_the_template(reranker: LLM) -> None:
    long = "Tokyo is the capital. " * 9
    with reranker.tokenizer.reading() as vocabulary:
        few, many = vocabulary.beginning(QUERY, 2), vocabulary.beginning(long, 5)
    extra = {"max_tokens_per_query": 2, "max_tokens_per_doc": 5}
    found = ids(reranker, QUERY, [long, "a"], extra=extra, chat_template=TEMPLATE)
    assert found == read(reranker, text(few, many), text(few, "a"))
    assert ids(reranker, QUERY, long, extra=extra) == [
        one.ids for one in reranker.tokenizer.encode([{"prompt": few, "text_pair": many}])
    ]


def test_the_template_of_the_model_is_that_of_every_call(tmp_path: Path) -> None:
    folder, file = one_label(MODELS / "qwen2-cls", tmp_path), tmp_path / "own.jinja"
    file.write_text(TEMPLATE)
    for given in (TEMPLATE, file, str(file)):
        with LLM(folder, dtype="float32", chat_template=given) as llm:
            assert ids(llm, QUERY, "x") == read(llm, text(QUERY, "x"))
            assert ids(llm, QUERY, "x", chat_template="{{ messages[0].role }}") == read(llm, "query")
    with pytest.raises(ValidationError, match="neither a template nor a file"):
        LLM(folder, chat_template="nowhere.jinja")


def test_where_documents_have_a_limit_pairs_are_cut_at_the_document(tmp_path: Path) -> None:
    with LLM(one_label(MODELS / "bert-cls", tmp_path), dtype="float32") as llm:
        query = "what is the capital of the land of the cats and the bananas"
        extra = {"max_tokens_per_doc": 20}
        whole = len(llm.tokenizer.encode([query])[0].ids)
        [cut] = ids(llm, query, query, extra=extra, tokenization_kwargs={"truncate_prompt_tokens": whole + 4})
        assert len(cut) == whole + 4
        assert cut[:whole] == llm.tokenizer.encode([query])[0].ids


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens_per_doc": -1}, "max_tokens_per_doc must be a non-negative integer"),
        ({"max_tokens_per_query": 64}, r"max_tokens_per_query \(64\) must be less than max_model_len \(64\)"),
        ({"chat_template_kwargs": {"tokenize": True}}, r"reserved keys that conflict .*\['tokenize'\]"),
        ({"chat_template_kwargs": "x"}, "must be a dict"),
    ],
)
def test_what_cannot_be_asked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScoreOptions.of(given, 64)


def test_a_template_that_fails_says_why(reranker: LLM) -> None:
    for template, message in (("{{ raise_exception('no way') }}", "no way"), ("{{ bad", "unexpected end")):
        with pytest.raises(ValidationError, match=message):
            reranker.score("a", "b", chat_template=template)
