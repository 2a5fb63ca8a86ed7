"""What ``fit`` takes: several labels, numbers, pairs, Parquet, long texts; and what it says and keeps of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from toy import WORDS, toy, write_bert

import jaxpool
from jaxpool import LLM
from jaxpool.errors import InputFileError, JaxpoolError, ValidationError
from jaxpool.training import fitting
from jaxpool.training.data import Label, Labelled
from jaxpool.training.fit import Fitted, fit
from jaxpool.training.labelled_files import read_labelled
from jaxpool.training.recipe import Recipe

SOLVED = Recipe(freeze="backbone")
TOPICS = ("good", "film", "food")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def quiet(_line: str) -> None:
    """Says nothing."""


def several(count: int) -> Labelled:
    """Texts with the labels ``TOPICS``, each of which holds where its word is in the text."""
    rng = np.random.default_rng(3)
    words = [word for word in WORDS[4:] if word not in TOPICS[1:]]
    texts: list[str] = []
    labels: list[Label] = []
    for _ in range(count):
        held = tuple(topic for topic in TOPICS if rng.random() < 0.4)
        texts.append(" ".join(rng.permutation([*rng.choice(words[1:], 3), *held])))
        labels.append(held)
    return Labelled(texts, labels, problem="multi", names=TOPICS)


def test_several_labels_a_text(bert: Path, tmp_path: Path) -> None:
    data = several(200)
    result = fit(bert, data, tmp_path / "m", recipe=SOLVED, log=quiet)
    assert result.labels == TOPICS
    assert result.report.scores.macro_f1 > 0.8  # type: ignore[union-attr]
    assert json.loads((tmp_path / "m" / "config.json").read_text())["problem_type"] == "multi_label_classification"
    with LLM(tmp_path / "m") as llm:
        outputs = llm.classify(list(data.texts), use_tqdm=False)
    exact = np.mean([tuple(output.outputs.labels) == held for output, held in zip(outputs, data.labels)])
    assert exact > 0.7
    assert any(len(output.outputs.labels) == 0 for output in outputs)
    assert any(len(output.outputs.labels) > 1 for output in outputs)


def test_numbers_in_their_own_unit(bert: Path, tmp_path: Path) -> None:
    data = toy(200, 1)
    values: list[Label] = [1000.0 + 50 * (label == "good") + len(str(text).split()) for text, label in data_of(data)]
    result = fit(bert, Labelled(data.texts, values, problem="regression"), tmp_path / "m", recipe=SOLVED, log=quiet)
    assert result.report.scores.r2 > 0.5  # type: ignore[union-attr]
    with LLM(tmp_path / "m") as llm:
        answers = [output.outputs.probs[0] for output in llm.classify(list(data.texts), use_tqdm=False)]
    assert np.corrcoef(answers, np.array(values, float))[0, 1] > 0.8
    assert 1000 < np.mean(answers) < 1060
    # trained on from there, in the same unit
    more = fit(
        tmp_path / "m", Labelled(data.texts, values, problem="regression"), tmp_path / "n", recipe=SOLVED, log=quiet
    )
    assert not more.fresh_head
    assert more.report.scores.r2 > 0.5  # type: ignore[union-attr]


def data_of(data: Labelled) -> zip[tuple[object, object]]:
    return zip(data.texts, data.labels)


def test_pairs_are_told_from_single_texts(bert: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(str(rng.choice(WORDS[4:7])), str(rng.choice([*WORDS[4:10]]))) for _ in range(150)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"a": a, "b": b, "label": "same" if a == b else "other"}) for a, b in rows))
    result = fit(bert, path, tmp_path / "m", text_column="a", pair_column="b", recipe=SOLVED, log=quiet)
    with LLM(tmp_path / "m") as llm:
        same, turned = (
            llm.classify([{"prompt": a, "text_pair": b}], use_tqdm=False)[0].outputs.probs
            for a, b in (("good", "bad"), ("bad", "good"))
        )
    assert result.labels == ("other", "same")
    assert same != turned  # the model reads which text is which


@pytest.mark.parametrize("kind", ["lists", "columns", "numbers", "strings"])
def test_parquet_holds_every_kind_of_label(tmp_path: Path, kind: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "lists": {"label": [["a", "b"], [], ["b"]]},
        "columns": {"a": [1, 0, 0], "b": [True, False, True]},
        "numbers": {"label": [0.5, 1.0, 2.0]},
        "strings": {"label": ["x", "y", "x"]},
    }[kind]
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two", "three"], **columns}), path)
    read = read_labelled(path, label_column=["a", "b"] if kind == "columns" else "label")
    assert read.texts == ["one", "two", "three"]
    if kind in ("lists", "columns"):
        assert (read.problem, read.order) == ("multi", ("a", "b"))
        assert read.targets(("a", "b")).tolist() == [[1, 1], [0, 0], [0, 1]]
    elif kind == "numbers":
        assert (read.problem, read.labels) == ("regression", [0.5, 1.0, 2.0])
    else:
        assert (read.problem, read.labels) == ("single", ["x", "y", "x"])
    with pytest.raises(InputFileError, match=r"no column 'verdict'.*--label-column"):
        read_labelled(path, label_column="verdict")


def test_lists_in_a_table_and_columns_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('text,label,x,y\none,"[""a"",""b""]",1,0\ntwo,[],0,2\n')
    assert read_labelled(path).labels == [("a", "b"), ()]
    with pytest.raises(InputFileError, match=r"line 3: 'y' is '2'; it must be 0 or 1"):
        read_labelled(path, label_column=["x", "y"])
    with pytest.raises(InputFileError, match="a finite number was expected"):
        read_labelled(path, problem="regression")
    with pytest.raises(InputFileError, match="no text has the label 'y'"):
        fit(None, Labelled(["a", "b"], [("x",), ()], problem="multi", names=("x", "y")), tmp_path / "m")


def test_long_texts_are_cut_with_a_word_about_it(bert: Path, tmp_path: Path) -> None:
    data, lines = toy(40, 1), list[str]()
    longer = Labelled([*data.texts[:-1], "the " * 100 + "good"], data.labels)
    result = fit(bert, longer, tmp_path / "m", recipe=SOLVED, log=lines.append)
    assert "1 of 40 texts are longer than 64 tokens and are cut there (--max-length)" in lines
    assert len(result.history) == 1


def test_the_report_is_in_the_folder(bert: Path, tmp_path: Path) -> None:
    result = fit(bert, toy(90, 1, neutral=True), tmp_path / "m", recipe=SOLVED, log=quiet)
    kept = json.loads((tmp_path / "m" / "validation.json").read_text())
    assert kept["measured"] == "5-fold cross-validation"
    assert [line["label"] for line in kept["labels"]] == ["bad", "good", "unsure"]
    assert [sum(row) for row in kept["confusion"]["texts"]] == [30, 30, 30]
    hits = sum(row[i] for i, row in enumerate(kept["confusion"]["texts"]))
    assert kept["accuracy"] == pytest.approx(hits / 90)
    assert any("confusion" in line for line in result.report.lines())


def test_a_result_of_chance_is_warned_of(bert: Path, tmp_path: Path) -> None:
    data = toy(60, 1)
    guess = Labelled(data.texts, np.random.default_rng(5).permutation(data.labels).tolist())
    assert "chance" in fit(bert, guess, tmp_path / "m", recipe=SOLVED, log=quiet).report.warning
    rare = Labelled(data.texts, ["rare" if i % 12 == 0 else "common" for i in range(60)])
    result = fit(bert, rare, tmp_path / "r", recipe=Recipe(freeze="backbone", balanced=False), log=quiet)
    assert "warning" in result.report.lines()[-1]


def test_few_texts_go_through_pairs_only_where_they_help(bert: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = Recipe(contrast=15, contrast_rate=3e-3, batch_size=8, folds=2)
    result = fit(bert, toy(60, 1), tmp_path / "m", recipe=recipe, log=lines.append)
    said = next(line for line in lines if "steps on pairs" in line)
    before, after = map(float, re.findall(r"\d+\.\d+", said))
    assert result.history[0].validation_loss == pytest.approx(min(before, after), abs=1e-4)
    assert ("pairs, all texts" in lines) == (after < before)


def test_an_averaging_layer_is_an_ordinary_layer(bert: Path, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    texts, labels = [], []
    for i in range(80):  # told by the share of a word, which the first token of a random network hardly knows
        words = ["good"] * (6 if i % 2 else 2) + ["bad"] * (2 if i % 2 else 6)
        texts.append(" ".join(np.random.default_rng(i).permutation(words)))
        labels.append("more" if i % 2 else "less")
    result = fit(bert, Labelled(texts, labels), tmp_path / "m", recipe=SOLVED, log=quiet)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert result.report.scores.accuracy == 1.0  # type: ignore[union-attr]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        batch = tokenizer([*texts[:8], "the film"], padding=True, return_tensors="pt")
        theirs = model(**batch).logits.softmax(-1).numpy()
        hidden = model.bert(**batch, output_hidden_states=True).hidden_states
    with LLM(tmp_path / "m") as llm:
        ours = [output.outputs.probs for output in llm.classify([*texts[:8], "the film"], use_tqdm=False)]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    real = batch["attention_mask"][..., None]
    mean = ((hidden[-2] * real).sum(1) / real.sum(1)).numpy()
    cosine = np.corrcoef(np.concatenate([hidden[-1][:, 0].numpy(), mean]))[: len(mean), len(mean) :].diagonal()
    assert cosine.min() > 0.99


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_training_goes_on_to_the_same_bits(bert: Path, tmp_path: Path, stop: int) -> None:
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=1e-3, folds=0)

    def run(output: Path, *, resume: bool = False, until: int = 9) -> Fitted:
        lines: list[str] = []

        def log(line: str) -> None:
            lines.append(line)
            if line.startswith(f"epoch {until}"):
                raise KeyboardInterrupt

        fitted = fit(bert, toy(60, 1), output, recipe=recipe, resume=resume, log=log)
        assert resume == any("going on after epoch" in line for line in lines)
        return fitted

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "m", until=stop + 1 if stop < 3 else 3)
    saved = tmp_path / ".m.training"
    assert saved.is_dir()
    with pytest.raises(JaxpoolError, match="interrupted training of other texts"):
        fit(bert, toy(62, 1), tmp_path / "m", recipe=recipe, resume=True, log=quiet)
    resumed = run(tmp_path / "m", resume=True)
    assert [epoch.number for epoch in resumed.history] == [0, 1, 2, 3]
    assert repr(resumed.history) == repr(whole.history)
    for name in ("model.safetensors", "validation.json"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not saved.exists()


def test_the_public_function(bert: Path, tmp_path: Path) -> None:
    data = toy(40, 1)
    with jaxpool.fit(data.texts, data.labels, base=bert, freeze="backbone") as llm:
        assert llm.labels == ("bad", "good")
        assert llm.report is not None
        assert llm.report.scores.count == 40
    with pytest.raises(ValidationError, match=r"no option 'epoch'.*epochs"):
        jaxpool.fit(data.texts, data.labels, epoch=3)
    with pytest.raises(ValidationError, match=r"texts\[1\] is ''"):
        jaxpool.fit(["a", ""], ["x", "y"])
    with pytest.raises(ValidationError, match=r"labels\[1\] is None"):
        jaxpool.fit(["a", "b"], ["x", None])
    matrix = np.array([[1, 0], [0, 1]] * 10)
    kept = tmp_path / "kept"
    with jaxpool.fit(
        ["the good film", "the bad food"] * 10, matrix, base=bert, names=("film", "food"), output=kept
    ) as llm:
        assert llm.classify("the bad food", use_tqdm=False)[0].outputs.labels == ["food"]
    assert (kept / "validation.json").is_file()


def test_a_file_sorted_by_label_is_sampled_evenly(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_SAMPLE", 30)
    data = toy(90, 1, neutral=True)
    order = np.argsort(np.array(data.labels), kind="stable")
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=1e-6, folds=0)
    result = fit(bert, data.take(order), tmp_path / "m", recipe=recipe, log=quiet)
    assert min(result.history[0].scores.recall) > 0.3  # type: ignore[union-attr]


def test_epochs_are_chosen_over_folds(bert: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=1e-2, folds=2)
    result = fit(bert, toy(48, 1), tmp_path / "m", recipe=recipe, log=lines.append)
    assert result.report.how == "2-fold cross-validation"
    assert result.report.scores.count == 48
    assert result.best == min(result.history, key=lambda epoch: epoch.validation_loss).number
    last = lines[next(i for i, line in enumerate(lines) if "training on all texts" in line) + 1 : -1]
    assert len(last) == result.best  # as many epochs on all texts, none of them judged
    assert all("validation" not in line for line in last)
