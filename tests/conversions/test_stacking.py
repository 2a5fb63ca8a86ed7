"""Layers in groups and experts inside layers: every one exactly once, one by one or fused, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from parity_cases.moe import CASES
from safetensors.numpy import save_file

from jaxpool.engine import sharding
from jaxpool.engine.programs import Classifier
from jaxpool.errors import WeightsError
from jaxpool.models.classifier import HeadConfig
from jaxpool_conversions import stacking
from jaxpool_conversions.export import export
from jaxpool_conversions.families import find
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.load import load
from jaxpool_conversions.reader import Reader
from jaxpool_conversions.rules import HeadSource, Rule

HEAD = HeadSource("score.weight", None, 2)
EXPERTS = 3
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def targets() -> dict[str, jax.ShapeDtypeStruct]:
    """A Jamba of seven layers: a period of four (one attention, two mixtures), and three layers that remain."""
    from transformers import JambaConfig

    hub = JambaConfig(hidden_size=16, num_hidden_layers=7, num_attention_heads=2, num_key_value_heads=1, vocab_size=11,
                      intermediate_size=12, num_experts=EXPERTS, mamba_d_state=3, mamba_dt_rank=2, attn_layer_period=4,
                      attn_layer_offset=2)  # fmt: skip
    family = find("jamba")
    config = family.config(Fields(hub))
    model = jax.eval_shape(
        lambda: Classifier(family.backbone, config, HeadConfig(16, 2, bias=False), np.dtype("float32"))
    )
    return sharding.targets(model, sharding.make_mesh())


@pytest.fixture(scope="module")
def leaves(targets: dict[str, jax.ShapeDtypeStruct]) -> Tensors:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=target.shape).astype(np.float32) for path, target in targets.items()}


@pytest.fixture(scope="module")
def tensors(leaves: Tensors) -> Tensors:
    return export(leaves, find("jamba").table, HEAD)


def loaded(folder: Path, tensors: Tensors, targets: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    save_file(tensors, folder / "model.safetensors")
    with Reader(folder) as reader:
        return load(reader, find("jamba").table, HEAD, targets)


def fused(tensors: Tensors) -> Tensors:
    """The same with the experts of each layer in two tensors, as transformers holds them in memory."""
    out = {name: values for name, values in tensors.items() if ".experts." not in name}
    for layer in {name.split(".experts.")[0] for name in tensors if ".experts." in name}:

        def stack(which: str, layer: str = layer) -> np.ndarray:
            return np.stack([tensors[f"{layer}.experts.{e}.{which}_proj.weight"] for e in range(EXPERTS)])

        out[f"{layer}.experts.gate_up_proj"] = np.concatenate([stack("gate"), stack("up")], axis=1)
        out[f"{layer}.experts.down_proj"] = stack("down")
    return out


def test_names_are_those_of_the_hub(tensors: Tensors) -> None:
    layers = {n: sorted(name for name in tensors if f".layers.{n}." in name) for n in range(7)}
    assert [any("self_attn" in name for name in layers[n]) for n in range(7)] == [n == 2 or n == 6 for n in range(7)]
    assert [any("mamba" in name for name in layers[n]) for n in range(7)] == [n not in (2, 6) for n in range(7)]
    experts = [sum("experts" in name for name in layers[n]) for n in range(7)]
    assert experts == [0, 3 * EXPERTS, 0, 3 * EXPERTS, 0, 3 * EXPERTS, 0]
    assert tensors["model.layers.5.feed_forward.experts.2.down_proj.weight"].shape == (16, 12)
    assert tensors["model.layers.0.mamba.conv1d.weight"].shape == (32, 1, 4)


@pytest.mark.parametrize("layout", [dict, fused])
def test_there_and_back_in_both_layouts(
    layout: Callable[[Tensors], Tensors],
    tmp_path: Path,
    leaves: Tensors,
    tensors: Tensors,
    targets: dict[str, jax.ShapeDtypeStruct],
) -> None:
    back = loaded(tmp_path, layout(tensors), targets)
    assert back.keys() == leaves.keys()
    for path, values in leaves.items():
        np.testing.assert_array_equal(back[path], values, err_msg=path)


EXPERT = "model.layers.3.feed_forward.experts.1.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop(EXPERT), r"1 missing tensors: layers\.3\.feed_forward\.experts\.1\.up_proj\.weight or"),
        (
            lambda t: t.update({EXPERT.replace("experts.1", "experts.3"): t[EXPERT]}),
            r"1 tensors that no rule uses: .*experts\.3\.up_proj\.weight \(the configuration has no expert 3 in",
        ),
        (
            lambda t: t.update({EXPERT.replace("layers.3", "layers.4"): t[EXPERT]}),
            r"layers\.4\..* \(the configuration has no expert 1 in layer 4 of",
        ),
        (
            lambda t: t.update({name: v for name, v in fused(t).items() if "layers.3." in name and "experts" in name}),
            r"parameters given twice: expert 0 in layer 3 of .* from .*gate_up_proj and .*experts\.0\.gate_proj",
        ),
        (
            lambda t: t.update({EXPERT: t[EXPERT].T.copy()}),
            r"1 tensors of the wrong shape: .*up_proj\.weight \[16, 12\]",
        ),
        (
            lambda t: t.pop("model.layers.6.self_attn.q_proj.weight"),
            r"1 missing tensors: layers\.6\.self_attn\.q_proj\.weight",
        ),
    ],
)
def test_each_expert_of_each_layer_exactly_once(
    damage: Callable[[Tensors], object],
    message: str,
    tmp_path: Path,
    tensors: Tensors,
    targets: dict[str, jax.ShapeDtypeStruct],
) -> None:
    damaged = dict(tensors)
    damage(damaged)
    with pytest.raises(WeightsError, match=message):
        loaded(tmp_path, damaged, targets)


@pytest.mark.parametrize(
    "case", ["mixtral", "qwen3-moe-some-dense", "granitemoe", "gpt-oss", "deepseek-v3", "minicpm3"]
)
def test_checkpoints_of_transformers_come_back_as_they_were(case: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model_type, config = CASES[case]
    folder = tiny.save(tmp_path, model_type, **config)
    with Reader(folder) as reader:
        source = {name: reader.read(name) for name in reader.names()}
    back = export(*tiny.parameters(folder))
    assert back.keys() == source.keys()
    for name, values in source.items():
        np.testing.assert_array_equal(back[name], values, err_msg=name)


def test_groups_in_paths() -> None:
    rule = Rule("layers.{layer}.x.{expert}.w", "a.layers.x.kernel")
    targets = {"a.layers.from1by2.x.kernel": (3, 4, 8, 8), "a.layers.from6by1.x.kernel": (2, 4, 8, 8)}
    assert stacking.numbers(rule, "layers.10.x.3.w") == (10, 3)
    assert stacking.numbers(rule, "layers.01.x.3.w") is None, "another name for layer 1"
    for name, place in {
        (1, 0): ("a.layers.from1by2.x.kernel", (0, 0)),
        (5, 3): ("a.layers.from1by2.x.kernel", (2, 3)),
        (7, 1): ("a.layers.from6by1.x.kernel", (1, 1)),
        (0, 0): None, (2, 0): None, (8, 0): None, (1, 4): None, (11, 0): None,
    }.items():  # fmt: skip
        assert stacking.find(rule, name, targets) == place
    assert stacking.source(rule, "a.layers.from1by2.x.kernel", (2, 3)) == "layers.5.x.3.w"
