"""Files of other versions: the same tensors under other names, or with copies, or with code of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from parity_cases import CASES
from safetensors.numpy import load_file, save_file

from jaxpool.errors import ConfigError, WeightsError


def made(folder: Path, case: str) -> list[list[int]]:
    """A checkpoint, and texts for it."""
    model_type, config = CASES[case]
    tiny.save(folder, model_type, **config)
    return tiny.prompts(config["vocab_size"], (3, 17), end=config.get("eos_token_id"))


def rename(folder: Path, change: Callable[[str], str | None]) -> set[str]:
    """Gives every tensor another name, or drops it; returns the new names."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {new: values for name, values in tensors.items() if (new := change(name)) is not None}
    save_file(renamed, folder / "model.safetensors")
    return set(renamed)


def test_gemma_3_of_transformers_4_52_and_later(tmp_path: Path) -> None:
    ids = made(tmp_path, "gemma3-text-part")
    before = tiny.jaxpool_logits(tmp_path, ids)
    tops = {"language_model.model.": "model.language_model.", "vision_": "model.vision_", "multi_": "model.multi_"}

    def change(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in tops.items() if name.startswith(old)), name)

    names = rename(tmp_path, change)
    for top in ("language_model.layers", "vision_tower", "multi_modal_projector"):
        assert any(name.startswith(f"model.{top}.") for name in names)
    assert {name for name in names if not name.startswith("model.")} <= {"score.weight"}
    np.testing.assert_array_equal(tiny.jaxpool_logits(tmp_path, ids), before)


@pytest.mark.parametrize("case", ["bart", "t5"])
@pytest.mark.parametrize("kept", [("encoder",), ("decoder",), ("encoder", "decoder"), ("shared", "encoder", "decoder")])
def test_the_shared_embedding_may_be_stored_on_either_side(case: str, kept: tuple[str, ...], tmp_path: Path) -> None:
    """Of tied tensors some files hold one, and not always the same, some hold all."""
    ids = made(tmp_path, case)
    before = tiny.jaxpool_logits(tmp_path, ids)
    tensors = load_file(tmp_path / "model.safetensors")
    (shared,) = [name for name in tensors if name.endswith("shared.weight")]
    table = tensors.pop(shared)
    names = [shared if side == "shared" else shared.replace("shared", f"{side}.embed_tokens") for side in kept]
    save_file(tensors | {name: table.copy() for name in names}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(tiny.jaxpool_logits(tmp_path, ids), before)


def test_no_embedding_at_all_is_an_error(tmp_path: Path) -> None:
    ids = made(tmp_path, "bart")
    rename(tmp_path, lambda name: None if name.endswith("shared.weight") else name)
    with pytest.raises(WeightsError, match=r"1 missing tensors: shared.weight or encoder.embed_tokens.weight or"):
        tiny.jaxpool_logits(tmp_path, ids)


def published(folder: Path, **changes: Any) -> list[list[int]]:
    """A GTE as Alibaba published it, before transformers had the class."""
    ids = made(folder, "gte")
    rename(folder, lambda name: name.replace("gte.", "new."))
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    own = {"model_type": "new", "architectures": ["NewForSequenceClassification"], "pack_qkv": True,
           "layer_norm_type": "layer_norm", "position_embedding_type": "rope", "logn_attention_scale": False,
           "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | own | changes))
    return ids


def ntk(**more: float) -> dict[str, Any]:
    return {"rope_theta": 5000, "rope_scaling": {"type": "ntk", "factor": 2.0} | more}


@pytest.mark.parametrize("fields", [{"rope_theta": 5000}, {}, ntk()])
def test_gte_as_its_authors_published_it(fields: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GteForSequenceClassification

    made(tmp_path / "gte", "gte")
    ids = published(tmp_path / "new", **fields)
    model = GteForSequenceClassification.from_pretrained(tmp_path / "gte", attn_implementation="eager").eval()
    # As the authors' code turns (https://kexue.fm/archives/9706): NTK scales the base, and every angle a little.
    factor = fields.get("rope_scaling", {}).get("factor", 1.0)
    theta, size = fields.get("rope_theta", 10000) * factor, 12
    model.gte.rotary_emb.inv_freq = 1 / (theta ** (torch.arange(0, size, 2) / size)) / factor ** (2 / size)
    with torch.no_grad():
        theirs = [model(torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits[0].numpy() for row in ids]
    np.testing.assert_allclose(tiny.jaxpool_logits(tmp_path / "new", ids), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logn_attention_scale": True}, "logn_attention_scale=True.* implements False"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type='rms_norm'"),
        ({"pack_qkv": False}, "pack_qkv=False"),
        (ntk(mixed_b=0.5), "rope_type='ntk'"),
    ],
)
def test_switches_of_the_authors_code_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    ids = published(tmp_path, **fields)
    with pytest.raises(ConfigError, match=message):
        tiny.jaxpool_logits(tmp_path, ids)
