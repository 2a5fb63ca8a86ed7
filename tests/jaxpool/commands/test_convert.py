"""``jaxpool convert``: a store that opens without flags and answers the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import peft_files
import pytest

from jaxpool import LLM
from jaxpool.commands import convert
from jaxpool.commands.main import main
from jaxpool.errors import CheckpointError, ValidationError

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
TEXTS = ["A first text.", "And a second one, somewhat longer than the first."]
FROM_TOKENS = {"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}


def logits(model: Path, **options: object) -> np.ndarray:
    with LLM(model, **options) as llm:  # type: ignore[arg-type]
        return np.array([one.outputs.probs for one in llm.classify(TEXTS, use_tqdm=False)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert-cls", {}),
        ("qwen2-cls", {"dtype": "bfloat16"}),
        ("llama-causal", {"convert": "classify", "hf_overrides": FROM_TOKENS}),
    ],
)
def test_a_store_needs_no_flags(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    words = [json.dumps(word) if isinstance(word, dict) else str(word) for word in words]
    assert main(["convert", str(MODELS / name), str(tmp_path / "store"), *words]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with LLM(MODELS / name, **options) as original, LLM(tmp_path / "store") as store:  # type: ignore[arg-type]
        assert store.labels == original.labels
        assert store.engine.spec.dtype == original.engine.spec.dtype
        assert store.engine.spec.max_length == original.engine.spec.max_length
        for one, other in zip(*(llm.classify(TEXTS, use_tqdm=False) for llm in (original, store)), strict=True):
            assert one.outputs == other.outputs


def test_an_existing_target_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "precious").touch()
    assert main(["convert", str(MODELS / "bert-cls"), str(target)]) == 1
    assert f"{target} exists already" in capsys.readouterr().err
    assert [path.name for path in target.iterdir()] == ["precious"]
    assert main(["convert", str(MODELS / "bert-cls"), str(target), "--force"]) == 1
    assert "is no store of jaxpool's, which is all that --force replaces" in capsys.readouterr().err
    (target / "precious").unlink()
    assert main(["convert", str(MODELS / "bert-cls"), str(target)]) == 0
    (target / "config.json").write_text("{}")
    assert main(["convert", str(MODELS / "bert-cls"), str(target)]) == 1
    assert "replace this store with --force" in capsys.readouterr().err
    (target / "thesis.docx").touch()
    assert main(["convert", str(MODELS / "bert-cls"), str(target), "--force"]) == 1
    assert "also holds thesis.docx" in capsys.readouterr().err
    (target / "thesis.docx").unlink()
    assert main(["convert", str(MODELS / "bert-cls"), str(target), "--force"]) == 0
    assert (target / "config.json").read_text() != "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert main(["convert", str(target), str(tmp_path / "again")]) == 1
    assert "is a converted store already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("work/model", "is the source"),
        ("work/link", "is a link"),
        ("work/gone", "is a link"),
        ("work", "or holds it"),
        ("work/model/..", "or holds it"),
        ("work/model/config.json", "is a file"),
        ("here", "is the working directory"),
        (".", "is the working directory"),
        ("..", "or holds it"),
    ],
)
def test_force_never_takes_anything_but_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    """Not the source or what holds it, not a file, not what a link points to, not the folder we are in."""
    (tmp_path / "here").mkdir()
    source = shutil.copytree(MODELS / "bert-cls", tmp_path / "work" / "model")
    (tmp_path / "work" / "jaxpool.json").write_text("{}")  # as if it were a store
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "jaxpool.json").write_text("{}")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "store")
    (tmp_path / "work" / "gone").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path / "here")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.exists())
    where = target if target.startswith(".") else str(tmp_path / target)
    assert main(["convert", str(source), where, "--force"]) == 1
    assert words in capsys.readouterr().err
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.exists()) == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_replacement_keeps_the_old_one(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").touch()

    def fail() -> None:
        with convert._replacing(target) as new:
            new.mkdir()
            (new / "half").touch()
            raise failure

    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert (target / "old").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert main(["convert", str(MODELS / "bert-cls"), str(tmp_path / "store")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert "cannot be written" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_a_head_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(MODELS / "llama-causal"), str(tmp_path / "store"), "--convert", "classify"]) == 1
    assert "has no classification head" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "architecture"),
    [
        ("bert-cls", [], "BertForSequenceClassification"),
        ("qwen2-cls", ["--dtype", "bfloat16"], "Qwen2ForSequenceClassification"),
        (
            "llama-causal",
            ["--convert", "classify", "--hf-overrides", json.dumps(FROM_TOKENS)],
            "LlamaForSequenceClassification",
        ),
    ],
)
def test_the_way_back_answers_as_the_store_does(
    tmp_path: Path, name: str, options: list[str], architecture: str
) -> None:
    store, back = tmp_path / "store", tmp_path / "back"
    assert main(["convert", str(MODELS / name), str(store), *options]) == 0
    assert main(["convert", str(store), str(back), "--to", "safetensors"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "store"]
    config = json.loads((back / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert "classifier_from_token" not in config
    with LLM(store) as one, LLM(back) as other:
        assert one.labels == other.labels
        for first, second in zip(*(llm.classify(TEXTS, use_tqdm=False) for llm in (one, other)), strict=True):
            assert first.outputs == second.outputs
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(back, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = model.state_dict()
    if name == "bert-cls":
        original = transformers.AutoModelForSequenceClassification.from_pretrained(MODELS / name).state_dict()
        assert all(torch.equal(again[key], value) for key, value in original.items())


def test_the_way_back_needs_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(MODELS / "bert-cls"), str(tmp_path / "back"), "--to", "safetensors"]) == 1
    assert "is no converted store" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_converted_into_the_store(tmp_path: Path) -> None:
    """The store has the merged weights and the adapter's labels, and so has the checkpoint written back from it."""
    base, store, back = MODELS / "bert-cls", tmp_path / "store", tmp_path / "back"
    adapter = peft_files.of_bert(tmp_path / "adapter", base, 1, 2)
    (adapter / "config.json").write_text('{"id2label": {"0": "ham", "1": "spam"}}')
    assert main(["convert", str(base), str(store), "--lora", str(adapter)]) == 0
    assert main(["convert", str(store), str(back), "--to", "safetensors"]) == 0
    merged = logits(base, merge_lora=adapter)
    assert merged.shape == (2, 2)
    np.testing.assert_allclose(logits(store), merged, atol=1e-6)
    np.testing.assert_allclose(logits(back), merged, atol=1e-6)
    assert json.loads((back / "config.json").read_text())["id2label"] == {"0": "ham", "1": "spam"}
    with pytest.raises(ValidationError, match="merged before a store is written"):
        LLM(store, merge_lora=adapter)
