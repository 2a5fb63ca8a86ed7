"""RoBERTa-like positions follow from the ids: padding ids inside a text do not count, our own padding is not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from parity_cases import CASES

from jaxpool import LLM, PoolingParams

PAD = 1
TEXTS = [
    [5, PAD, 7, 8],
    [PAD, PAD, 9],
    [PAD],
    [3, 4, PAD, PAD],
    [6, 0, 2, PAD, 11, 0],  # 0 is what our batches are padded with
    [7],
    [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, PAD, 19, 20],
]


@pytest.mark.parametrize("case", ["roberta", "mpnet"])
def test_padding_ids_inside_a_text_are_positioned_as_torch_does(case: str, tmp_path: Path) -> None:
    model_type, config = CASES[case]
    folder = tiny.save(tmp_path, model_type, **config)
    params = PoolingParams(use_activation=False)
    with LLM(str(folder), runner="pooling", skip_tokenizer_init=True) as llm:
        together = llm.classify(TEXTS, pooling_params=params, use_tqdm=False)
        alone = [llm.classify([text], pooling_params=params, use_tqdm=False)[0] for text in TEXTS]
        assert llm.engine.spec.max_length == config["max_position_embeddings"] - PAD - 1
    ours, single = (np.array([one.outputs.probs for one in outputs]) for outputs in (together, alone))
    np.testing.assert_allclose(ours, tiny.torch_logits(folder, TEXTS), atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours, single, atol=1e-5, rtol=0)
