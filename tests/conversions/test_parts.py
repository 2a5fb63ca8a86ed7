"""Fused tensors: parts of unequal width, and parts that alternate head by head, read by slices and written back."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpool_conversions.accounting import runs, shape_after
from jaxpool_conversions.export import export
from jaxpool_conversions.rules import HeadSource, Part, Rule, Table, Transpose

HEAD = HeadSource("score.weight", None, 2)


def parts(widths: tuple[int, ...], groups: int) -> list[Part]:
    starts = np.cumsum([0, *widths[:-1]])
    return [Part(0, int(start), sum(widths), width, groups) for start, width in zip(starts, widths)]


def taken(whole: np.ndarray, part: Part) -> np.ndarray:
    """What a part means, in numpy."""
    grouped = whole.reshape(part.groups, part.count, -1, whole.shape[1])
    return grouped[:, part.index : part.index + part.width].reshape(-1, whole.shape[1])


@pytest.mark.parametrize(("widths", "groups"), [((1, 1, 1), 1), ((4, 1, 1), 1), ((1, 1, 1), 4), ((3, 1, 1), 2)])
def test_slices_and_the_way_back(widths: tuple[int, ...], groups: int) -> None:
    unit, width = 3, 5
    whole = np.random.default_rng(0).normal(size=(groups * sum(widths) * unit, width)).astype(np.float32)
    leaves, rules = {}, []
    for i, part in enumerate(parts(widths, groups)):
        steps = (part, Transpose())
        wanted = taken(whole, part).T
        assert shape_after(whole.shape, steps) == wanted.shape
        for start, stop in ((0, wanted.shape[1]), (1, wanted.shape[1]), (2, wanted.shape[1] - 1)):
            out = np.full((2, stop - start), np.nan, np.float32)
            for source, place in runs((slice(1, 3), slice(start, stop)), steps, whole.shape):
                out[place] = whole[source].T
            np.testing.assert_array_equal(out, wanted[1:3, start:stop])
        leaves[f"backbone.{i}"] = wanted
        rules.append(Rule("fused.weight", f"backbone.{i}", steps))
    np.testing.assert_array_equal(export(leaves, Table("", tuple(rules)), HEAD)["fused.weight"], whole)
