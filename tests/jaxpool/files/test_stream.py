"""Streams of texts: the next chunk is tokenised while one computes, and no more than that is held."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from jaxpool import LLM
from jaxpool.errors import ValidationError
from jaxpool.files import stream
from jaxpool.files.stream import Item

BERT = Path(__file__).resolve().parents[2] / "data" / "models" / "bert-cls"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(BERT) as llm:
        yield llm


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK", 4)


def items(n: int, drawn: list[int] | None = None) -> Iterator[Item]:
    for i in range(n):
        if drawn is not None:
            drawn.append(i)
        yield Item(f"text number {i}" if i % 3 else " ", where=f"line {i + 1}", end=10 * (i + 1))


def test_results_are_those_of_the_library_in_order(llm: LLM) -> None:
    got = list(stream.classify(llm, items(11)))
    assert [one["index"] for one in got] == list(range(11))
    assert [one["text"] for one in got] == [item.text for item in items(11)]
    for one in got:
        [want] = llm.classify(one["text"], use_tqdm=False)  # an empty text like any other
        assert one["label"] == want.outputs.label
        assert list(one["probs"]) == list(llm.labels)
        assert list(one["probs"].values()) == pytest.approx(want.outputs.probs, abs=1e-6)


def test_the_next_chunk_is_tokenised_while_one_computes(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, run = llm.tokenizer.encode, llm.engine.stream
    prepared, computed, changed = 0, 0, threading.Condition()

    def encode_and_tell(prompts: list[Any], options: Any = None, **place: int) -> Any:
        nonlocal prepared
        encoded = encode(prompts, options, **place)
        if not (prompts and isinstance(prompts[0], dict)):  # `classify` passes its token ids through once more
            with changed:
                prepared += 1
                changed.notify_all()
        return encoded

    def run_when_the_next_is_prepared(*arguments: Any) -> Any:
        nonlocal computed
        with changed:
            assert changed.wait_for(lambda: prepared >= computed + 2, timeout=PATIENCE)
        computed += 1
        return run(*arguments)

    monkeypatch.setattr(llm.tokenizer, "encode", encode_and_tell)
    monkeypatch.setattr(llm.engine, "stream", run_when_the_next_is_prepared)
    assert len(list(stream.classify(llm, items(12)))) == 12
    assert computed == 3


def test_no_more_than_two_chunks_are_drawn_ahead(llm: LLM) -> None:
    drawn: list[int] = []
    for position, _ in enumerate(stream.classify(llm, items(40, drawn))):
        assert len(drawn) <= position // 4 * 4 + 8 + 1


def test_a_long_stream_is_held_a_few_chunks_at_a_time(llm: LLM) -> None:
    results = stream.classify(llm, items(240))
    last = next(one for one in results if one["index"] == 200)
    assert last["text"] == "text number 200"
    alive = sum(type(one) is Item for one in gc.get_objects())
    assert 0 < alive <= 4 * stream.CHUNK
    results.close()


def test_progress_adds_up(llm: LLM) -> None:
    steps: list[tuple[int, float]] = []
    list(stream.classify(llm, items(10), advance=lambda texts, read: steps.append((texts, read))))
    assert sum(texts for texts, _ in steps) == 10
    assert sum(read for _, read in steps) == pytest.approx(100)
    assert len(steps) > 3


def test_top_k_and_logits(llm: LLM) -> None:
    [full], [top] = ([*stream.classify(llm, [Item("x y")], activated=False, top_k=k)] for k in (None, 2))
    assert set(full) == {"index", "text", "label", "logits"}
    assert list(top["logits"].items()) == sorted(full["logits"].items(), key=lambda score: -score[1])[:2]


def test_an_error_names_its_text_and_ends_the_stream(llm: LLM) -> None:
    texts = [Item("fine", where=f"line {i}") for i in range(1, 7)]
    texts[5] = Item("half \ud83d a pair", where="line 6")
    results = stream.classify(llm, iter(texts))
    assert [next(results)["index"] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValidationError, match=r"^line 6: The prompt is not valid Unicode") as caught:
        next(results)
    assert "--truncate" not in str(caught.value)
