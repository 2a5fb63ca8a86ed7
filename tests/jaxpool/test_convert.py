"""``jaxpool convert``: a store that opens without flags and answers the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxpool import LLM, convert
from jaxpool.cli import main
from jaxpool.errors import CheckpointError

MODELS = Path(__file__).resolve().parents[1] / "data" / "models"
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
    assert main(["convert", str(MODELS / "bert-cls"), str(target), "--force"]) == 0
    assert not (target / "precious").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert main(["convert", str(target), str(tmp_path / "again")]) == 1
    assert "is a converted store already" in capsys.readouterr().err


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
