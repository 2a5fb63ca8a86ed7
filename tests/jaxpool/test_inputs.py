"""What people pass to ``LLM``: their containers, their dicts, their empty texts, and their misspellings."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import jaxpool
from jaxpool import LLM, ConfigError, ValidationError
from jaxpool.checkpoints.location import read_config
from jaxpool.commands.main import main
from jaxpool.engine_args import ARGUMENTS, IGNORED, REFUSED, EngineArgs
from jaxpool.outputs import ClassificationOutput

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "data" / "models"
BERT = str(MODELS / "bert-cls")
TEXTS = ["good", "bad", ""]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(BERT, dtype="float32") as llm:
        yield llm


def tokens(llm: LLM, prompts: Any) -> list[list[int]]:
    return [output.prompt_token_ids for output in llm.classify(prompts, use_tqdm=False)]


@pytest.mark.parametrize(
    "make",
    [
        tuple,
        iter,
        lambda texts: (text for text in texts),
        lambda texts: dict.fromkeys(texts).keys(),
        lambda texts: {"a": texts}["a"],
        np.array,
        lambda texts: np.array(texts, dtype=object),
        pd.Series,
        lambda texts: pd.Series(texts, index=[7, 8, 9])[:],
        lambda texts: pd.DataFrame({"id": [1, 2, 3], "body": texts})["body"],
        lambda texts: pd.DataFrame({"id": [1, 2, 3], "text": texts}),
        pa.array,
        lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
        lambda texts: pa.table({"id": [1, 2, 3], "text": texts}),
        lambda texts: [{"text": text} for text in texts],
        lambda texts: [{"text": text, "text_pair": None} for text in texts],
    ],
)
def test_any_ordered_container_of_texts(llm: LLM, make: Any) -> None:
    assert tokens(llm, make(TEXTS)) == tokens(llm, TEXTS)


def test_pairs_and_token_ids(llm: LLM) -> None:
    pair = tokens(llm, [{"prompt": "good", "text_pair": "bad"}])
    assert tokens(llm, {"text": "good", "text_pair": "bad"}) == pair
    assert tokens(llm, pd.DataFrame({"text": ["good"], "text_pair": ["bad"]})) == pair
    assert tokens(llm, np.array([5, 6, 7])) == tokens(llm, [5, 6, 7]) == [[5, 6, 7]]
    assert tokens(llm, np.array([[5, 6], [7, 8]])) == [[5, 6], [7, 8]]
    assert tokens(llm, pa.array([[5, 6], [7]])) == [[5, 6], [7]]


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        ({"good", "bad"}, TypeError, "A set of prompts has no order"),
        (5, TypeError, "object of type 'int' has no len"),
        (pd.DataFrame({"body": ["x"]}), ValidationError, r"no column 'text'; its columns are body\. Pass the one"),
        (pd.Series(["x", None]), TypeError, "Prompt should be a string"),
        ({"text": "a", "prompt": "b"}, ValidationError, "both 'prompt' and 'text'"),
        (iter([]), ValidationError, "at least one prompt"),
    ],
)
def test_what_is_no_prompt(llm: LLM, prompts: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        llm.classify(prompts, use_tqdm=False)


def test_an_empty_text_is_the_same_everywhere(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Library, command, pipe and table agree (and so does the server, whose recorded answers have an empty text)."""
    [want] = llm.classify("", use_tqdm=False)
    (tmp_path / "a.csv").write_text('text,n\n"",1\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    for arguments in ([""], [], ["--input", str(tmp_path / "a.csv")]):
        assert main(["classify", "--model", BERT, "--dtype", "float32", *arguments]) == 0
        [got] = map(json.loads, capsys.readouterr().out.splitlines())
        assert list(got["probs"].values()) == pytest.approx(want.outputs.probs, abs=1e-6)
    gpt2 = str(MODELS / "gpt2-cls")
    with LLM(gpt2) as other, pytest.raises(ValidationError, match="cannot be empty"):
        other.classify("", use_tqdm=False)
    assert main(["classify", "--model", gpt2, ""]) == 1
    assert "text 1: the text is empty, and this model's tokenizer makes no token of it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"hf_overrides": {"num_label": 3}},
            ConfigError,
            "num_label=3, which nothing reads; did you mean 'num_labels'",
        ),
        ({"revision": "main"}, ValidationError, "has no revisions"),
        ({"model": None, "revision": "main"}, ValidationError, "the embedded model has no revisions"),
        ({"tokenizer_revision": "main"}, ValidationError, "needs a tokenizer"),
        ({"modle": BERT}, TypeError, r"argument 'modle'; it takes .* Did you mean 'model'\?$"),
    ],
)
def test_what_nothing_would_read_is_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LLM(**{"model": BERT, **options})


def test_overrides_of_other_names_still_arrive(tmp_path: Path) -> None:
    """Names that transformers' class takes in another form, and a part of a nested configuration."""
    with pytest.raises(ConfigError, match=r"text_config\.hiden_size=8, which nothing reads; did you mean 'hidden"):
        read_config(write_gemma(tmp_path), {"text_config": {"hiden_size": 8}})
    with pytest.raises(ConfigError, match=r"rope_theta=5\.0, which changes nothing"):  # rope_parameters has one
        read_config(MODELS / "qwen2-cls", {"rope_theta": 5.0})
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    assert read_config(tmp_path, {"rope_theta": 5.0}).rope_parameters["rope_theta"] == 5.0


def write_gemma(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {"hidden_size": 32}}))
    return folder


def test_what_a_notebook_shows(llm: LLM) -> None:
    pretty = pytest.importorskip("IPython.lib.pretty").pretty
    [output] = llm.classify("good", use_tqdm=False)
    probs = ", ".join(f"{value:.4g}" for value in output.outputs.probs)
    shown = f"ClassificationOutput(label={output.outputs.label!r}, probs=[{probs}])"
    assert pretty(output.outputs) == shown
    assert shown in pretty([output])
    count = llm.engine.programs.mesh.devices.size
    device = "cpu" if count == 1 else f"{count} x cpu"
    assert repr(llm) == (
        f"LLM('bert-cls', task='classify', labels=[negative, neutral, positive], device={device!r}, dtype='float32')"
    )


def test_public_names_and_types() -> None:
    assert dir(jaxpool) == sorted(jaxpool.__all__)
    assert get_type_hints(ClassificationOutput)["label"] is str
    assert set(EngineArgs.__annotations__) == ARGUMENTS.keys() | IGNORED.keys() | REFUSED.keys()


def test_misspelt_arguments_fail_in_a_type_checker(tmp_path: Path) -> None:
    """And the right ones do not: vLLM's other engine arguments, every kind of prompts."""
    right = """
from jaxpool import LLM
llm = LLM("x", max_model_len=8, gpu_memory_utilization=0.5, enforce_eager=True)
label: str = llm.classify(text for text in ["a"])[0].outputs.label
llm.classify({"prompt": "a"}, use_tqdm=False)
"""
    wrong = ["LLM(modle='x')", "LLM('x', max_model_length=8)", "llm.classify('a', use_tqmd=False)", "llm.classify(5)"]
    (tmp_path / "snippet.py").write_text(right + "\n".join(wrong) + "\n")
    # only what has the signatures is read; the rest of the source is checked with the rest of the source
    rooms = ("text", "text.prompts", "text.windows", "zero_shot", "zero_shot.options")
    public = [
        "jaxpool",
        *(f"jaxpool.{name}" for name in ("llm", *rooms, "params", "outputs", "engine_args", "vllm_args")),
    ]
    settings = "[mypy]\nfollow_imports = skip\nignore_missing_imports = True\n"
    settings += "".join(f"[mypy-{name}]\nfollow_imports = silent\n" for name in public)
    (tmp_path / "mypy.ini").write_text(settings)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "snippet.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    errors = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    first = right.count("\n") + 1
    assert errors == [str(first + i) for i in range(len(wrong))], done.stdout + done.stderr


def test_extras_name_what_is_used() -> None:
    """Every package of an extra for users is imported somewhere, under a name that is written here if it is another."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {
        "opentelemetry-sdk": "opentelemetry.sdk",
        "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
        "prometheus-client": "prometheus_client",
        "scikit-learn": "sklearn",
    }
    # of these JAX and Jupyter are the users
    indirect = {"jax", "jupytext", "nbclient", "ipykernel", "ipywidgets"}
    sources = [
        path for room in ("jaxpool", "conversions", "serving", "notebooks") for path in (ROOT / room).rglob("*.py")
    ]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for extra, packages in extras.items():
        for package in packages if extra != "test" else []:
            name = package.split(";")[0].split(">")[0].split("=")[0].split("[")[0].strip()
            module = imported.get(name, name)
            assert name in indirect or f"import {module}" in code or f"from {module}" in code, (extra, name)
