"""The (data, model) mesh: same results on eight fake devices; the real TPU compiler shards as the table says."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from transformers import AutoConfig

from jaxpool.checkpoints.spec import Spec, resolve
from jaxpool.engine import sharding
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.compile_cache import enable_cache
from jaxpool.engine.engine import Row
from jaxpool.engine.opening import open_engine
from jaxpool.engine.pipeline import Pipeline
from jaxpool.engine.programs import Programs, abstract
from jaxpool.errors import ValidationError
from jaxpool.ops.attention import attend
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool_conversions.rules import HeadSource

MODELS = Path(__file__).parents[2] / "data" / "models"
SHAPES = {
    "bert": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
             "vocab_size": 2048},
    "gpt2": {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 2048, "n_positions": 512},
    "qwen2": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "intermediate_size": 1024, "vocab_size": 2048},
    # Two periods of four layers: Mamba and attention, dense and mixtures of experts.
    "jamba": {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "intermediate_size": 512, "vocab_size": 2048, "num_experts": 4, "attn_layer_period": 4,
                  "attn_layer_offset": 2},
}  # fmt: skip
ALL_REDUCES = {"bert": 5, "gpt2": 5, "qwen2": 5, "jamba": 12}
"""One after attention and one after the MLP, of the scanned layer and of the last; one for the split vocabulary.

Jamba scans four layers at once, and its three Mamba layers make step sizes from all channels.
"""


def spec_of(model_type: str, platform: str, **shape: int) -> Spec:
    config = AutoConfig.for_model(model_type, **{**SHAPES.get(model_type, SHAPES["qwen2"]), **shape})
    config.architectures = [f"{model_type}ForSequenceClassification"]
    return resolve(
        config, lambda family, labels, width: HeadSource("score.weight", None, labels or 2), platform=platform
    )


@pytest.mark.parametrize("model", ["bert-cls", "qwen2-cls", "jamba-cls"])
def test_every_mesh_gives_the_same_scores(model: str) -> None:
    assert len(jax.devices()) == 8, "tests/conftest.py asks for eight fake devices"
    config, rng = AutoConfig.from_pretrained(MODELS / model), np.random.default_rng(0)
    rows = [Row(rng.integers(5, 1500, n)) for n in (1, 5, 16, 17, 30, 31, 32, 9, 64)]

    def scores(data: int, model_axis: int) -> np.ndarray:
        engine = open_engine(
            MODELS / model, config, data_parallel_size=data, tensor_parallel_size=model_axis, max_model_len=64
        )
        try:
            return engine.run(rows)
        finally:
            engine.close()

    one = scores(1, 1)
    for mesh in ((4, 2), (8, 1)):
        np.testing.assert_allclose(scores(*mesh), one, atol=1e-5, err_msg=f"mesh {mesh}")


def test_weights_are_really_split() -> None:
    config = AutoConfig.from_pretrained(MODELS / "qwen2-cls")
    engine = open_engine(MODELS / "qwen2-cls", config, data_parallel_size=4, tensor_parallel_size=2)
    mesh = engine.programs.mesh
    for path, target in sharding.targets(abstract(engine.spec), mesh).items():
        split = bool(re.search(r"tokens|query\.|key\.|value\.|attention\.out\.kernel|gate|up|down\.kernel", path))
        split &= not path.endswith("norm.scale")
        fraction = np.prod(target.sharding.shard_shape(target.shape)) / np.prod(target.shape)
        assert fraction == (0.5 if split else 1.0), path
    engine.close()


def test_heads_that_do_not_divide_are_refused_or_replicated() -> None:
    config = AutoConfig.from_pretrained(MODELS / "gpt2-cls")
    wanted = r"attention heads \(3\) must be divisible by tensor parallel size \(2\)\. Sizes that would work: 1, 3"
    with pytest.raises(ValidationError, match=wanted):
        open_engine(MODELS / "gpt2-cls", config, tensor_parallel_size=2)
    with pytest.raises(ValidationError, match="asks for 16 devices; this machine has 8"):
        open_engine(MODELS / "qwen2-cls", AutoConfig.from_pretrained(MODELS / "qwen2-cls"), data_parallel_size=16)
    # Two key/value heads on a model axis of four: replicated, while the four query heads are split.
    targets = sharding.targets(abstract(spec_of("qwen2", "cpu")), sharding.make_mesh(2, 4))
    assert targets["backbone.layers.attention.key.kernel"].sharding.is_fully_replicated
    assert not targets["backbone.layers.attention.query.kernel"].sharding.is_fully_replicated


UNEVEN = {
    "vocabulary": ("bert", 4, {"vocab_size": 2046}),
    "more devices than key heads": ("qwen2", 4, {}),
    "key heads that do not fit devices": ("qwen2", 4, {"hidden_size": 384, "num_attention_heads": 12,
                                                       "num_key_value_heads": 3}),
    "experts": ("mixtral", 2, {"vocab_size": 2046, "num_hidden_layers": 2}),
}  # fmt: skip
"""What does not divide -> model, devices that share weights, its shape."""


@pytest.mark.parametrize("case", UNEVEN)
def test_what_does_not_divide_costs_no_gathering(case: str) -> None:
    """Two sums of hidden states a layer, one for what the embedding looks up, and nothing else that large."""
    model_type, devices, shape = UNEVEN[case]
    spec = spec_of(model_type, "cpu", **shape)
    mesh = sharding.make_mesh(1, devices)
    hlo = Programs(abstract(spec), spec, mesh).lower(Bucket(8, 128)).compile().as_text()
    # The scanned layer, then the last of pooled tokens alone.
    large = {name: sizes.count((8, 128)) for name, sizes in collectives(hlo).items()}
    tokens = {name: sizes.count((1024,)) for name, sizes in collectives(hlo).items()}
    by_rows = spec.config.vocab % devices == 0
    assert large["all-reduce"] + tokens["all-reduce"] == 2 + by_rows
    assert sum(len(sizes) for name, sizes in collectives(hlo).items()) == 5
    assert large["all-gather"] == (0 if by_rows else 1)


def collectives(hlo: str) -> dict[str, list[tuple[int, ...]]]:
    """Collective -> the shapes that its results have but for their last dimension."""
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in ("all-reduce", "all-gather", "all-to-all")}
    for sizes, name in re.findall(r"= \w+\[([\d,]+)\]\S* (all-reduce|all-gather|all-to-all)(?:-start)?\(", hlo):
        found[name].append(tuple(map(int, sizes.split(",")))[:-1])
    return found


def test_vocabularies_that_do_not_divide_are_split_by_columns(caplog: pytest.LogCaptureFixture) -> None:
    targets = sharding.targets(abstract(spec_of("bert", "cpu", vocab_size=2046)), sharding.make_mesh(1, 4))
    assert targets["backbone.tokens.table"].sharding.shard_shape((2046, 256)) == (2046, 64)
    model, mesh = abstract(spec_of("qwen2", "cpu", intermediate_size=1022)), sharding.make_mesh(1, 4)
    layer = "backbone.layers."
    assert {path.removeprefix(layer) for path in sharding.undivided(model, mesh)} == {
        *(f"attention.{name}" for name in ("key.bias", "key.kernel", "value.bias", "value.kernel")),
        *(f"mlp.{name}.kernel" for name in ("gate", "up", "down")),
    }


@pytest.fixture
def _no_cache() -> Iterator[None]:
    """A program compiled for a device that is not here cannot be read back from the persistent cache."""
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    enable_cache()  # ours again: JAX's own would read our files, which have a digest each


@pytest.mark.usefixtures("_no_cache")
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the TPU compiler, no TPU)")
@pytest.mark.parametrize(
    ("kv_heads", "window", "causal"),
    [(2, None, True), (1, 128, True), (4, 65, False)],
    ids=["grouped", "one", "window"],
)
def test_the_tpu_compiler_takes_splash_attention_on_a_mesh(
    kv_heads: int, window: int | None, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed rows over devices that share heads: one kernel, no scores in memory, nothing gathered."""
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    from jax.experimental import topologies

    mesh = sharding.make_mesh(2, 2, topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)

    def run(q: jax.Array, k: jax.Array, v: jax.Array, *layout: jax.Array) -> jax.Array:
        options = {"causal": causal, "window": window, "scale": 0.125, "implementation": Implementation("tpu")}
        return attend(q, k, v, layout=Layout.packed(*layout), **options)

    def shape(*size: int, heads: bool = False, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        spec = PartitionSpec("data", None, "model") if heads else PartitionSpec("data")
        return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        q = shape(4, 1024, 4, 64, heads=True, dtype="bfloat16")
        kv = shape(4, 1024, kv_heads, 64, heads=kv_heads > 1, dtype="bfloat16")
        compiled = jax.jit(run).lower(q, kv, kv, shape(4, 1024), shape(4, 128), shape(4, 128)).compile()
    hlo = compiled.as_text()
    assert hlo.count("tpu_custom_call") == 1
    assert not re.search(r"= [^\n]* all-(?:gather|to-all)(?:-start)?\(", hlo)
    scores = 2 * 2 * 1024 * 1024 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 4


@pytest.mark.usefixtures("_no_cache")
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the TPU compiler, no TPU)")
@pytest.mark.parametrize("model_type", SHAPES)
def test_the_tpu_compiler_shards_2x2(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # nobody has the TPU, all may compile
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    spec = spec_of(model_type, "tpu")
    assert spec.dtype == "bfloat16"
    bucket = Bucket(8, 128)

    def compiled(data: int, model: int) -> jax.stages.Compiled:
        mesh = sharding.make_mesh(data, model, topology.devices)
        return Programs(abstract(spec, Implementation("tpu")), spec, mesh).lower(bucket).compile()

    split, single = compiled(2, 2), compiled(1, 1)
    hlo = split.as_text()
    count = {
        name: len(re.findall(rf"= [^\n]* {name}(?:-start)?\(", hlo))
        for name in ("all-reduce", "all-gather", "all-to-all")
    }
    assert count["all-reduce"] == ALL_REDUCES[model_type], count
    # Only the [rows, labels] scores are gathered from the data axis; no weight ever is.
    assert count["all-gather"] <= 1, count
    assert count["all-to-all"] == 0, count
    targets = sharding.targets(
        abstract(spec, Implementation("tpu")), sharding.make_mesh(2, 2, topology.devices)
    ).values()
    per_device = sum(np.prod(t.sharding.shard_shape(t.shape)) * t.dtype.itemsize for t in targets)
    whole = sum(np.prod(t.shape) * t.dtype.itemsize for t in targets)
    assert per_device < 0.56 * whole, "weights must be split over the model axis"
    arguments = split.memory_analysis().argument_size_in_bytes
    assert per_device <= arguments < per_device * 1.1 + 64_000
    assert arguments < 0.6 * single.memory_analysis().argument_size_in_bytes


@pytest.mark.usefixtures("_no_cache")
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the TPU compiler, no TPU)")
def test_the_tpu_compiler_takes_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages of two devices: each holds its own weights, halved, and sums twice a layer; nothing is gathered."""
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    from jax.experimental import topologies

    spec = spec_of("qwen2", "tpu")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = sharding.make_mesh(1, 2, devices, stages=2)
    pipeline = Pipeline(abstract(spec, Implementation("tpu")), spec, mesh)
    for stage, lowered, sums in zip(pipeline.stages, pipeline.lowered(Bucket(8, 128)), (3, 4)):
        compiled = lowered.compile()
        hlo = compiled.as_text()
        assert len(re.findall(r"= [^\n]* all-reduce(?:-start)?\(", hlo)) == sums, stage
        assert not re.search(r"= [^\n]* all-(?:gather|to-all)(?:-start)?\(", hlo)
        held = sum(np.prod(t.sharding.shard_shape(t.shape)) * t.dtype.itemsize for t in stage.leaves.values())
        hidden = 8 * 128 * 256 * 2 if stage.first else 0
        assert held + hidden <= compiled.memory_analysis().argument_size_in_bytes < 1.1 * (held + hidden) + 64_000
