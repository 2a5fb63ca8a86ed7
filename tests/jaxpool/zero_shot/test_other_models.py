"""The same labels by entailment and by similarity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams

BERT = Path(__file__).resolve().parents[2] / "data" / "models" / "bert-cls"
TEXTS = ["The update broke everything.", "Good coffee"]
LABELS = ["bug", "praise", "money"]


def nli(folder: Path, names: list[str]) -> Path:
    """A model of entailment: BERT's weights of three labels, or of as many as it has, under other names."""
    shutil.copytree(BERT, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {n: i for i, n in enumerate(names)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def size() -> int:
    return len(json.loads((BERT / "config.json").read_text())["id2label"])


@pytest.mark.parametrize("multi", [False, True])
def test_entailment_is_transformers_pipeline(tmp_path: Path, multi: bool) -> None:
    from transformers import pipeline

    names = (
        ["contradiction", "neutral", "entailment"][-size() :]
        if size() < 3
        else ["contradiction", "neutral", "entailment"]
    )
    names = names if size() == 3 else ["not_entailment", "entailment"]
    folder = nli(tmp_path / "nli", names)
    asked: dict[str, Any] = {"candidate_labels": LABELS, "multi_label": multi}
    with LLM(folder, dtype="float32") as llm:
        outputs = llm.classify(TEXTS, use_tqdm=False, **asked)
        kind = llm.classify(TEXTS, use_tqdm=False, prompt="It is {label}", **asked)
    wanted = pipeline("zero-shot-classification", model=str(folder), device="cpu")(TEXTS, **asked)
    for output, one in zip(outputs, wanted):
        scores = dict(zip(one["labels"], one["scores"]))
        np.testing.assert_allclose(output.outputs.probs, [scores[label] for label in LABELS], atol=1e-5)
        if not multi:
            assert output.outputs.label == one["labels"][0]
    assert kind[0].outputs.probs != outputs[0].outputs.probs


def test_similarity_is_that_of_the_vectors(tmp_path: Path) -> None:
    with LLM(BERT, convert="embed", dtype="float32") as llm:
        vectors = [np.array(one.outputs.embedding) for one in llm.embed([*TEXTS, *LABELS], use_tqdm=False)]
        wanted = np.array([[text @ label for label in vectors[2:]] for text in vectors[:2]])
        raw = llm.classify(
            TEXTS, candidate_labels=LABELS, pooling_params=PoolingParams(use_activation=False), use_tqdm=False
        )
        outputs = llm.classify(TEXTS, candidate_labels=LABELS, use_tqdm=False)
        with pytest.raises(ValueError, match="examples is for language models; this is an embedder"):
            llm.classify(TEXTS, candidate_labels=LABELS, examples=[("a", "bug")], use_tqdm=False)
    np.testing.assert_allclose([one.outputs.probs for one in raw], 20 * wanted, atol=1e-4)
    powers = np.exp(20 * wanted)
    np.testing.assert_allclose([one.outputs.probs for one in outputs], powers / powers.sum(1, keepdims=True), atol=1e-5)


def test_a_classifier_of_other_labels_refuses() -> None:
    with LLM(BERT) as llm, pytest.raises(ValueError, match="none called 'entailment'"):
        llm.classify(TEXTS, candidate_labels=LABELS, use_tqdm=False)
