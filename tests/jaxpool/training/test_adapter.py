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
from safetensors.numpy import load_file, save_file
from toy import WIDTH, toy, write_bert

from jaxpool import LLM, PoolingParams
from jaxpool.errors import ValidationError
from jaxpool.training.fit import fit
from jaxpool.training.recipe import Recipe
from jaxpool_conversions.low_rank import changes
from jaxpool_conversions.peft_export import adapted_kernels, adapter_tensors
from jaxpool_conversions.peft_folder import read_peft


def with_random_head(base: Path) -> Path:
    """A base whose head is there, and knows nothing: every step of training helps."""
    rng, config = np.random.default_rng(0), json.loads((base / "config.json").read_text())
    names = {0: "bad", 1: "good"}
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": names}
    (base / "config.json").write_text(json.dumps(config | {"label2id": {"bad": 0, "good": 1}}))
    head = {"pooler.dense.weight": (WIDTH, WIDTH), "classifier.weight": (2, WIDTH)}
    head |= {"pooler.dense.bias": (WIDTH,), "classifier.bias": (2,)}
    tensors = load_file(base / "model.safetensors")
    tensors |= {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in head.items()}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    return base


def test_an_adapter_is_trained_and_peft_answers_alike(tmp_path: Path) -> None:
    base = with_random_head(write_bert(tmp_path / "base"))
    before = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    data, recipe = toy(64, 1), Recipe(lora=3, epochs=3, batch_size=8, learning_rate=3e-4)
    fitted = fit(base, data, tmp_path / "adapter", validation=data, recipe=recipe, log=lambda line: None)
    assert hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest() == before
    assert fitted.best > 0
    assert any(values.any() for name, values in weights(fitted.folder).items() if "lora_B" in name)

    raw = PoolingParams(use_activation=False)
    with LLM(str(base), runner="pooling", merge_lora=fitted.folder, dtype="float32") as llm:
        outputs = llm.encode(list(data.texts), raw, pooling_task="classify", use_tqdm=False)
        assert llm.labels == fitted.labels == ("bad", "good")
    ours = np.array([output.outputs.data for output in outputs])
    ids = [output.prompt_token_ids for output in outputs]
    np.testing.assert_allclose(ours, peft_adapters.torch_logits(base, fitted.folder, ids), atol=1e-4, rtol=0)
    right = np.mean([("bad", "good")[i] == label for i, label in zip(ours.argmax(1), data.labels)])
    assert right == pytest.approx(fitted.history[fitted.best].scores.accuracy)
    assert json.loads((fitted.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter_model.safetensors")


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
