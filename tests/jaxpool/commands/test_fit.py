"""``jaxpool fit``: learns, repeats itself, leaves frozen weights alone, writes what transformers reads."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from toy import WIDTH, WORDS, toy, write_bert, write_tokenizer

from jaxpool import LLM
from jaxpool.checkpoints.location import DEFAULT_MODEL
from jaxpool.commands.fit import add_arguments, main
from jaxpool.errors import CheckpointError, EngineError, InputFileError, JaxpoolError, ValidationError
from jaxpool.text.vocabulary import tokenizer_files
from jaxpool.training import fit as to_folder
from jaxpool.training.data import Labelled
from jaxpool.training.fit import Fitted, fit
from jaxpool.training.loop import progress
from jaxpool.training.metrics import Scores
from jaxpool.training.recipe import Recipe, rates

QUICK = Recipe(epochs=8, batch_size=8, learning_rate=3e-3, patience=8)  # epochs are asked for, so all is trained


SEVERAL_BUCKETS = toy(160, 1, words=18)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def fitted(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    output = tmp_path_factory.mktemp("fitted") / "model"
    return fit(bert, SEVERAL_BUCKETS, output, validation=toy(40, 2), recipe=QUICK, log=lambda line: None)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_learns_a_separable_problem_completely(fitted: Fitted) -> None:
    best = fitted.history[fitted.best].scores
    assert isinstance(best, Scores)
    assert fitted.fresh_head
    assert fitted.labels == ("bad", "good")
    assert best.accuracy == best.macro_f1 == 1.0
    held = toy(40, 2)
    outputs = LLM(str(fitted.folder)).classify(list(held.texts), use_tqdm=False)
    assert [output.outputs.label for output in outputs] == list(held.labels)


def test_the_seed_decides_every_bit(bert: Path, fitted: Fitted, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    fit(bert, SEVERAL_BUCKETS, again, validation=toy(40, 2), recipe=QUICK, log=lambda line: None)
    assert (again / "model.safetensors").read_bytes() == (fitted.folder / "model.safetensors").read_bytes()
    recipe = Recipe(epochs=1, batch_size=8, seed=1)
    fit(bert, SEVERAL_BUCKETS, other, validation=toy(40, 2), recipe=recipe, log=lambda line: None)
    assert not np.array_equal(weights(other)["classifier.weight"], weights(again)["classifier.weight"])


@pytest.mark.parametrize("freeze", ["backbone", "embeddings"])
def test_frozen_weights_stay_bitwise_and_the_others_move(fitted: Fitted, tmp_path: Path, freeze: str) -> None:
    recipe = Recipe(freeze=freeze, epochs=1, batch_size=8, learning_rate=3e-3, weight_decay=0.1, folds=0)  # type: ignore[arg-type]
    result = fit(fitted.folder, inverted(toy(80, 6)), tmp_path / "m", recipe=recipe, log=lambda line: None)
    assert result.best == (freeze != "backbone")
    before, after = weights(fitted.folder), weights(tmp_path / "m")
    equal = {name for name in before if np.array_equal(before[name], after[name])}
    if freeze == "backbone":
        assert before.keys() - equal == {"classifier.weight", "classifier.bias"}
    else:
        assert equal == {"bert.embeddings.word_embeddings.weight"}


def inverted(data: Labelled) -> Labelled:
    return Labelled(data.texts, [{"good": "bad", "bad": "good"}[str(label)] for label in data.labels])


def test_a_new_head_is_trained_on_a_frozen_backbone(fitted: Fitted, tmp_path: Path) -> None:
    data = toy(100, 1)
    renamed = Labelled(data.texts, [{"good": "1", "bad": "10"}[label] for label in data.labels])
    recipe = Recipe(freeze="backbone")
    result = fit(fitted.folder, renamed, tmp_path / "m", recipe=recipe, log=lambda line: None)
    assert result.fresh_head
    assert result.labels == ("1", "10")
    assert result.best == 0
    assert result.report.how == "5-fold cross-validation"
    assert result.report.scores.count == 100  # every text was held out once
    assert result.report.scores.accuracy == 1.0  # type: ignore[union-attr]
    outputs = LLM(str(result.folder)).classify(list(data.texts), use_tqdm=False)
    right = [(output.outputs.label == "1") == (label == "good") for output, label in zip(outputs, data.labels)]
    assert np.mean(right) > 0.95


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2"])
def test_transformers_loads_it_with_equal_logits(bert: Path, tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    base = bert
    if kind != "bert":
        base = tmp_path / "base"
        torch.manual_seed(0)
        common = {"vocab_size": len(WORDS), "pad_token_id": 0}
        config = (
            transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **common)
            if kind == "gpt2"
            else transformers.Qwen2Config(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                **common,
            )
        )
        transformers.AutoModel.from_config(config).save_pretrained(base)
        write_tokenizer(base)
    data = toy(60, 4, neutral=True)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=1e-3, folds=0)
    fit(base, data, tmp_path / "m", recipe=recipe, log=lambda line: None)
    texts = list(data.texts[:9])
    ours = LLM(str(tmp_path / "m"), dtype="float32").classify(texts, use_tqdm=False)
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == {0: "bad", 1: "good", 2: "unsure"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        theirs = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1).numpy()
    np.testing.assert_allclose([output.outputs.probs for output in ours], theirs, atol=1e-4)
    assert np.ptp(theirs) > 1e-3  # or else equality would say nothing


def test_a_head_with_the_same_labels_is_trained_on(fitted: Fitted, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=1e-9)
    more = fit(fitted.folder, toy(60, 5), tmp_path / "more", recipe=recipe, log=lambda line: None)
    assert not more.fresh_head
    assert more.history[0].scores.accuracy == 1.0  # type: ignore[union-attr]
    wider = fit(fitted.folder, toy(60, 5, neutral=True), tmp_path / "w", recipe=recipe, log=lambda line: None)
    assert wider.fresh_head
    assert weights(wider.folder)["classifier.weight"].shape == (3, WIDTH)


def test_stops_early_and_keeps_the_best_weights(fitted: Fitted, tmp_path: Path) -> None:
    lines: list[str] = []
    # Training on inverted labels makes a perfect model worse with every epoch.
    wrong = inverted(toy(80, 6))
    recipe = Recipe(epochs=20, batch_size=8, learning_rate=2e-4, patience=2, warmup=0.0)
    result = fit(fitted.folder, wrong, tmp_path / "m", validation=toy(40, 7), recipe=recipe, log=lines.append)
    assert len(result.history) - 1 == progress(result.history) + 2 < 20
    assert result.best == min(result.history, key=lambda epoch: epoch.validation_loss).number == 0
    assert any("stopped" in line for line in lines)
    outputs = LLM(str(result.folder)).classify(list(toy(40, 7).texts), use_tqdm=False)
    right = np.mean([output.outputs.label == label for output, label in zip(outputs, toy(40, 7).labels)])
    assert right == pytest.approx(result.report.scores.accuracy)  # type: ignore[union-attr]


@pytest.mark.parametrize(("balanced", "low", "high"), [(False, 0.05, 0.15), (True, 0.45, 0.55)])
def test_balanced_weights_count_labels_alike(
    bert: Path, tmp_path: Path, balanced: bool, low: float, high: float
) -> None:
    # One and the same text, one time in ten labelled "rare": the probability learned is the weight of the label.
    data = Labelled(["the film was so"] * 40, ["common"] * 36 + ["rare"] * 4)
    recipe = Recipe(freeze="backbone", balanced=balanced)
    fit(bert, data, tmp_path / "m", validation=data, recipe=recipe, log=lambda line: None)
    (output,) = LLM(str(tmp_path / "m")).classify(["the film was so"], use_tqdm=False)
    assert low < output.outputs.probs[1] < high


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    for schedule in ("linear", "cosine"):
        course = rates(Recipe(learning_rate=1.0, warmup=0.2, schedule=schedule), 100)  # type: ignore[arg-type]
        assert len(course) == 100
        assert course.max() == course[20] == 1.0
        assert np.all(np.diff(course[:21]) > 0)
        assert np.all(np.diff(course[20:]) < 0)
        assert 0 < course[-1] < 0.02


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(arguments))


def test_command_line_trains_from_files_and_prints_figures(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, held = toy(60, 1), toy(20, 2)
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("review", "verdict"), *zip(data.texts, data.labels)])
    with (tmp_path / "held.jsonl").open("w") as file:
        file.writelines(json.dumps({"review": t, "verdict": v}) + "\n" for t, v in zip(held.texts, held.labels))
    files = [str(tmp_path / name) for name in ("train.csv", "out")]
    options = ["--model", str(bert), "--validation", str(tmp_path / "held.jsonl"), "--epochs", "1", "--batch-size", "8"]
    columns = ["--text-column", "review", "--label-column", "verdict"]
    assert command(*files, *options, *columns) == 0
    printed = capsys.readouterr().out
    assert "training on 60 texts (30 bad, 30 good), validation: 20 texts held out (10 bad, 10 good)" in printed
    assert "macro-F1" in printed
    assert "confusion" in printed
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["label2id"] == {"bad": 0, "good": 1}
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    with pytest.raises(ValidationError, match="exists already"):
        command(*files, *options, *columns)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a", "label": "x"}'], "one label only"),
        (
            ['{"text": "a", "kind": "x"}'],
            "no field 'label'; .* choose with --label-column$",
        ),
        (['{"body": "a", "label": "x"}'], "no field 'text'; .* choose with --text-column$"),
        (['{"text": "", "label": "x"}'], "line 1: 'text' is ''"),
        (['{"text": "a", "label": "x"}', '{"text": "b", "label": null}'], "line 2: 'label' is None"),
        ([], "no labelled texts"),
        ([json.dumps({"text": "a", "label": f"l{i}"}) for i in range(9)], "9 different labels in 9 rows"),
        ([json.dumps({"text": "a", "label": f"l{i // 3}"}) for i in range(7)], "single row labelled 'l2'"),
    ],
)
def test_bad_training_files(bert: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputFileError, match=message):
        fit(bert, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"label 'unsure' \(3 rows\).*bad, good"):
        fit(bert, toy(20, 1), tmp_path / "out", validation=toy(9, 1, neutral=True))
    with pytest.raises(InputFileError, match="does not exist"):
        fit(bert, tmp_path / "none.csv", tmp_path / "out")
    with pytest.raises(CheckpointError, match="no folder"):
        fit(tmp_path / "nothing", toy(20, 1), tmp_path / "out", log=lambda line: None)
    (tmp_path / "mute").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bert / name, tmp_path / "mute" / name)
    with pytest.raises(CheckpointError, match="no tokenizer files"):
        fit(tmp_path / "mute", toy(20, 1), tmp_path / "out", log=lambda line: None)


def test_divergence_is_an_error_and_leaves_nothing(bert: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=1e30, folds=0)
    with pytest.raises(EngineError, match=r"diverged.*Lower the learning rate"):
        fit(bert, toy(40, 1), tmp_path / "out", recipe=recipe, log=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_the_destination_is_tried_before_anything_slow(bert: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "file").touch()
    with pytest.raises(JaxpoolError, match=r"cannot write .*: Not a directory"):
        fit(bert, toy(20, 1), tmp_path / "file" / "out", log=lines.append)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValidationError, match="is a link"):
        fit(bert, toy(20, 1), tmp_path / "link", log=lines.append)
    assert not lines, "nothing was read yet"


def test_a_disk_that_fills_says_so_and_leaves_nothing(fitted: Fitted, tmp_path: Path) -> None:
    """The library that writes the weights has errors of its own."""
    resource = pytest.importorskip("resource")
    with pytest.MonkeyPatch.context() as patch:
        recipe = Recipe(epochs=1, batch_size=8, freeze="backbone")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        save = to_folder.save

        def save_with_little_room(*arguments: object) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, hard))
            try:
                save(*arguments)  # type: ignore[arg-type]
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        patch.setattr(to_folder, "save", save_with_little_room)
        with pytest.raises(JaxpoolError, match=r"cannot write .*out: .*File too large.*nothing was left behind"):
            fit(fitted.folder, toy(20, 1), tmp_path / "out", recipe=recipe, log=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_code_is_not_copied_into_a_model(tmp_path: Path) -> None:
    names = (
        "tokenizer.json",
        "vocab.txt",
        "vocabulary.py",
        "tokenizer_helper.py",
        "chat_template.jinja",
        "config.json",
    )
    for name in names:
        (tmp_path / name).touch()
    found = [path.name for path in tokenizer_files(tmp_path)]
    assert found == ["chat_template.jinja", "tokenizer.json", "vocab.txt"]
    assert "vocabulary.py" not in {path.name for path in tokenizer_files(DEFAULT_MODEL)}


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("learning_rate", -1.0), ("warmup", 1.0), ("label_smoothing", 1.0), ("freeze", "head")],
)
def test_recipe_refuses_nonsense(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Recipe(**{name: value})  # type: ignore[arg-type]
