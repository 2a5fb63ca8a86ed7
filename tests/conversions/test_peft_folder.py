"""Adapters are read strictly: every field and every tensor is used, known to say nothing, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft_files
import pytest

from jaxpool.errors import CheckpointError, ConfigError, WeightsError
from jaxpool_conversions.families import find
from jaxpool_conversions.low_rank import changes
from jaxpool_conversions.peft_folder import read_peft

QUERY = "bert.encoder.layer.0.attention.self.query"
A, B = np.ones((2, 4), np.float32), np.ones((4, 2), np.float32)
PAIR = {f"{QUERY}.lora_A.weight": A, f"{QUERY}.lora_B.weight": B}
TARGETS = {"backbone.layers.attention.query.kernel": (1, 4, 4), "backbone.layers.attention.query.bias": (1, 4),
           "head.out.kernel": (4, 2), "head.out.bias": (2,)}  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", "IA3"),
        ("task_type", "SEQ_2_SEQ_LM"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("bias", "some"),
        ("use_qalora", True),
        ("layer_replication", [[0, 4]]),
        ("alora_invocation_tokens", [1, 2]),
        ("trainable_token_indices", [3]),
        ("megatron_config", {"a": 1}),
        ("a_field_of_next_year", 7),
    ],
)
def test_settings_that_would_change_the_result_are_refused_by_name(setting: str, value: Any, tmp_path: Path) -> None:
    folder = peft_files.write(tmp_path / "adapter", PAIR, **{setting: value})
    with pytest.raises(ConfigError, match=str(value) if setting == "peft_type" else setting):
        read_peft(folder)


@pytest.mark.parametrize("setting", ["use_qalora", "a_field_of_next_year", "layer_replication", "arrow_config"])
def test_settings_that_ask_for_nothing_are_passed_over(setting: str, tmp_path: Path) -> None:
    for number, nothing in enumerate((None, False, [], {})):
        assert read_peft(peft_files.write(tmp_path / str(number), PAIR, **{setting: nothing})).rank == 2


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({}, {}, "holds no tensors"),
        ({f"{QUERY}.lora_A.weight": A}, {}, "has no lora_B for .*query"),
        (PAIR | {f"{QUERY}.lora_C.weight": A}, {}, "lora_C"),
        (PAIR | {f"{QUERY}.lora_A.bias": A[:, 0]}, {}, "lora_A.bias"),
        (PAIR, {"r": 4}, "rank 4"),
        (PAIR, {"rank_pattern": {"query": 1}}, "rank 2, but adapter_config.json says 1"),
        (PAIR, {"use_dora": True}, "use_dora=True"),
        (PAIR | {f"{QUERY}.lora_magnitude_vector.weight": A[0]}, {}, "use_dora"),
        (PAIR | {f"{QUERY}.lora_B.bias": A[0]}, {}, "lora_bias"),
        (PAIR | {f"{QUERY}.base_layer.bias": A[0]}, {}, "query.bias, which neither modules_to_save nor bias"),
        (PAIR | {f"{QUERY}.token_adapter.delta": A}, {}, "token_adapter"),
        (PAIR, {"modules_to_save": ["classifier", "score"]}, "classifier or score was trained"),
        (PAIR | {"classifier.weight": A}, {"modules_to_save": ["classifier", "pooler"]}, "pooler was trained"),
        (PAIR | {f"{QUERY}.lora_A.weight": A * np.nan}, {}, "NaN"),
    ],
)
def test_tensors_without_a_meaning_are_refused_by_name(
    tensors: dict[str, np.ndarray], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((WeightsError, ConfigError), match=message):
        read_peft(peft_files.write(tmp_path / "adapter", tensors, **settings))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"bert.encoder.layer.7.attention.self.query.lora_A.weight": A,
          "bert.encoder.layer.7.attention.self.query.lora_B.weight": B}, r"no place for: .*layer\.7"),
        ({"bert.foo.lora_A.weight": A, "bert.foo.lora_B.weight": B}, r"no place for: bert\.foo"),
        ({f"{QUERY}.lora_A.weight": A[:, :3], f"{QUERY}.lora_B.weight": B}, r"another shape: .*query.* \[4, 3\]"),
        (PAIR | {"bert.embeddings.LayerNorm.bias": A[0]}, r"no place for: .*LayerNorm"),
    ],
)  # fmt: skip
def test_what_the_model_has_no_place_for_is_refused_by_name(
    tensors: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    adapter = read_peft(peft_files.write(tmp_path / "adapter", tensors, bias="all"))
    with pytest.raises(WeightsError, match=message):
        changes(adapter, find("bert").table, TARGETS)


def test_scales_of_patterns_and_rank_stabilisation(tmp_path: Path) -> None:
    """The first pattern that matches the end of a module's name counts; otherwise ``lora_alpha`` and ``r``."""

    def scale(name: str, **settings: Any) -> float:
        adapter = read_peft(peft_files.write(tmp_path / name, PAIR, **settings))
        found = changes(adapter, find("bert").table, TARGETS).factors["backbone.layers.attention.query.kernel"]
        return float((found.left @ found.right)[0, 0, 0]) / 2

    assert scale("plain", lora_alpha=4) == 2
    assert scale("stabilised", lora_alpha=4, use_rslora=True) == pytest.approx(4 / 2**0.5)
    assert scale("pattern", alpha_pattern={"key": 1, r"self\.query": 6, "query": 9}) == 3
    assert scale("no-half-names", alpha_pattern={"uery": 6}) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no weights of an adapter"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"abc"), "truncated or damaged"),
    ],
)
def test_damaged_folders_say_so(spoil: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    folder = peft_files.write(tmp_path / "adapter", PAIR)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read_peft(folder)


def test_labels_beside_an_adapter_are_read(tmp_path: Path) -> None:
    folder = peft_files.write(tmp_path / "adapter", PAIR)
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "ham", "1": "spam"}}))
    assert read_peft(folder).config["id2label"]["1"] == "spam"
