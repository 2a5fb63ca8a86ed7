"""Adapters, merged and beside the weights: the answers of PEFT with torch, through the public API."""

from __future__ import annotations

from pathlib import Path

import adapter_cases
import numpy as np
import peft_adapters
import pytest
import tiny
from parity_cases import CASES

from jaxpool import LLM, LoRARequest, PoolingParams
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.engine import Row
from jaxpool.errors import ValidationError

RAW = PoolingParams(use_activation=False)
LENGTHS = (1, 7, 16, 33)
PADDED = ("bert", "gpt2", "mixtral", "jamba")
"""Bases whose texts are computed one to a row as well: every kind of layer there is; each costs a compile."""


def base_of(case: str, folder: Path) -> tuple[Path, list[list[int]]]:
    """A tiny checkpoint and texts for it."""
    case = next((name for name in CASES if name == case), "") or next(n for n in CASES if n.startswith(case))
    model_type, config = CASES[case]
    return tiny.save(folder, model_type, **config), tiny.prompts(config["vocab_size"], LENGTHS)


def merged(base: Path, adapter: Path, ids: list[list[int]]) -> np.ndarray:
    with LLM(str(base), runner="pooling", skip_tokenizer_init=True, dtype="float32", merge_lora=adapter) as llm:
        return np.array([one.outputs.data for one in llm.encode(ids, RAW, pooling_task="classify", use_tqdm=False)])


def check(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", adapter_cases.SERVED)
def test_adapters_answer_as_with_peft(case: str, tmp_path: Path) -> None:
    """Each alone merged; all of them and the bare model mixed in one batch, one to a row and several to a row."""
    name, kinds = adapter_cases.SERVED[case]
    base, ids = base_of(name, tmp_path / "base")
    plain = tiny.torch_logits(base, ids)
    theirs, requests = [plain], [None]
    for number, kind in enumerate(kinds, 1):
        adapter = peft_adapters.save(base, tmp_path / f"adapter{number}", seed=number, **kind)
        theirs.append(peft_adapters.torch_logits(base, adapter, ids, kind.get("num_labels")))
        requests.append(LoRARequest(f"adapter{number}", number, str(adapter)))
        if theirs[-1].shape == plain.shape:
            assert np.abs(theirs[-1] - plain).min() > 1e-3, "the adapter must matter, or the comparison says nothing"
    check(merged(base, Path(requests[-1].lora_path), ids), theirs[-1])

    room = {"max_loras": len(kinds), "max_lora_rank": 8, "max_lora_cls_labels": 5}
    how = {"runner": "pooling", "skip_tokenizer_init": True, "dtype": "float32"}
    with LLM(str(base), enable_lora=True, **room, **how) as llm:
        texts = [(text, which) for text in range(len(ids)) for which in range(len(requests))]
        loaded = llm.engine.adapters.of(requests)
        rows = [Row(ids[text], None, False, adapter=loaded[which]) for text, which in texts]
        shapes = [(Bucket(2, 128, 16), np.arange(len(rows)) % 2)]
        if case in PADDED:
            shapes.append((Bucket(len(rows), 40), None))
        for shape, places in shapes:
            for values, (text, which) in zip(llm.engine.submit(rows, shape, places).result(), texts):
                check(values, theirs[which][text])


@pytest.mark.parametrize("case", adapter_cases.MERGED)
def test_what_cannot_be_served_beside_the_weights_is_merged(case: str, tmp_path: Path) -> None:
    name, kind = adapter_cases.MERGED[case]
    base, ids = base_of(name, tmp_path / "base")
    adapter = peft_adapters.save(base, tmp_path / "adapter", **kind)
    check(merged(base, adapter, ids), peft_adapters.torch_logits(base, adapter, ids))


@pytest.mark.parametrize(("model_type", "head"), [("qwen2", "causal"), ("roberta", "none")])
def test_adapters_bring_heads_to_a_model_without_one(model_type: str, head: str, tmp_path: Path) -> None:
    """What most adapters on the hub are made for: a language model as it was pretrained."""
    config = CASES[model_type][1] | {"num_labels": 2}
    base = tiny.save(tmp_path / "base", model_type, head=head, **config)
    ids = tiny.prompts(config["vocab_size"], LENGTHS)
    saved = ["classifier", "score"]
    adapter = peft_adapters.save(base, tmp_path / "adapter", target_modules="all-linear", r=2, modules_to_save=saved,
                                 num_labels=3)  # fmt: skip
    theirs = peft_adapters.torch_logits(base, adapter, ids, 3)
    how = {"convert": "classify", "skip_tokenizer_init": True, "dtype": "float32"}
    with LLM(str(base), enable_lora=True, max_lora_cls_labels=3, **how) as llm:
        request = LoRARequest("adapter", 1, str(adapter))
        outputs = llm.classify(ids, pooling_params=RAW, lora_request=request, use_tqdm=False)
        check(np.array([output.outputs.probs for output in outputs]), theirs)
        with pytest.raises(ValidationError, match="no head of its own: name an adapter"):
            llm.classify(ids, use_tqdm=False)
    check(merged(base, adapter, ids), theirs)
