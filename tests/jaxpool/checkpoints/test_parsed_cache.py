"""What is remembered must be what transformers says, and must be forgotten as soon as anything changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from jaxpool.checkpoints import parsed_cache
from jaxpool.checkpoints.location import read_config
from jaxpool.errors import ConfigError
from jaxpool.text.tokenizer import Tokenizer
from jaxpool_conversions.families import find
from jaxpool_conversions.families.config_fields import Fields

MODELS = Path(__file__).parents[2] / "data" / "models"
NAMES = ["gpt2-cls", "bert-cls", "qwen2-cls", "llama-causal"]
TEXTS = ["Hello world", "naïve café 😀", "<s>[SEP]", "a  b\n", "x" * 200]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXPOOL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def files(cache: Path) -> set[Path]:
    return set(cache.glob("*.json")) if cache.exists() else set()


def never(*_args: Any, **_kwargs: Any) -> Any:
    raise AssertionError("transformers was asked again")


def read_again(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Reads with transformers out of reach."""
    with monkeypatch.context() as patch:
        patch.setattr(parsed_cache, "read_config", never)
        patch.setattr(parsed_cache, "read_tokenizer", never)
        return parsed_cache.read(folder, folder, **options)


def same(value: Any, other: Any) -> bool:
    """Equal once JSON has made lists of tuples and strings of keys and dtypes."""
    return bool(json.loads(json.dumps(value, default=str)) == json.loads(json.dumps(other, default=str)))


def is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_transformers(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = read_config(MODELS / name)
    parsed_cache.read(MODELS / name, MODELS / name)
    ours, _ = read_again(MODELS / name, monkeypatch)
    assert not caplog.records
    assert type(ours).__name__ == type(theirs).__name__
    assert ours.id2label == theirs.id2label
    for attribute in set(dir(theirs)) - parsed_cache.DEPRECATED:
        if attribute[0] == "_" or not hasattr(theirs, attribute):
            continue
        value = getattr(theirs, attribute)
        if attribute in vars(theirs) or is_plain(value):
            assert same(getattr(ours, attribute), value), attribute
    made, default = type(ours)(), type(theirs)()
    assert {field.name for field in fields(ours)} == {field.name for field in fields(theirs)}
    for field in fields(theirs):
        assert same(getattr(made, field.name), getattr(default, field.name)), field.name


@pytest.mark.parametrize("name", NAMES)
def test_the_vocabulary_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = parsed_cache.read(MODELS / name, MODELS / name)
    _, second = read_again(MODELS / name, monkeypatch)
    for attribute in ("truncation_side", "model_input_names", "model_max_length", "pad_token_id", "unk_token_id"):
        assert getattr(first, attribute) == getattr(second, attribute)
    one, two = (Tokenizer(vocabulary, max_length=512, vocab_size=2048) for vocabulary in (first, second))
    assert one.encode(TEXTS) == two.encode(TEXTS)
    for token in ("hello", "no", "yes", "no such piece"):
        assert first.convert_tokens_to_ids(token) == second.convert_tokens_to_ids(token)


def test_any_change_of_a_file_is_seen(tmp_path: Path, cache: Path) -> None:
    folder = Path(shutil.copytree(MODELS / "bert-cls", tmp_path / "bert"))
    parsed_cache.read(folder, folder)
    assert len(files(cache)) == 1
    for name, change in (("config.json", ("hidden_act", "relu")), ("tokenizer_config.json", ("pad_token", "[UNK]"))):
        data = json.loads((folder / name).read_text())
        data[change[0]] = change[1]
        (folder / name).write_text(json.dumps(data))
        before = files(cache)
        config, vocabulary = parsed_cache.read(folder, folder)
        assert len(files(cache) - before) == 1
    assert config.hidden_act == "relu"
    assert vocabulary.pad_token_id == 1


def test_overrides_and_absent_tokenizers_are_told_apart(cache: Path) -> None:
    folder = MODELS / "bert-cls"
    assert parsed_cache.read(folder, folder, {"num_labels": 2})[0].num_labels == 2
    assert parsed_cache.read(folder, folder)[0].num_labels == 3
    assert parsed_cache.read(folder, None)[1] is None
    assert parsed_cache.read(folder, folder)[1] is not None
    assert len(files(cache)) == 3


def test_code_and_failures_are_not_remembered(tmp_path: Path, cache: Path) -> None:
    parsed_cache.read(MODELS / "bert-cls", None, lambda config: config)
    with pytest.raises(ConfigError):
        parsed_cache.read(MODELS / "bert-cls", None, {"model_type": "no-such"})
    assert not files(cache)


@pytest.mark.parametrize("damage", ["", "{", "{}", "[]"])
def test_damage_is_repaired(damage: str, cache: Path) -> None:
    folder = MODELS / "bert-cls"
    parsed_cache.read(folder, folder)
    (file,) = files(cache)
    good = file.read_text()
    file.write_text(damage)
    assert parsed_cache.read(folder, folder)[0].num_labels == 3
    assert file.read_text() == good


def test_a_directory_that_others_may_write_to_is_not_used(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    parsed_cache.read(MODELS / "bert-cls", None)
    assert not files(cache)


def test_nothing_is_kept_when_asked_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXPOOL_CACHE_DIR", "off")
    parsed_cache.read(MODELS / "bert-cls", None)
    assert not files(cache)


def test_a_second_process_classifies_without_transformers() -> None:
    code = (
        "import sys; from jaxpool import LLM; llm = LLM(sys.argv[1], dtype='float32', tokenizer_mode='auto');"
        "print(llm.classify('good', use_tqdm=False)[0].outputs.probs);"
        "assert ('transformers' in sys.modules) == (sys.argv[2] == 'first');"
        "assert sys.argv[2] == 'first' or 'torch' not in sys.modules"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code, str(MODELS / "bert-cls"), turn],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ),
        ).stdout
        for turn in ("first", "second")
    }
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("opt", {"_remove_final_layer_norm": True}),
        ("gptj", {"n_embd": 96, "n_head": 3, "rotary_dim": 8}),
        ("gpt_neo", {"attention_types": [[["local"], 24]]}),
        ("gemma3_text", {"sliding_window": 7, "use_bidirectional_attention": True}),
    ],
)
def test_families_read_the_same_from_memory(
    model_type: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Second names of fields, private fields and values that a class derives are remembered, too."""
    AutoConfig.for_model(model_type, **values).save_pretrained(tmp_path / "model")
    family = find(model_type)
    first = family.config(Fields(parsed_cache.read(tmp_path / "model", None)[0]))
    monkeypatch.setattr(parsed_cache, "read_config", never)
    again = Fields(parsed_cache.read(tmp_path / "model", None)[0])
    assert family.config(again) == first
    again.finish()
