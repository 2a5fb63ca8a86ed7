"""``jaxpool serve`` with the options of ``vllm serve``: nothing that would change an answer passes unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxpool import LLM, ValidationError
from jaxpool.commands.main import _parse
from jaxpool.commands.options import model_arguments
from jaxpool.commands.vllm_options import SERVER, spelled, without_effect
from jaxpool.engine_args import ARGUMENTS, IGNORED, REFUSED, with_defaults
from jaxpool_serving.command import MODEL, _models, _pooler, served_models


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["--hf_overrides", '{"a_b": 1}'], ["--hf-overrides", '{"a_b": 1}']),
        (["--max_model_len=8", "a_b", "-tp", "2"], ["--max-model-len=8", "a_b", "--tensor-parallel-size", "2"]),
        (["--pooler-config.use_activation", "false"], ['--pooler-config={"use_activation": false}']),
        (
            [
                "--pooler_config.task=embed",
                "--x",
                "--pooler-config",
                '{"dimensions": 2}',
                "y",
                "--pooler-config.b.c",
                "1",
            ],
            ["--x", "y", '--pooler-config={"dimensions": 2, "task": "embed", "b": {"c": 1}}'],
        ),
        (["a", "--", "--a_b"], ["a", "--", "--a_b"]),
    ],
)
def test_spellings(words: list[str], ours: list[str]) -> None:
    assert spelled(words) == ours


def test_a_command_line_of_vllms() -> None:
    line = (
        "serve ORG/NAME --runner pooling --dtype half --max_model_len 512 --no-enable-prefix-caching --seed 0 "
        "--kv-cache-memory-bytes 1.5g "
        "--gpu-memory-utilization 0.3 --enforce-eager --tokenizer other --pooler-config.use_activation False "
        "--disable-uvicorn-access-log --cpu-offload-gb 0 --allowed-media-domains a b --trust-remote-code"
    )
    args = _parse(line.split())
    assert _models(args) == ["ORG/NAME"]
    assert _pooler(args).use_activation is False
    given = model_arguments(args, MODEL)
    expected = {"dtype": "half", "max_model_len": 512, "tokenizer": "other", "trust_remote_code": True}
    expected |= {"enable_prefix_caching": False, "kv_cache_memory_bytes": 1_500_000_000}
    assert {name: given[name] for name in expected} == expected
    ignored = without_effect(args)
    assert set(ignored) == {
        *("--seed", "--gpu-memory-utilization", "--enforce-eager"),
        *("--disable-uvicorn-access-log", "--cpu-offload-gb", "--allowed-media-domains"),
    }
    assert all(ignored.values())


@pytest.mark.parametrize(
    "words",
    [
        ["--quantization", "fp8"],
        ["-q", "awq"],
        ["--load-format", "dummy"],
        ["--root-path", "/x"],
        ["--speculative-config.method", "ngram"],
    ],
)
def test_what_would_change_answers_is_refused(words: list[str]) -> None:
    with pytest.raises(NotImplementedError, match="is not possible in jaxpool"):
        without_effect(_parse(["serve", *words]))


def test_the_model_is_said_once() -> None:
    with pytest.raises(ValidationError, match="Say the model once"):
        _models(_parse(["serve", "a", "--model", "b"]))


def test_every_engine_argument_is_known(caplog: pytest.LogCaptureFixture) -> None:
    """254 of vLLM 0.32, which are all but the model and two of its own processes', and what older ones had."""
    assert len(IGNORED | REFUSED) > 230
    assert not IGNORED.keys() & SERVER.keys()
    harmless: Any = {name: values[0] for name, (values, _) in REFUSED.items() if values}
    with caplog.at_level("INFO", "jaxpool"):
        assert with_defaults({**dict.fromkeys(IGNORED, 1), **harmless}) == {n: a.default for n, a in ARGUMENTS.items()}
    assert caplog.text.count("accepted without effect") == 1
    assert "enforce_eager (XLA compiles" in caplog.text
    for name, (_, why) in REFUSED.items():
        with pytest.raises(NotImplementedError, match=f"^{name}="):
            with_defaults({name: "another"})  # type: ignore[misc]
        assert why


def test_llm_refuses_them_by_name() -> None:
    with pytest.raises(NotImplementedError, match="load_format='dummy' is not possible in jaxpool: the weights"):
        LLM(load_format="dummy")
    assert json.loads(spelled(["--a.b", "x"])[0].removeprefix("--a=")) == {"b": "x"}


CONFIG = """
model: org/name
port: 9000
max_model_len: 64
served-model-name: [one, two]
api_key: [a, b]
trust-request-chat-template: true
enforce-eager: true
compressed_bodies: false
request-timeout: null
pooler-config: {use_activation: false}
allowed-origins: [x, y]
"""


def test_options_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    args = _parse(["serve", "--config", str(path), "--max-model-len", "32"])
    assert served_models(args) == ({"one": "org/name"}, ("two",))
    assert (args.port, args.max_model_len, args.api_key, args.allowed_origins) == (9000, 32, ["a", "b"], ("x", "y"))
    assert (args.trust_request_chat_template, args.compressed_bodies, args.request_timeout) == (True, False, None)
    assert _pooler(args).use_activation is False
    assert set(without_effect(args)) == {"--enforce-eager"}
    args = _parse(
        ["serve", "other", f"--config={path}", "--served_model_name", "mine", "--pooler-config.task", "embed"]
    )
    assert served_models(args) == ({"mine": "other"}, ())
    assert (_pooler(args).task, _pooler(args).use_activation) == ("embed", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "must hold options"), ("a: [", "is not YAML"), ("quantization: fp8", "not possible")],
)
def test_files_that_cannot_be_followed(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises((ValidationError, NotImplementedError), match=message):
        without_effect(_parse(["serve", "--config", str(path)]))
    with pytest.raises(ValidationError, match="names one file, not 2"):
        _parse(["serve", "--config", str(path), "--config", str(path)])
    with pytest.raises(FileNotFoundError):
        _parse(["serve", "--config", str(tmp_path / "none.yaml")])


def test_names_are_not_taken_for_a_model() -> None:
    with pytest.raises(ValidationError, match="Say the model before --served-model-name"):
        served_models(_parse(["serve", "--served-model-name", "a", "org/name"]))
