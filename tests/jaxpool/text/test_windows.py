"""Long texts in windows: the same windows and the same results as plain loops over token ids make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpool import LLM, PoolingParams, ValidationError
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.vocabulary import read_tokenizer
from jaxpool.text.windows import LongText, Windowed, encode

MODELS = Path(__file__).parents[2] / "data" / "models"
WORDS = ["the", "film", "was", "not", "good", "but", "food", "is", "great", "and", "would", "go", "again"]


@pytest.fixture(scope="module")
def hf() -> Any:
    return read_tokenizer(MODELS / "bert-cls")


@pytest.fixture(scope="module")
def tokenizer(hf: Any) -> Tokenizer:
    return Tokenizer(read_tokenizer(MODELS / "bert-cls"), max_length=64, vocab_size=2000)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODELS / "bert-cls", max_model_len=32) as llm:
        yield llm


def text(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def content(hf: Any, part: str) -> list[int]:
    return list(hf(part, add_special_tokens=False)["input_ids"])


def loop(ids: list[int], room: int, overlap: int) -> list[list[int]]:
    """Stretches of ``room`` ids that share ``overlap``; the last one ends with the text."""
    found, start = [], 0
    while start + room < len(ids):
        found.append(ids[start : start + room])
        start += room - overlap
    return [*found, ids[-room:]]


@settings(deadline=None, max_examples=50)
@given(words=st.integers(0, 200), size=st.integers(4, 64), overlap=st.integers(0, 40))
def test_windows_of_a_text(hf: Any, tokenizer: Tokenizer, words: int, size: int, overlap: int) -> None:
    if overlap >= size - 2:
        return
    ids = content(hf, text(words))
    [found] = encode(tokenizer, [text(words)], None, LongText("window", size, overlap))
    special = list(hf(text(words))["input_ids"])
    first, last = special[0], special[-1]
    whole = [ids] if len(ids) + 2 <= size else loop(ids, size - 2, overlap)
    assert [window.ids for window in found.windows] == [[first, *part, last] for part in whole]
    assert found.ids == special
    assert found.weights().sum() == pytest.approx(1)
    covered = [position for begin, end in found.owned() for position in range(begin, end)]
    assert covered == list(range(len(special)))


@pytest.mark.parametrize("longer", [0, 1])
def test_windows_of_a_pair_cut_its_longer_side(hf: Any, tokenizer: Tokenizer, longer: int) -> None:
    parts = [text(5), text(100)] if longer else [text(100), text(5)]
    ids = [content(hf, part) for part in parts]
    special = list(hf(*parts)["input_ids"])
    cls, sep = special[0], special[-1]
    [found] = encode(tokenizer, [{"prompt": parts[0], "text_pair": parts[1]}], None, LongText("window", 40, 7))
    expected = []
    for piece in loop(ids[longer], 40 - 3 - len(ids[1 - longer]), 7):
        one, two = (ids[0], piece) if longer else (piece, ids[1])
        expected.append(([cls, *one, sep, *two, sep], [0] * (len(one) + 2) + [1] * (len(two) + 1)))
    assert [(window.ids, window.types) for window in found.windows] == expected
    assert found.ids == special
    covered = [position for begin, end in found.owned() for position in range(begin, end)]
    assert covered == list(range(len(special)))


@pytest.mark.parametrize("model", ["gpt2-cls", "qwen2-cls", "llama-causal"])
def test_other_special_tokens(model: str) -> None:
    hf = read_tokenizer(MODELS / model)
    tokenizer = Tokenizer(read_tokenizer(MODELS / model), max_length=24, vocab_size=10**6)
    long = text(60)
    ids, special = content(hf, long), list(hf(long)["input_ids"])
    before, after = special[: special.index(ids[0])], special[len(special) - special[::-1].index(ids[-1]) :]
    [found] = encode(tokenizer, [long], None, LongText("window", None, 3))
    expected = [[*before, *part, *after] for part in loop(ids, 24 - len(before) - len(after), 3)]
    assert [window.ids for window in found.windows] == expected


def test_short_and_long_ones_in_one_call(tokenizer: Tokenizer) -> None:
    prompts = [text(100), "good", [5, 6, 7], {"prompt": "a", "text_pair": "b"}, text(90, 1)]
    found = encode(tokenizer, prompts, None, LongText("window"))
    assert [len(one.windows) > 1 for one in found] == [True, False, False, False, True]
    plain = tokenizer.encode(prompts[1:4])
    assert [one.windows[0] for one in found[1:4]] == plain


def test_aggregates_are_those_of_a_loop(llm: LLM) -> None:
    long, short = text(150), "good film"
    for how in ("mean", "max", "first"):
        for activated in (True, False):
            params = PoolingParams(use_activation=activated)
            both = llm.classify(
                [long, short], pooling_params=params, use_tqdm=False, long_text="window", overlap=9, aggregate=how
            )
            [cut] = encode(llm.tokenizer, [long], None, LongText("window", None, 9))
            alone = [llm.classify([w.ids], pooling_params=params, use_tqdm=False)[0].outputs.probs for w in cut.windows]
            expected = {"first": alone[0], "max": np.max(alone, 0), "mean": mean_by_tokens(cut, np.array(alone))}[how]
            np.testing.assert_allclose(both[0].outputs.probs, expected, atol=1e-6)
            [plain] = llm.classify(short, pooling_params=params, use_tqdm=False)
            np.testing.assert_allclose(both[1].outputs.probs, plain.outputs.probs, atol=1e-6)
    assert both[0].prompt_token_ids == cut.ids


def deepest(cut: Windowed, position: int, room: int = 30) -> int:
    """The window that a token is farthest inside of; of two the later."""
    best = 0
    for index, start in enumerate(cut.starts):
        if min(position - start, start + room - 1 - position) >= min(
            position - cut.starts[best], cut.starts[best] + room - 1 - position
        ):
            best = index
    return best


def mean_by_tokens(cut: Windowed, scores: np.ndarray) -> np.ndarray:
    """Every token of the text votes once."""
    return np.mean([scores[deepest(cut, position)] for position in range(1, len(cut.ids) - 1)], 0)


def test_max_is_the_default_where_several_labels_may_hold(tmp_path: Path) -> None:
    folder = tmp_path / "multi"
    shutil.copytree(MODELS / "bert-cls", folder)
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (folder / "config.json").write_text(json.dumps(config))
    with LLM(folder, max_model_len=32) as llm:
        default, most, mean = (
            llm.classify(text(100), use_tqdm=False, long_text="window", **more)[0].outputs.probs
            for more in ({}, {"aggregate": "max"}, {"aggregate": "mean"})
        )
    assert default == most != mean


def test_each_token_has_the_scores_of_the_window_it_is_farthest_inside_of() -> None:
    with LLM(MODELS / "bert-cls", max_model_len=32, pooler_config={"task": "token_classify"}) as llm:
        long = text(100)
        [output] = llm.encode(long, pooling_task="token_classify", use_tqdm=False, long_text="window", overlap=10)
        [cut] = encode(llm.tokenizer, [long], None, LongText("window", None, 10))
        windows = [llm.encode([w.ids], pooling_task="token_classify", use_tqdm=False)[0] for w in cut.windows]
    assert output.outputs.data.shape[0] == len(cut.ids) == len(output.prompt_token_ids)
    for position in range(1, len(cut.ids) - 1):
        index = deepest(cut, position)
        expected = windows[index].outputs.data[position - cut.starts[index] + 1]
        np.testing.assert_allclose(output.outputs.data[position], expected, atol=1e-6)


def test_embeddings_are_of_length_one() -> None:
    with LLM(MODELS / "bert-cls", max_model_len=32, convert="embed") as llm:
        [output] = llm.embed(text(100), use_tqdm=False, long_text="window")
    assert np.linalg.norm(output.outputs.embedding) == pytest.approx(1, abs=1e-5)


def test_truncate_is_what_the_tokenizer_does(llm: LLM) -> None:
    [one] = llm.classify(text(100), use_tqdm=False, long_text="truncate")
    [other] = llm.classify(text(100), use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1})
    assert one.outputs.probs == pytest.approx(other.outputs.probs, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"long_text": "chunk"}, "must be one of 'error', 'truncate', 'window', not 'chunk'"),
        ({"long_text": "window", "aggregate": "min"}, "aggregate must be one of 'mean', 'max', 'first'"),
        ({"window": 16}, "window has a meaning with long_text='window' only"),
        ({"long_text": "window", "window": 33}, "window=33 is more than the 32 tokens"),
        ({"long_text": "window", "window": 0}, "whole number from 1 up, not 0"),
        ({"long_text": "window", "overlap": 30}, "room for 30 tokens of this text beside what"),
        ({"long_text": "window", "tokenization_kwargs": {"truncate_prompt_tokens": 5}}, "contradict each other"),
    ],
)
def test_options_that_make_no_sense(llm: LLM, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        llm.classify(text(100), use_tqdm=False, **options)


def test_what_cannot_be_cut(llm: LLM) -> None:
    with pytest.raises(ValidationError, match="nobody knows which of them are special"):
        llm.classify([[5] * 40], use_tqdm=False, long_text="window")
    with pytest.raises(ValidationError, match="has room for"):
        llm.classify({"prompt": text(30), "text_pair": text(30, 1)}, use_tqdm=False, long_text="window")
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows'"):
        llm.classify("a", windows=3)  # type: ignore[call-arg]
