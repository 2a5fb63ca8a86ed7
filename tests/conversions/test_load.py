"""Loading: every tensor accounted for, every value where it belongs, on every sharding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpool.errors import WeightsError
from jaxpool_conversions import load as loading
from jaxpool_conversions.heads import find_head
from jaxpool_conversions.load import load
from jaxpool_conversions.reader import Reader

Tensors = dict[str, np.ndarray]


def loaded(
    folder: Path,
    made: SimpleNamespace,
    tensors: Tensors,
    targets: dict[str, jax.ShapeDtypeStruct] | None = None,
    **how: Any,
) -> dict[str, np.ndarray]:
    with Reader(made.write(folder, tensors)) as reader:
        options: dict[str, Any] = {"num_labels": None, "width": made.width, **how}
        head = find_head(reader, made.table, **options)
        leaves = load(reader, made.table, head, targets or made.targets())
        return {path: np.asarray(leaf) for path, leaf in leaves.items()}


def expected(made: SimpleNamespace, tensors: Tensors) -> dict[str, np.ndarray]:
    """The same mapping, written out by hand."""

    def stack(name: str, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> np.ndarray:
        return np.stack([change(tensors[f"net.layer.{i}.{name}"]) for i in range(made.layers)])

    wanted = {
        "backbone.tokens.table": tensors["net.embed.weight"],
        "backbone.layers.up.kernel": stack("up.weight", lambda x: x.T),
        "backbone.layers.up.bias": stack("up.bias"),
        "backbone.layers.norm.scale": stack("norm.weight"),
        "head.dense.kernel": tensors["net.pooler.dense.weight"].T,
        "head.out.kernel": tensors["score.weight"].T,
        "head.out.bias": tensors["score.bias"],
    }
    for i, name in enumerate("qkv"):
        cut = slice(i * made.width, (i + 1) * made.width)
        wanted[f"backbone.layers.{name}.kernel"] = stack("qkv.weight", lambda x, cut=cut: x[cut].T)
        wanted[f"backbone.layers.{name}.bias"] = stack("qkv.bias", lambda x, cut=cut: x[cut])
    return wanted


def same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(got[path], value, path)


def test_every_value_in_its_place(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    same(loaded(tmp_path, made, tensors), expected(made, tensors))


def test_the_order_is_that_of_the_targets(tmp_path: Path, made: SimpleNamespace) -> None:
    assert list(loaded(tmp_path, made, made.tensors())) == list(made.targets())


@pytest.mark.parametrize("bare", ["all", "some"])
def test_the_prefix_is_found_per_tensor(tmp_path: Path, made: SimpleNamespace, bare: str) -> None:
    tensors = made.tensors()
    names = [name for i, name in enumerate(sorted(tensors)) if bare == "all" or i % 2]
    renamed = {name.removeprefix("net.") if name in names else name: value for name, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    same(loaded(tmp_path, made, renamed), expected(made, tensors))


def test_an_old_name_works_for_some_layers_as_well(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    renamed = {name.replace("1.norm.weight", "1.norm.gamma"): value for name, value in tensors.items()}
    same(loaded(tmp_path, made, renamed), expected(made, tensors))


def test_ignored_tensors_may_be_of_any_type(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    extra = {
        "net.layer.2.mask": np.ones((4, 4), np.uint8),
        "lm_head.weight": np.full((made.vocab, made.width), np.nan, np.float32),
        "cls.predictions.bias": np.zeros(3, np.int64),
        "classifier.weight": np.zeros((7, 5), np.float32),  # a second head, less preferred
    }
    same(loaded(tmp_path, made, tensors | extra), expected(made, tensors))


def test_a_head_without_bias_gets_zeros(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    del tensors["score.bias"]
    got = loaded(tmp_path, made, tensors)
    np.testing.assert_array_equal(got["head.out.bias"], np.zeros(made.labels))


# --- types ---------------------------------------------------------------------------------------------------------

FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_floats_are_cast(tmp_path: Path, made: SimpleNamespace, source: Any, target: Any) -> None:
    tensors = {name: value.astype(source) for name, value in made.tensors().items()}
    got = loaded(tmp_path, made, tensors, made.targets(target))
    same(got, {path: value.astype(target) for path, value in expected(made, tensors).items()})
    assert {leaf.dtype for leaf in got.values()} == {np.dtype(target)}


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, ml_dtypes.float8_e4m3fn])
def test_quantised_weights_are_refused(tmp_path: Path, made: SimpleNamespace, kind: Any) -> None:
    tensors = made.tensors()
    tensors["net.layer.1.up.weight"] = tensors["net.layer.1.up.weight"].astype(kind)
    with pytest.raises(WeightsError, match=rf"net\.layer\.1\.up\.weight is stored as {np.dtype(kind)}"):
        loaded(tmp_path, made, tensors)


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("name", ["net.embed.weight", "net.layer.2.qkv.weight", "score.weight", "score.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(
    tmp_path: Path, made: SimpleNamespace, source: Any, name: str, value: float
) -> None:
    tensors = {name: tensor.astype(source) for name, tensor in made.tensors().items()}
    tensors[name].flat[-1] = value
    with pytest.raises(WeightsError, match=rf"{name} holds NaN or infinite"):
        loaded(tmp_path, made, tensors, made.targets(ml_dtypes.bfloat16))


def test_large_finite_weights_are_fine_although_their_sum_overflows(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    tensors["net.embed.weight"][:] = 3e38
    assert loaded(tmp_path, made, tensors)["backbone.tokens.table"].max() == np.float32(3e38)


def test_a_value_beyond_float16(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    tensors["net.embed.weight"][3, 3] = 1e6
    with pytest.raises(WeightsError, match=r"net\.embed\.weight has values too large for float16"):
        loaded(tmp_path, made, tensors, made.targets(np.float16))


# --- accounting ----------------------------------------------------------------------------------------------------


def refused(folder: Path, made: SimpleNamespace, tensors: Tensors, *words: str, **targets: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        loaded(folder, made, tensors, made.targets(**targets))
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return str(caught.value)


def test_unmapped(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors() | {"net.layer.0.surprise": np.zeros(3, np.float32)}
    refused(tmp_path, made, tensors, "1 tensors that no rule uses: net.layer.0.surprise")


def test_a_layer_too_many(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors() | {"net.layer.3.up.bias": np.zeros(12, np.float32)}
    refused(
        tmp_path, made, tensors, "net.layer.3.up.bias (the configuration has no layer 3 of backbone.layers.up.bias)"
    )


def test_a_parameter_that_the_configuration_lacks(tmp_path: Path, made: SimpleNamespace) -> None:
    changes = {"backbone.layers.up.bias": None}
    refused(tmp_path, made, made.tensors(), "net.layer.0.up.bias (the configuration has no", **changes)


def test_missing_names_what_was_looked_for(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    del tensors["net.layer.1.norm.weight"]
    refused(tmp_path, made, tensors, "1 missing tensors: layer.1.norm.weight or layer.1.norm.gamma", "'net.'")


def test_a_target_without_rule(tmp_path: Path, made: SimpleNamespace) -> None:
    refused(tmp_path, made, made.tensors(), "backbone.extra (no rule", **{"backbone.extra": (3,)})


def test_duplicates_with_and_without_prefix(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    tensors["layer.1.up.bias"] = tensors["net.layer.1.up.bias"]
    names = "layer 1 of backbone.layers.up.bias from layer.1.up.bias and net.layer.1.up.bias"
    refused(tmp_path, made, tensors, "1 parameters given twice", names)


def test_misshapen(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    tensors["net.layer.1.up.weight"] = tensors["net.layer.1.up.weight"].T.copy()
    refused(tmp_path, made, tensors, "1 tensors of the wrong shape: net.layer.1.up.weight [8, 12]", "needs [12, 8]")


def test_a_fused_tensor_that_cannot_be_cut(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors()
    tensors["net.layer.1.qkv.weight"] = np.zeros((25, 8), np.float32)
    refused(tmp_path, made, tensors, "net.layer.1.qkv.weight [25, 8]", "needs [24, 8]")


def test_all_kinds_at_once_and_long_lists_are_cut(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = made.tensors() | {f"odd.{i:02}": np.zeros(1, np.float32) for i in range(14)}
    del tensors["net.embed.weight"]
    words = refused(
        tmp_path, made, tensors, "14 tensors that no rule uses: odd.00, ", "odd.09 and 4 more", "embed.weight"
    )
    assert "odd.10" not in words


def test_a_head_of_another_size_than_the_model(tmp_path: Path, made: SimpleNamespace) -> None:
    refused(tmp_path, made, made.tensors(), "score.weight yields 4 labels", **{"head.out.kernel": (8, 5)})


def test_a_bias_that_the_model_has_no_place_for(tmp_path: Path, made: SimpleNamespace) -> None:
    refused(tmp_path, made, made.tensors(), "score.bias", "no bias", **{"head.out.bias": None})


# --- heads from tokens ---------------------------------------------------------------------------------------------


def causal(made: SimpleNamespace) -> Tensors:
    tensors = made.tensors()
    del tensors["score.weight"], tensors["score.bias"]
    rng = np.random.default_rng(3)
    tensors["lm_head.weight"] = rng.standard_normal((made.vocab, made.width)).astype(ml_dtypes.bfloat16)
    return tensors


def test_two_rows_are_subtracted_in_float32(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = causal(made)
    targets = made.targets(**{"head.out.kernel": (made.width, 1), "head.out.bias": None})
    got = loaded(tmp_path, made, tensors, targets, token_ids=(3, 5), method="from_2_way_softmax")
    table = tensors["lm_head.weight"].astype(np.float32)
    np.testing.assert_array_equal(got["head.out.kernel"], (table[5] - table[3])[:, None])


def test_rows_of_the_tied_embedding(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = causal(made)
    targets = made.targets(**{"head.out.kernel": (made.width, 3), "head.out.bias": None})
    got = loaded(tmp_path, made, tensors, targets, token_ids=(7, 0, 7), method="no_post_processing", tied=True)
    np.testing.assert_array_equal(got["head.out.kernel"], tensors["net.embed.weight"][[7, 0, 7]].T)


def test_the_bias_of_the_lm_head_comes_along(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = causal(made) | {"lm_head.bias": np.arange(made.vocab, dtype=np.float32) ** 2}
    targets = made.targets(**{"head.out.kernel": (made.width, 1), "head.out.bias": (1,)})
    got = loaded(tmp_path, made, tensors, targets, token_ids=(3, 5), method="from_2_way_softmax")
    np.testing.assert_array_equal(got["head.out.bias"], [16.0])


# --- devices -------------------------------------------------------------------------------------------------------

SPECS = {
    "backbone.tokens.table": P("model", None),
    "backbone.layers.up.kernel": P(None, None, "model"),
    "backbone.layers.up.bias": P(None, "model"),
    "backbone.layers.q.kernel": P(None, "data", "model"),
    "backbone.layers.k.kernel": P(None, "model", "data"),
    "backbone.layers.v.bias": P(None, ("data", "model")),
    "head.out.kernel": P("model", "data"),
}


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices, which the suite's configuration fakes")
def test_every_device_gets_its_slice(tmp_path: Path, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    targets = {
        path: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=NamedSharding(mesh, SPECS.get(path, P())))
        for path, t in made.targets().items()
    }
    read: dict[str, int] = {}
    read_slice = Reader.read

    def counting(self: Reader, name: str, index: Any = None) -> np.ndarray:
        values = read_slice(self, name, index)
        read[name] = read.get(name, 0) + values.size
        return values

    monkeypatch.setattr(Reader, "read", counting)
    tensors = made.tensors()
    with Reader(made.write(tmp_path, tensors)) as reader:
        head = find_head(reader, made.table, num_labels=None, width=made.width)
        leaves = load(reader, made.table, head, targets)
    for path, leaf in leaves.items():
        assert leaf.sharding == targets[path].sharding
    same({path: np.asarray(leaf) for path, leaf in leaves.items()}, expected(made, tensors))
    # Slices that several devices share are read once, and slices of different devices do not overlap.
    names = tensors.keys() - {"score.weight", "score.bias"}  # these few numbers are read whole
    assert {name: read[name] for name in names} == {name: tensors[name].size for name in names}


def test_pieces_and_strips_join_without_seams(
    tmp_path: Path, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_PIECE_BYTES", 5 * made.width * 4)
    monkeypatch.setattr(loading, "_STRIP", 3)
    tensors = made.tensors()
    same(loaded(tmp_path, made, tensors), expected(made, tensors))


def test_the_cpu_adopts_the_buffer(tmp_path: Path, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every weight is in memory twice for a while."""
    addresses = []
    aligned = loading._aligned

    def noting(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        buffer = aligned(shape, dtype)
        addresses.append(buffer.ctypes.data)
        return buffer

    monkeypatch.setattr(loading, "_aligned", noting)
    with Reader(made.write(tmp_path, made.tensors())) as reader:
        head = find_head(reader, made.table, num_labels=None, width=made.width)
        leaves = load(reader, made.table, head, made.targets())
    assert [leaf.unsafe_buffer_pointer() for leaf in leaves.values()] == addresses
