"""Same logits as transformers with torch, through the public API, for configs that exercise every feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from parity_cases import CASES, FIRST
from parity_cases.first import LLAMA

from jaxpool_conversions.families import families


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_equal_torch(case: str, tmp_path: Path) -> None:
    model_type, config = CASES[case]
    folder = tiny.save(tmp_path, model_type, **config)
    ids = tiny.prompts(config["vocab_size"], end=config.get("eos_token_id"))
    theirs = tiny.torch_logits(folder, ids)
    assert np.ptp(theirs, axis=0).min() > 1e-2, "the checkpoint must tell texts apart, or the comparison says nothing"
    np.testing.assert_allclose(tiny.jaxpool_logits(folder, ids), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)
def test_bfloat16_keeps_the_label_wherever_torch_is_sure(case: str, tmp_path: Path) -> None:
    """Bounds for every model type: probabilities within 0.05 of float32, the same label where its margin is 0.05.

    Mixtures come close to the first: a router near a tie sends a token to another expert, in torch's bfloat16 as well.
    """
    model_type, config = CASES[case]
    folder = tiny.save(tmp_path, model_type, **config)
    ids = tiny.prompts(config["vocab_size"], tiny.ONE_BUCKET, end=config.get("eos_token_id"))
    theirs, ours = map(tiny.softmax, (tiny.torch_logits(folder, ids), tiny.jaxpool_logits(folder, ids, "bfloat16")))
    np.testing.assert_allclose(ours, theirs, atol=0.05, rtol=0)
    best = np.sort(theirs, axis=1)
    sure = best[:, -1] - best[:, -2] > 0.05
    assert sure.sum() >= 4, "too few texts whose label is beyond doubt"
    assert (ours.argmax(1) == theirs.argmax(1))[sure].all()


def test_bfloat16_is_tested_for_every_model_type() -> None:
    assert FIRST.keys() == families().keys() - {"llama4"}  # its text part is: llama4_text; the whole has no classifier


def test_long_texts_attend_in_blocks_with_equal_results(tmp_path: Path) -> None:
    """1,536 tokens are attended block by block; torch does it in one piece."""
    folder = tiny.save(
        tmp_path,
        "mistral",
        **(LLAMA | {"num_labels": 2, "sliding_window": 700, "max_position_embeddings": 1536}),
    )
    ids = tiny.prompts(103, (1536, 1100))
    np.testing.assert_allclose(tiny.jaxpool_logits(folder, ids), tiny.torch_logits(folder, ids), atol=1e-4, rtol=0)
