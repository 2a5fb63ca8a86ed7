"""What the embedded model is made with: weak labels, the mean of trainings, the temperature; and its check list."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from pathlib import Path

import check_list
import numpy as np
import pytest
from safetensors.numpy import load_file
from toy import toy, write_bert

from jaxpool import LLM
from jaxpool.commands.fit import fit
from jaxpool.default_model import make, weak
from jaxpool.training.data import Labelled
from jaxpool.training.recipe import Recipe

LEXICON = {"wonderful": 2.7, "dreadful": -2.4, "reliable": 1.9, "horrible": -2.5, "okay": 0.9, "disgusting": -2.4}


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with a lexicon of a few words where VADER's wheel has its own, in its format."""
    rows = "\n".join(f"{word}\t{valence}\t0.5\t[1, 2]" for word, valence in LEXICON.items())
    with zipfile.ZipFile(tmp_path / "vaderSentiment-0-py3-none-any.whl", "w") as archive:
        archive.writestr("vaderSentiment/vader_lexicon.txt", rows)
    return tmp_path


def test_the_check_list_is_large_and_has_no_sentence_twice() -> None:
    texts = [text for _, _, text in check_list.right()]
    assert len(texts) == len(set(texts)) >= 300
    labels = Counter((capability, label) for capability, label, _ in check_list.right())
    assert {label for _, label in labels} == {"negative", "positive"}
    assert min(labels.values()) >= 10
    assert not any(set("{}|") & set(text) for text in texts)


def test_templates_are_none_of_the_check_list(wheels: Path) -> None:
    made = weak.templates(wheels, 1500, 0)
    assert made == weak.templates(wheels, 1500, 0) != weak.templates(wheels, 1500, 1)
    assert Counter(one.label for one in made) == {"negative": 750, "positive": 750}
    assert not any(set("{}|") & set(one.text) for one in made)

    def bare(text: str) -> str:
        return re.sub("[^a-z]", "", text.lower())

    asked = {bare(text) for _, _, text in check_list.right()} | {
        bare(t) for _, texts in check_list.same() for t in texts
    }
    assert not asked & {bare(one.text) for one in made if len(bare(one.text)) > 12}
    for one in made:  # frames turn the sign of a word, and only they do
        if re.fullmatch(r"The \w+ was (wonderful|reliable)\.", one.text):
            assert one.label == "positive"
        if re.fullmatch(r"The \w+ wasn't (wonderful|reliable)\.", one.text):
            assert one.label == "negative"


def test_the_mean_of_trainings_with_the_temperature_that_fits(tmp_path: Path) -> None:
    base = write_bert(tmp_path / "bert")
    data, held = (
        Labelled(part.texts, [{"good": "positive", "bad": "negative"}[str(label)] for label in part.labels])
        for part in (toy(80, 1), toy(60, 2))
    )
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, rows in zip(folders, (np.arange(60), np.arange(20, 80))):
        fit(base, data.take(rows), folder, recipe=Recipe(freeze="backbone"), log=lambda line: None)
    make.average(folders, tmp_path / "mean")
    parts = [load_file(folder / "model.safetensors") for folder in (*folders, tmp_path / "mean")]
    for name in parts[0]:
        np.testing.assert_allclose(parts[2][name], (parts[0][name] + parts[1][name]) / 2, atol=1e-6)

    def loss() -> float:
        with LLM(tmp_path / "mean") as llm:
            outputs = llm.classify(list(held.texts), use_tqdm=False)
        truth = held.targets(("negative", "positive"))
        return -float(np.mean([np.log(output.outputs.probs[i]) for output, i in zip(outputs, truth)]))

    before = loss()
    temperature = make.cool(tmp_path / "mean", held)
    assert loss() <= before + 1e-6
    assert make.cool(tmp_path / "mean", held) == pytest.approx(1, abs=0.02)  # and no other fits better
    assert 0.3 <= temperature <= 3
