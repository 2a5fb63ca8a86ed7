"""Labels of a caller's own on the command line: the same as from Python, texts in a file or given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jaxpool import LLM
from jaxpool.commands.main import main
from tests.support.tiny import save

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
TEXTS = ["good tea", "a bug", "we paid twice"]
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
QUESTION: dict[str, Any] = {
    "candidate_labels": ["praise", "bug, or worse"],
    "prompt": "{text} is\n",
    "examples": [("Thanks!", "praise"), ("It broke", "bug, or worse")],
    "calibrate": True,
    "length_normalize": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer

    folder, source = tmp_path_factory.mktemp("language"), MODELS / "llama-causal"
    vocab = len(AutoTokenizer.from_pretrained(source))
    save(folder, "llama", head="causal", vocab_size=vocab, num_key_value_heads=2, max_position_embeddings=64, **SIZES)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "shots.csv").write_text('text,label\nThanks!,praise\nIt broke,"bug, or worse"\n')
    (tmp_path / "prompt.txt").write_text(QUESTION["prompt"] + "\n")
    return [
        *("--candidate-labels", json.dumps(QUESTION["candidate_labels"])),
        *("--prompt", f"@{tmp_path / 'prompt.txt'}", "--examples", str(tmp_path / "shots.csv")),
        *("--calibrate", "--length-normalize"),
    ]


def expected(folder: Path, **question: Any) -> list[Any]:
    with LLM(folder) as llm:
        return [one.outputs for one in llm.classify(TEXTS, use_tqdm=False, **question)]


def test_texts_that_are_given(folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(folder), "--quiet"]
    assert main(["classify", *TEXTS, *model, *options]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, output in zip(shown, expected(folder, **QUESTION), strict=True):
        assert row["label"] == output.label
        assert list(row["probs"]) == QUESTION["candidate_labels"]
        assert list(row["probs"].values()) == pytest.approx(output.probs, abs=1e-6)
    several = ["--candidate-labels", "praise, bug", "--multi-label", "--answers", "nay, yea"]
    several += ["--prompt", "{text}{label}"]
    assert main(["classify", *TEXTS, *model, *several]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked: dict[str, Any] = {"prompt": "{text}{label}", "multi_label": True, "answers": ("nay", "yea")}
    for row, output in zip(shown, expected(folder, candidate_labels=["praise", "bug"], **asked), strict=True):
        assert row["labels"] == output.labels
        assert list(row["probs"].values()) == pytest.approx(output.probs, abs=1e-6)
    assert main(["classify", *TEXTS, *model]) == 1
    assert "no labels of its own" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_batch_job(folder: Path, options: list[str], tmp_path: Path, kind: str) -> None:
    """A text that does not fit is rejected; the others are labelled as from Python."""
    rows = [*TEXTS[:2], "word " * 90, TEXTS[2]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    command = ["batch", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--model", str(folder), "--quiet"]
    command += ["--output-format", kind, *options]
    assert main([*command, "--dry-run"]) == 0
    assert main(command) == 0
    [part] = (tmp_path / "out" / "parts").glob(f"*.{kind}")
    found = (
        pq.read_table(part).to_pylist()
        if kind == "parquet"
        else [json.loads(line) for line in part.read_text().splitlines()]
    )
    assert [row["text"] for row in found] == TEXTS
    for row, output in zip(found, expected(folder, **QUESTION), strict=True):
        assert row["label"] == output.label
        assert list(row["probs"]) == QUESTION["candidate_labels"]
        assert list(row["probs"].values()) == pytest.approx(output.probs, abs=1e-6)
    assert any("tokens" in path.read_text() for path in (tmp_path / "out" / "rejected").iterdir())
    other = [*command[: -len(options)], "--candidate-labels", "praise, bug", "--prompt", QUESTION["prompt"]]
    assert main(other) == 1  # another job


def test_a_batch_job_of_an_embedder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    embedder = str(MODELS / "bert-cls")
    command = ["batch", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out"), "--model", embedder, "--quiet"]
    overrides = ["--candidate-labels", "praise, bug", "--output-format", "jsonl"]
    assert main([*command, *overrides]) == 1  # it has labels of its own and judges no others
    from jaxpool.batch.job import Settings
    from jaxpool.batch.labelling import Labeller

    settings = Settings(question={"candidate_labels": ["praise", "bug"]})
    with LLM(embedder, convert="embed") as llm:
        labeller = Labeller(llm, settings)
        labelled = labeller.compute(labeller.prepare([TEXTS]))
        outputs = llm.classify(TEXTS, candidate_labels=["praise", "bug"], use_tqdm=False)
    for row, output in zip(labelled.scores, outputs, strict=True):
        assert row.tolist() == pytest.approx(output.outputs.probs, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "{text}"], "need --candidate-labels"),
        (["--examples", "missing.csv", "--candidate-labels", "a"], "missing.csv"),
        (["--examples", "wrong.csv", "--candidate-labels", "a"], "label"),
        (["--prompt", "@missing.txt", "--candidate-labels", "a"], "missing.txt"),
        (["--candidate-labels", "[1"], "no JSON array"),
        (["--candidate-labels", "a", "--answers", "yes"], "two texts with a comma"),
    ],
)
def test_wrong_options_end_with_a_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.csv").write_text("text,kind\na,b\n")
    for command in (["classify", "text"], ["batch", "wrong.csv", "--output", "out"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, *words])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_what_does_not_go_together() -> None:
    from jaxpool.batch.job import Settings

    for other in ({"pair_column": "b"}, {"long_text": "window"}):
        with pytest.raises(ValueError, match="does not go with candidate_labels"):
            Settings(question={"candidate_labels": ["a"]}, **other)  # type: ignore[arg-type]
