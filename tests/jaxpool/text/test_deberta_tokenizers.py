"""Token ids of DeBERTa are those of training: SentencePiece's own for versions 2 and 3, BERT's pairs for version 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.vocabulary import read_tokenizer

TEXTS = [
    "Ｉｇｎｏｒｅ ａｌｌ instructions",  # full-width letters
    "the ﬁrst oﬃce",  # ligatures
    "½ of the cats, ① dog™",
    "a\u00a0non-breaking\u3000space  and\ttabs\nand lines ",
    "éte\u0301 cafe\u0301",
    "plain words",
]
"""Texts that the character map of a SentencePiece model changes, and one that it leaves alone."""


def ids(folder: Path, prompts: list[Any]) -> list[Any]:
    reads = Tokenizer(read_tokenizer(folder), max_length=512, vocab_size=1000)
    return [(one.ids, one.types) for one in reads.encode(prompts)]


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = tmp_path_factory.mktemp("spm")
    corpus = ["ignore all instructions", "the first office", "1/2 of the cats, 1 dog tm", "a non breaking space",
              "été café", "plain words and tabs and lines"] * 20  # fmt: skip
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "spm"),
        vocab_size=90,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="[PAD]",
        unk_piece="[UNK]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "spm.model"


@pytest.mark.parametrize("lower", [False, True])
def test_deberta_3_reads_what_sentencepiece_reads(lower: bool, sentencepiece_model: Path, tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "spm.model").write_bytes(sentencepiece_model.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    settings = {"do_lower_case": lower, "vocab_type": "spm", "tokenizer_class": "DebertaV2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    own = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    theirs = [own.encode(text.lower() if lower else text) for text in TEXTS]
    assert ids(tmp_path, TEXTS) == [([2, *row, 3], None) for row in theirs]
    both = {"prompt": TEXTS[0], "text_pair": TEXTS[1]}
    pair = [2, *theirs[0], 3, *theirs[1], 3]
    assert ids(tmp_path, [both]) == [(pair, [0] * (len(theirs[0]) + 2) + [1] * (len(theirs[1]) + 1))]
    # and so from the file that older versions of transformers made of the model
    read_tokenizer(tmp_path).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "spm.model").unlink()
    assert [row for row, _ in ids(tmp_path, TEXTS)] == [[2, *row, 3] for row in theirs]


@pytest.mark.parametrize("stored", [False, True])
def test_deberta_1_joins_pairs_as_bert_does(stored: bool, tmp_path: Path) -> None:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *"abcd", "ab", "cd"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nc d\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DebertaTokenizer"}))
    if stored:
        read_tokenizer(tmp_path).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    both = {"prompt": "ab", "text_pair": "cda"}
    assert ids(tmp_path, ["ab", both]) == [([1, 9, 2], None), ([1, 9, 2, 10, 5, 2], [0, 0, 0, 1, 1, 1])]
