"""Our ids must be the checkpoint tokenizer's, text by text; everything else must be refused in words."""

from __future__ import annotations

import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    ByT5Tokenizer,
    DebertaTokenizer,
    DebertaV2Tokenizer,
    RobertaTokenizer,
)

from jaxpool.errors import CheckpointError, ValidationError
from jaxpool.text.prompts import Options, split
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.vocabulary import Vocabulary, lower_cases, read_tokenizer

MODELS = Path(__file__).parents[2] / "data" / "models"
NAMES = ["gpt2-cls", "bert-cls", "qwen2-cls", "llama-causal"]
ALPHABET = [
    "hello", "World", " ", "  ", "naïve", "東京", "😀", "\n",
    "a", "!", "[SEP]", "<s>", "<|endoftext|>", "\0", "ß",
]  # fmt: skip


def open_tokenizer(name: str, **limits: int) -> Tokenizer:
    return Tokenizer(read_tokenizer(MODELS / name), **{"max_length": 64, "vocab_size": 2048, **limits})


def random_texts(count: int, most: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randint(1, most))) for _ in range(count)]


LETTERS = list("abcdef")


def _numbered(*tokens):
    return {token: number for number, token in enumerate([*tokens, *LETTERS, "Ġ", *("Ġ" + x for x in LETTERS)])}


BYTE_PAIRS = [("Ġ", letter) for letter in LETTERS]
PAIRS = {
    "bert": lambda: BertTokenizer(vocab=_numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
    "roberta": lambda: RobertaTokenizer(vocab=_numbered("<s>", "<pad>", "</s>", "<unk>", "<mask>"), merges=BYTE_PAIRS),
    "deberta": lambda: DebertaTokenizer(
        vocab=_numbered("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), merges=BYTE_PAIRS
    ),
    "deberta-v2": lambda: DebertaV2Tokenizer(
        vocab=[
            *((token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")),
            *(("▁" + letter, -1.0) for letter in LETTERS),
            ("▁", -2.0),
            ("[MASK]", 0.0),
        ]
    ),
}
"""Tokenizers of models that read pairs, each with a few letters for a vocabulary."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_the_tokenizers(name, special):
    texts = random_texts(200, 12)
    theirs = AutoTokenizer.from_pretrained(MODELS / name)(texts, add_special_tokens=special)["input_ids"]
    texts, theirs = zip(*[(text, ids) for text, ids in zip(texts, theirs) if ids])
    ours = open_tokenizer(name, max_length=512).encode(texts, {"add_special_tokens": special})
    assert [encoded.ids for encoded in ours] == list(theirs)
    assert all(encoded.types is None for encoded in ours)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 16])
def test_truncated_pairs_are_the_tokenizers(name, side, size):
    theirs = AutoTokenizer.from_pretrained(MODELS / name, truncation_side=side)
    first, second = random_texts(60, 10), random_texts(60, 10, seed=1)
    ours = open_tokenizer(name).encode(
        [{"prompt": a, "text_pair": b} for a, b in zip(first, second)],
        {"truncate_prompt_tokens": size, "truncation_side": side},
    )
    if size < theirs.num_special_tokens_to_add(pair=True):  # transformers itself refuses such a limit
        assert {len(encoded.ids) for encoded in ours} == {size}
        return
    for a, b, encoded in zip(first, second, ours):
        expected = theirs(a, b, truncation=True, max_length=size)
        assert encoded.ids == expected["input_ids"]
        types = expected.get("token_type_ids", [0] * len(encoded.ids))
        assert (encoded.types or [0] * len(encoded.ids)) == types


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta", "deberta-v2"])
@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("slow", [False, True])
def test_pairs_are_cut_as_transformers_cuts_them(kind, strategy, slow):
    """Ids and token types of every pair, at every size; where transformers fails, so do we."""
    theirs = PAIRS[kind]()
    vocabulary = Vocabulary.of(PAIRS[kind]())
    if slow:
        vocabulary = replace(vocabulary, backend=None, slow=PAIRS[kind]())
    ours = Tokenizer(vocabulary, max_length=64, vocab_size=len(theirs))
    pairs = [("a b c d e f", "b c"), ("a", "c d e f a b c"), ("f e d", "a b c"), ("a b c d", "e")]
    for size, (a, b) in itertools.product(range(5, 14), pairs):
        options = {"truncation": strategy, "max_length": size}
        try:
            expected = theirs(a, b, **options)
        except Exception:  # the Rust tokenizer raises bare ones
            with pytest.raises(ValidationError, match=f"truncation='{strategy}' would cut a text"):
                ours.encode([{"prompt": a, "text_pair": b}], options)
            continue
        (encoded,) = ours.encode([{"prompt": a, "text_pair": b}], options)
        assert encoded.ids == expected["input_ids"], (size, a, b)
        assert (encoded.types or [0] * len(encoded.ids)) == expected.get("token_type_ids", [0] * len(encoded.ids))


def test_one_text_has_no_second_to_cut():
    ours = Tokenizer(PAIRS["bert"](), max_length=64, vocab_size=20)
    (encoded,) = ours.encode(["a b c d"], {"truncation": "only_first", "max_length": 4})
    assert len(encoded.ids) == 4
    with pytest.raises(ValidationError, match="only_second"):
        ours.encode(["a b c d"], {"truncation": "only_second", "max_length": 4})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("size", [2, 3, 9])
def test_truncated_texts_are_the_tokenizers(name, side, size):
    hf = AutoTokenizer.from_pretrained(MODELS / name, truncation_side=side or "right")
    texts = random_texts(60, 10)
    kwargs = {"truncate_prompt_tokens": size} | ({"truncation_side": side} if side else {})
    expected = hf(texts, truncation=True, max_length=size)["input_ids"]
    texts, expected = zip(*[(text, ids) for text, ids in zip(texts, expected) if ids])
    assert [encoded.ids for encoded in open_tokenizer(name).encode(texts, kwargs)] == list(expected)


def test_bert_pairs_have_types():
    (encoded,) = open_tokenizer("bert-cls").encode([{"prompt": "a", "text_pair": "b c"}])
    assert encoded.ids[0] == 2
    assert encoded.ids[-1] == 3
    assert encoded.types == [0, 0, 0, 1, 1, 1]


def test_a_slow_tokenizer_goes_through_transformers():
    tokenizer = Tokenizer(ByT5Tokenizer(), max_length=8, vocab_size=400)
    assert tokenizer.vocabulary.backend is None
    (whole,) = tokenizer.encode(["abc"])
    assert whole.ids == [100, 101, 102, 1]
    left, right = ({"truncate_prompt_tokens": 3, "truncation_side": side} for side in ("left", "right"))
    assert tokenizer.encode(["abcd"], left)[0].ids == [102, 103, 1]
    assert tokenizer.encode(["abcd"], right)[0].ids == [100, 101, 1]


def test_settings_inside_tokenizer_json_do_not_leak(tmp_path):
    """Sentence-Transformers files carry truncation and padding of their own; transformers ignores both."""
    hf = AutoTokenizer.from_pretrained(MODELS / "bert-cls")
    hf.backend_tokenizer.enable_truncation(4)
    hf.backend_tokenizer.enable_padding(length=9)
    hf.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((MODELS / "bert-cls" / name).read_bytes())
    ours = Tokenizer(read_tokenizer(tmp_path), max_length=64, vocab_size=2000)
    assert ours.encode(["hello world"]) == open_tokenizer("bert-cls").encode(["hello world"])


def test_many_threads_one_answer():
    tokenizer = open_tokenizer("bert-cls")
    texts = random_texts(50, 10)
    calls = [{"truncate_prompt_tokens": size, "truncation_side": side} for size in (4, 9) for side in ("left", "right")]
    expected = [tokenizer.encode(texts, kwargs) for kwargs in calls]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda kwargs: tokenizer.encode(texts, kwargs), calls * 8))
    assert results == expected * 8


def test_ids_pass_through_and_are_cut_as_they_are():
    tokenizer = open_tokenizer("bert-cls")
    forms = [[5, 6, 7], (5, 6, 7), np.asarray([5, 6, 7]), {"prompt_token_ids": [5, 6, 7]}, [5.0, 6.0, 7.0]]
    assert [encoded.ids for encoded in tokenizer.encode(forms)] == [[5, 6, 7]] * 5
    typed = {"prompt_token_ids": [5, 6, 7], "token_type_ids": [0, 1, 1]}
    (left,) = tokenizer.encode([typed], {"truncate_prompt_tokens": 2, "truncation_side": "left"})
    (right,) = tokenizer.encode([typed], {"truncate_prompt_tokens": 2})
    assert (left.ids, left.types, right.ids, right.types) == ([6, 7], [1, 1], [5, 6], [0, 1])


@pytest.mark.parametrize("ids", [[1.5, 2.0], [True, False], ["a", "b"], [[1], [2]], [1, None], "12", 5, None, [[1], 2]])
def test_ids_must_be_integers(ids):
    with pytest.raises(TypeError, match=r"^Token prompt should be a list of integers$"):
        open_tokenizer("bert-cls").encode([{"prompt_token_ids": ids}])


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (5, TypeError, "Prompt should be a string, list of tokens, or dictionary"),
        (b"abc", TypeError, "Prompt should be a string, list of tokens, or dictionary"),
        ({}, TypeError, "Prompt dictionary must contain text, tokens, or embeddings"),
        ({"prompt": 5}, TypeError, "Prompt text should be a string"),
        ({"prompt": "a", "text_pair": 5}, TypeError, "Prompt text should be a string"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, ValueError, "jaxpool reads text only"),
        (
            {"prompt_token_ids": [1, 2], "token_type_ids": [0]},
            ValueError,
            "2 prompt_token_ids but 1 token_type_ids",
        ),
        ([], ValueError, "The decoder prompt cannot be empty"),
        ([2**70], ValueError, f"Token id {2**70} is out of vocabulary"),
        ([-1], ValueError, "Token id -1 is out of vocabulary"),
        ([2048], ValueError, "Token id 2048 is out of vocabulary"),
        ("x\ud83d", ValueError, "character 1 is half of a surrogate pair (U+D83D)"),
    ],
)
def test_bad_prompts_are_refused_and_named(prompt, error, message):
    with pytest.raises(error) as caught:
        open_tokenizer("gpt2-cls").encode(["fine", prompt])
    assert message in str(caught.value)
    assert caught.value.__notes__ == ["in prompt 1 of 2, counted from 0"]


def test_a_text_beyond_the_embedding_is_out_of_vocabulary():
    with pytest.raises(ValidationError, match=r"^Token id 371 is out of vocabulary"):
        open_tokenizer("gpt2-cls", vocab_size=300).encode([" hello"])


def test_the_limit_itself_is_allowed():
    tokenizer = open_tokenizer("gpt2-cls", max_length=4)
    assert len(tokenizer.encode([[7] * 4])[0].ids) == 4
    for prompt, words in (([7] * 5, "at least 5"), ([7] * 6, "contains 6"), ("a a a a a a a", "at least 5")):
        with pytest.raises(ValidationError, match=words) as caught:
            tokenizer.encode([prompt])
        assert caught.value.parameter == "input_tokens"


def test_hopeless_texts_are_refused_by_their_characters():
    tokenizer = open_tokenizer("bert-cls", max_length=10)
    with pytest.raises(ValidationError, match=r"contains 191 characters \(more than 190 characters") as caught:
        tokenizer.encode(["a" * 191])
    assert caught.value.parameter == "input_text"
    assert len(tokenizer.encode(["a " * 200], {"truncate_prompt_tokens": -1})[0].ids) == 10


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, Options()),
        ({"truncate_prompt_tokens": None}, Options()),
        ({"truncate_prompt_tokens": 3}, Options(truncate=3)),
        ({"truncate_prompt_tokens": -1}, Options(truncate=16)),
        ({"truncation": True}, Options(truncate=16)),
        ({"truncation": "longest_first", "max_length": 8}, Options(truncate=8)),
        ({"truncation": False}, Options()),
        ({"truncation": "do_not_truncate", "truncate_prompt_tokens": 3}, Options()),
        ({"max_length": 8}, Options()),
        ({"padding": "max_length"}, Options(pad=16)),
        ({"padding": "max_length", "max_length": 8}, Options(pad=8)),
        ({"padding": "do_not_pad"}, Options()),
        ({"pad_prompt_tokens": -1}, Options(pad=16)),
        ({"add_special_tokens": False}, Options(add_special_tokens=False)),
        ({"do_lower_case": True, "needs_detokenization": True}, Options(lower=True)),
        ({"truncation_side": "left"}, Options(side="left")),
    ],
)
def test_options(kwargs, expected):
    assert Options.parse(kwargs, max_length=16) == expected


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"truncate_prompt_tokens": 17},
            ValueError,
            "truncate_prompt_tokens=17 cannot be greater than max_total_tokens",
        ),
        ({"truncation": True, "max_length": 17}, ValueError, "cannot be greater than max_total_tokens = 16"),
        ({"pad_prompt_tokens": 17}, ValueError, "Please request a smaller padding size"),
        ({"truncate_prompt_tokens": "3"}, TypeError, "not supported between instances of 'str' and 'int'"),
        ({"truncate_prompt_tokens": 2.5}, TypeError, "'float' object cannot be interpreted as an integer"),
        ({"truncation_side": "middle"}, ValueError, "must be either 'left' or 'right'"),
    ],
)
def test_bad_options_are_refused(kwargs, error, message):
    with pytest.raises(error) as caught:
        Options.parse(kwargs, max_length=16)
    assert message in str(caught.value)


def test_unknown_options_are_named() -> None:
    assert Options.parse({"return_tensors": "pt", "padding": True, "verbose": False}, 16) == Options()
    with pytest.raises(ValidationError, match=r"truncatoin=True, for which .*; did you mean 'truncation'"):
        Options.parse({"truncatoin": True}, 16)
    with pytest.raises(ValidationError, match="padding='both'"):
        Options.parse({"padding": "both"}, 16)


def test_padding_needs_a_padding_token():
    tokenizer = open_tokenizer("bert-cls")
    assert tokenizer.encode(["a"], {"pad_prompt_tokens": 5})[0].ids == [2, 43, 3, 0, 0]
    hf = read_tokenizer(MODELS / "bert-cls")
    hf.pad_token = None
    with pytest.raises(ValidationError, match="has no padding token"):
        Tokenizer(hf, max_length=64, vocab_size=2000).encode(["a"], {"pad_prompt_tokens": 5})


def test_lower_casing_follows_the_checkpoint(tmp_path):
    assert not lower_cases(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert lower_cases(tmp_path)
    hf = read_tokenizer(MODELS / "gpt2-cls")
    lower = Tokenizer(hf, max_length=64, vocab_size=2000, lower=True)
    assert lower.encode(["HELLO"]) == lower.encode(["hello"])
    assert lower.encode(["HELLO"], {"do_lower_case": False}) != lower.encode(["hello"])


def test_no_tokenizer_still_reads_ids():
    tokenizer = Tokenizer(None, max_length=8, vocab_size=10, absent="No tokenizer here.")
    assert tokenizer.encode([[1, 2, 3]], {"truncate_prompt_tokens": 2})[0].ids == [1, 2]
    with pytest.raises(ValidationError, match=r"No tokenizer here\."):
        tokenizer.encode(["text"])


def test_damaged_tokenizer_files(tmp_path):
    assert read_tokenizer(tmp_path) is None
    (tmp_path / "config.json").write_bytes((MODELS / "bert-cls" / "config.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((MODELS / "bert-cls" / "tokenizer_config.json").read_bytes())
    with pytest.raises(CheckpointError, match="tokenizer"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("prompts", "count"),
    [("a", 1), ({"prompt": "a"}, 1), ([5, 6], 1), (["a", [5]], 2), (("a", "b"), 2), ([[5], [6]], 2)],
)
def test_what_counts_as_one_prompt(prompts, count):
    assert len(split(prompts)) == count


@pytest.mark.parametrize(
    ("name", "content", "installed", "told"),
    [
        ("spiece.model", b"\n\x0e", (), "with sentencepiece and protobuf.*`pip install sentencepiece protobuf`"),
        ("tokenizer.model", b"\n\x0e", ("sentencepiece",), "`pip install protobuf`"),
        ("tokenizer.model", b"IQ== 0\n", (), "with tiktoken.*`pip install tiktoken`"),
        ("qwen.tiktoken", b"IQ== 0\n", (), "`pip install tiktoken`"),
    ],
)
def test_a_missing_reader_is_named(tmp_path, monkeypatch, name, content, installed, told):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("jaxpool.text.vocabulary._installed", lambda module: module in installed)
    with pytest.raises(CheckpointError, match=told):
        read_tokenizer(tmp_path)


@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
def test_sentencepiece_files_alone_are_read(tmp_path):
    """The ids are those of the sentencepiece library itself, and special tokens stand around them."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    (tmp_path / "text").write_text("\n".join(["the movie was great", "hello world again", "yes no maybe"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "sentencepiece.bpe"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=5,
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    texts = ["the movie", "hello maybe", "great world again"]
    ours = Tokenizer(read_tokenizer(tmp_path), max_length=64, vocab_size=60).encode(texts)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sentencepiece.bpe.model"))
    for text, encoded in zip(texts, ours):
        # <s>, then pieces one further than in the file (fairseq numbers <pad> in between), then </s>
        assert encoded.ids == [0, *(piece + 1 for piece in reference.encode(text)), 2]
