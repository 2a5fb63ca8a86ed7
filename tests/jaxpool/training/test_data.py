"""Splits and folds: nothing lost, nothing twice, every label spread evenly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpool.errors import InputFileError, ValidationError
from jaxpool.training.data import Label, Labelled, folds, split
from jaxpool.training.recipe import FEW, Recipe, label_weights

COUNTS = st.lists(st.integers(2, 30), min_size=2, max_size=5)


def single(counts: list[int]) -> Labelled:
    labels = [f"label {i}" for i, count in enumerate(counts) for _ in range(count)]
    return Labelled([f"text {i}" for i in range(len(labels))], labels)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(2, 6), st.integers(0, 5))
def test_folds_deal_every_label_evenly(counts: list[int], most: int, seed: int) -> None:
    data = single(counts)
    parts = folds(data, most, seed)
    assert 2 <= len(parts) <= max(2, most)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(data)))
    for label in data.order:
        held = [Counter(data.take(rows).labels)[label] for rows in parts]
        assert max(held) - min(held) <= 1
        assert max(held) < sum(held)  # so that no training part lacks it


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.floats(0.05, 0.9), st.integers(0, 5))
def test_a_split_keeps_every_label_on_both_sides(counts: list[int], fraction: float, seed: int) -> None:
    data = single(counts)
    training, held = split(data, fraction, seed)
    assert sorted([*training.texts, *held.texts]) == sorted(data.texts)
    assert set(training.labels) == set(held.labels) == set(data.labels)


def test_folds_of_several_labels_and_of_numbers() -> None:
    several: list[Label] = [("rare",) if i % 10 == 0 else ("often",) if i % 2 else () for i in range(60)]
    parts = folds(Labelled(["t"] * 60, several, problem="multi"), 3, 0)
    assert [sum(several[i] == ("rare",) for i in rows) for rows in parts] == [2, 2, 2]
    numbers: list[Label] = [float(i) for i in range(60)]
    parts = folds(Labelled(["t"] * 60, numbers, problem="regression"), 3, 0)
    assert np.ptp([np.mean([numbers[i] for i in rows]) for rows in parts]) < 6


def test_a_label_of_a_single_row() -> None:
    data = single([1, 5])
    with pytest.raises(InputFileError, match="a single row labelled 'label 0'"):
        folds(data, 3, 0)
    assert len(folds(data, 3, 0, strict=False)) == 2


def test_weights_count_labels_alike() -> None:
    recipe = Recipe(balanced=True)
    weights = label_weights(np.array([0] * 9 + [1]), 2, recipe)
    assert weights[:9].sum() == pytest.approx(weights[9])
    assert weights.mean() == pytest.approx(1)
    several = np.array([[1, 0]] * 8 + [[0, 1], [0, 0]], np.float32)
    weights = label_weights(several, 2, recipe)
    assert weights[8] == pytest.approx(8 * weights[0])
    assert np.ptp(label_weights(several, 2, Recipe(balanced=False))) == 0


def test_what_is_automatic() -> None:
    few = Recipe().settled(40, {"a": 20, "b": 20})
    assert (few.freeze, few.contrast, few.folds, few.balanced) == ("backbone", 60, 3, False)
    many = Recipe().settled(FEW + 1, {"a": 1500, "b": 501})
    assert (many.freeze, many.contrast, many.folds, many.epochs) == ("nothing", 0, 0, 5)
    assert Recipe(epochs=2).settled(40, {"a": 20, "b": 20}).freeze == "nothing"
    assert Recipe().settled(40, {"a": 30, "b": 10}).balanced
    assert Recipe(balanced=False).settled(40, {"a": 30, "b": 10}).balanced is False
    assert Recipe().settled(300, {}).contrast == 0  # of numbers there are no pairs
    with pytest.raises(ValidationError, match="neither freeze nor epochs"):
        Recipe(contrast=10, epochs=2).settled(40, {"a": 20, "b": 20})
