"""``jaxpool fit --lora``: an adapter that PEFT loads, with the answers that training saw; the base stays as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import peft_adapters
import peft_files
import pytest
import tiny
from parity_cases import CASES
from toy import toy, write_bert

from jaxpool import LLM, PoolingParams
from jaxpool.errors import ValidationError
from jaxpool.training.fit import fit
from jaxpool.training.recipe import Recipe
from jaxpool_conversions.low_rank import changes
from jaxpool_conversions.peft_export import adapted_kernels, adapter_tensors
from jaxpool_conversions.peft_folder import read_peft

RECIPE = Recipe(lora=3, epochs=6, batch_size=8, learning_rate=1e-2, patience=6)


def test_an_adapter_is_trained_and_peft_answers_alike(tmp_path: Path) -> None:
    base = write_bert(tmp_path / "base")
    before = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    data, held = toy(96, 1, words=18), toy(24, 2)
    fitted = fit(base, data, tmp_path / "adapter", validation=held, recipe=RECIPE, log=lambda line: None)
    assert hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest() == before
    assert fitted.best > 0, "training must have helped, or the adapter is zero"
    assert fitted.history[fitted.best].scores.accuracy > 0.9

    raw = PoolingParams(use_activation=False)
    with LLM(str(base), runner="pooling", merge_lora=fitted.folder, dtype="float32") as llm:
        outputs = llm.encode(list(held.texts), raw, pooling_task="classify", use_tqdm=False)
        assert llm.labels == fitted.labels == ("bad", "good")
    ours = np.array([output.outputs.data for output in outputs])
    ids = [output.prompt_token_ids for output in outputs]
    theirs = peft_adapters.torch_logits(base, fitted.folder, ids, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert [("bad", "good")[i] for i in ours.argmax(1)].count("good") == list(held.labels).count("good")
    settings = json.loads((fitted.folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)


def test_an_adapter_goes_with_no_frozen_backbone() -> None:
    with pytest.raises(ValidationError, match="lora goes with neither freeze nor contrast"):
        Recipe(lora=3, freeze="backbone").settled(100, {"a": 50, "b": 50})


@pytest.mark.parametrize("case", ["gpt2", "modernbert", "falcon", "jamba", "distilbert", "mixtral"])
def test_what_is_written_is_what_was_trained(case: str, tmp_path: Path) -> None:
    """Also where a checkpoint keeps several layers as one: query, key and value, in blocks or head by head."""
    model_type, config = CASES[next(name for name in CASES if name.startswith(case))]
    leaves, table, head = tiny.parameters(tiny.save(tmp_path / "base", model_type, **config))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    kernels = adapted_kernels(table, shapes)
    factors = {
        path: (random(*shapes[path][:-1], 2), random(*shapes[path][:-2], 2, shapes[path][-1])) for path in kernels
    }
    heads = {path: np.asarray(leaf) for path, leaf in leaves.items() if path.startswith("head.")}
    tensors, ranks = adapter_tensors(factors, heads, table, head)
    tensors = {name.removeprefix("base_model.model."): one for name, one in tensors.items()}
    patterns = {module: rank for module, rank in ranks.items() if rank != 2}
    folder = peft_files.write(
        tmp_path / "adapter", tensors, lora_alpha=2, rank_pattern=patterns, alpha_pattern=patterns,
        modules_to_save=["classifier", "score", "head"][:2 + (case == "modernbert")],
    )  # fmt: skip
    found = changes(read_peft(folder), table, shapes)
    assert found.factors.keys() == set(kernels)
    for path, (left, right) in factors.items():
        np.testing.assert_allclose(found.factors[path].left @ found.factors[path].right, left @ right, atol=1e-5)
    for path, places in found.whole.items():
        np.testing.assert_array_equal(places[()], heads[path])
    assert found.whole.keys() == heads.keys() - ({"head.out.bias"} if head.bias is None else set())
