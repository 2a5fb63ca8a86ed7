from __future__ import annotations

import math

import numpy as np
import pytest

from jaxpool_conversions.verify import compare

OURS = {"a": np.array([1.0, 2.0], np.float32), "b": np.array([3.0, -1.0], np.float32)}


def test_difference_and_agreement() -> None:
    parity = compare(OURS, {"a": np.array([1.0, 2.0]), "b": np.array([-1.5, -1.0])})
    assert (parity.texts, parity.max_difference, parity.agreement, parity.worst) == (2, 4.5, 0.5, "b")
    assert str(parity) == "2 texts: max |Δlogit| 4.50e+00 (at b), labels agree on 50.0%"


def test_equal() -> None:
    assert compare(OURS, OURS).max_difference == 0
    assert compare(OURS, OURS).agreement == 1


def test_one_label_agrees_by_sign() -> None:
    assert (
        compare({"a": np.array([0.1]), "b": np.array([1.0])}, {"a": np.array([-0.1]), "b": np.array([9.0])}).agreement
        == 0.5
    )


def test_nan_is_the_worst() -> None:
    parity = compare(OURS, OURS | {"a": np.array([np.nan, 2.0])})
    assert parity.worst == "a"
    assert math.isnan(parity.max_difference)


@pytest.mark.parametrize("theirs", [{}, {"a": np.ones(2)}, {"a": np.ones(3), "b": np.ones(3)}])
def test_what_cannot_be_compared(theirs: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"keys|labels"):
        compare(OURS, theirs)
