"""The embedded model: small, honest about what it is, right on what it was never trained on."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from jaxpool import LLM
from jaxpool.checkpoints.location import DEFAULT_MODEL
from jaxpool.default_model import vocabulary
from jaxpool.training.metrics import score

HELD_OUT = Path(__file__).parents[1] / "data" / "held_out_sentences.csv"
LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def model() -> LLM:
    return LLM()


def positive(model: LLM, texts: list[str]) -> list[float]:
    """Probability of ``positive`` of every text."""
    return [output.outputs.probs[1] for output in model.classify(texts, use_tqdm=False)]


def test_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in DEFAULT_MODEL.iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= sizes.keys()
    assert sum(sizes.values()) <= 30_000_000


def test_stores_bfloat16_and_computes_in_float32() -> None:
    with safe_open(DEFAULT_MODEL / "model.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert json.loads((DEFAULT_MODEL / "config.json").read_text())["dtype"] == "float32"


def test_readme_sentences(model: LLM) -> None:
    good, bad = model.classify(
        ["Loved the new café—coffee was great.", "This update broke everything. Frustrating."], use_tqdm=False
    )
    assert (good.outputs.label, bad.outputs.label) == ("positive", "negative")
    assert good.outputs.probs[1] > 0.9
    assert bad.outputs.probs[0] > 0.9


def test_held_out_sentences_reach_the_stated_accuracy(model: LLM) -> None:
    with HELD_OUT.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    predicted = [int(p > 0.5) for p in positive(model, [row["text"] for row in rows])]
    scores = score([LABELS.index(row["label"]) for row in rows], predicted, 2)
    card = (DEFAULT_MODEL / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"Held-out accuracy: \*\*([\d.]+)\*\*", card)
    assert stated
    low, high = scores.interval
    assert scores.accuracy >= 0.80
    assert low <= float(stated[1]) <= high  # the sample agrees with the figure of the whole held-out part


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The movie wasn't good.", "negative"),
        ("Not bad at all!", "positive"),
        ("I would recommend it to anyone.", "positive"),
        ("What a waste of time and money.", "negative"),
        ("Thank you so much, you made my day!", "positive"),
        ("It keeps crashing.", "negative"),
        ("THE FOOD WAS DELICIOUS", "positive"),
        ("Naïve, clichéd and terribly boring", "negative"),
        ("😍😍😍", "positive"),
        ("my parcel arrived 👎🏽", "negative"),
        ("phone👍", "positive"),
    ],
)
def test_everyday_sentences(model: LLM, text: str, label: str) -> None:
    (output,) = model.classify([text], use_tqdm=False)
    assert output.outputs.label == label


def test_any_english_text_tokenises_without_unknown_pieces(model: LLM) -> None:
    tokenizer = model.get_tokenizer()
    ascii_text = " ".join(map(chr, range(33, 127)))
    rare = "defenestration schadenfreude x86_64 O'Reilly façade £5 20€ “quotes” … — –"
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(f"{ascii_text} {rare}")["input_ids"])
    assert tokenizer.unk_token not in pieces
    assert len(tokenizer) == json.loads((DEFAULT_MODEL / "config.json").read_text())["vocab_size"]


def test_pruning_keeps_ids_and_vectors_together() -> None:
    tokenizer = {
        "model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1, "rare": 2, "good": 3, "a": 4, "##a": 5}},
        "added_tokens": [{"id": 0, "content": "[PAD]"}, {"id": 1, "content": "[UNK]"}],
        "post_processor": {"special_tokens": {"[PAD]": {"id": "[PAD]", "ids": [0]}}},
    }
    pieces = ["[PAD]", "[UNK]", "good", "a", "##a", "👍"]
    tensors = {
        "embeddings.word_embeddings.weight": np.arange(6, dtype=np.float32)[:, None] * np.ones(2, np.float32),
        "encoder.layer.0.x": np.zeros(1),
        "encoder.layer.1.x": np.zeros(1),
        "pooler.dense.bias": np.zeros(1),
    }
    small = vocabulary.shrink(tensors, tokenizer["model"]["vocab"], pieces, 1)  # type: ignore[index]
    assert small["embeddings.word_embeddings.weight"][:, 0].tolist() == [0, 1, 3, 4, 5, 3]
    assert sorted(small) == ["embeddings.word_embeddings.weight", "encoder.layer.0.x", "pooler.dense.bias"]
    written = vocabulary.rewrite_tokenizer(tokenizer, pieces)
    assert written["model"]["vocab"]["good"] == 2
    assert tokenizer["model"]["vocab"]["good"] == 3  # type: ignore[index]
