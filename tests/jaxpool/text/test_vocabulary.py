"""Token ids to text and back, and the beginning of a text: as the checkpoint's own tokenizer has it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from jaxpool.errors import ValidationError
from jaxpool.text.tokenizer import Tokenizer

MODELS = Path(__file__).parents[2] / "data" / "models"
TEXTS = ["", "Hello world", "naïve café 😀 東京", "a  b\nc", "[CLS] <s> x", "def f(x):\n    return -1"]


@pytest.mark.parametrize("name", ["gpt2-cls", "bert-cls", "llama-causal"])
def test_ids_text_and_pieces_are_the_tokenizers(name: str) -> None:
    ours = Tokenizer(AutoTokenizer.from_pretrained(MODELS / name), max_length=8, vocab_size=2048)
    hf = AutoTokenizer.from_pretrained(MODELS / name)
    with ours.reading() as vocabulary:
        for text in [*TEXTS, "more than the model reads " * 9]:
            for special in (True, False):
                ids = hf.encode(text, add_special_tokens=special)
                assert vocabulary.ids(text, special_tokens=special) == ids
                assert vocabulary.text(ids) == hf.decode(ids)
                assert vocabulary.pieces(ids) == hf.convert_ids_to_tokens(ids)


def test_a_slow_tokenizer_has_one_reader_at_a_time() -> None:
    ours = Tokenizer(ByT5Tokenizer(), max_length=8, vocab_size=400)
    seen = []

    def read() -> None:
        with ours.reading() as vocabulary:
            seen.append(vocabulary.text(vocabulary.ids("hé", special_tokens=True)))

    with ours.reading() as vocabulary:
        assert vocabulary.pieces(vocabulary.ids("a", special_tokens=False)) == ["a"]
        with pytest.raises(ValidationError, match=r"tokenizer\.json"):
            vocabulary.beginning("text", 2)
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(0.05)
        assert not seen
    thread.join()
    assert seen == ["hé</s>"]


@pytest.mark.parametrize("name", ["gpt2-cls", "bert-cls"])
@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 40])
def test_the_beginning_of_a_text(name: str, tokens: int) -> None:
    ours = Tokenizer(AutoTokenizer.from_pretrained(MODELS / name), max_length=8, vocab_size=2048)
    with ours.reading() as vocabulary:
        for text in TEXTS:
            short = vocabulary.beginning(text, tokens)
            count = len(vocabulary.ids(short, special_tokens=False))
            assert text.startswith(short)
            assert count <= tokens
            whole = vocabulary.ids(text, special_tokens=False)
            assert short == text if len(whole) <= tokens else short != text


def test_what_is_no_text() -> None:
    with Tokenizer(
        AutoTokenizer.from_pretrained(MODELS / "bert-cls"), max_length=8, vocab_size=2048
    ).reading() as words:
        for read in (lambda text: words.ids(text, special_tokens=True), lambda text: words.beginning(text, 3)):
            with pytest.raises(ValidationError, match="not valid Unicode"):
                read("\ud800")
    absent = Tokenizer(None, max_length=8, vocab_size=8, absent="no words here")
    with pytest.raises(ValidationError, match="no words here"), absent.reading():
        pass


def test_an_empty_second_text_is_no_pair() -> None:
    ours = Tokenizer(AutoTokenizer.from_pretrained(MODELS / "bert-cls"), max_length=8, vocab_size=2048)
    hf = AutoTokenizer.from_pretrained(MODELS / "bert-cls")
    for pair in (("a", ""), ("", ""), ("", "a")):
        assert ours.encode([{"prompt": pair[0], "text_pair": pair[1]}])[0].ids == hf(*pair)["input_ids"]
