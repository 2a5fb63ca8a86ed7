"""Activations on the host give what those of the program give."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from jaxpool.ops import host_activations, pooling


@pytest.mark.parametrize("kind", get_args(pooling.Activation))
@pytest.mark.parametrize("labels", [1, 5])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_host_and_device_agree(kind: pooling.Activation, labels: int, scale: float) -> None:
    logits = (np.random.default_rng(0).standard_normal((64, labels)) * scale).astype(np.float32)
    found, wanted = host_activations.activate(logits, kind), np.asarray(pooling.activate(logits, kind))
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)
