"""Each field of a config that changes torch's answer changes ours equally, or is refused.

``test_resolve.py`` shows that no field goes unread; here numbers show that fields are read rightly.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from parity_cases.first import BERT, GPT2, LLAMA

from jaxpool.checkpoints.spec import Spec, resolve
from jaxpool.errors import JaxpoolError
from jaxpool_conversions.rules import HeadSource

SMALL = {"num_hidden_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "bert": BERT | SMALL,
    "roberta": BERT | SMALL | {"pad_token_id": 1},
    "gpt2": GPT2 | {"n_layer": 2},
    "llama": LLAMA | SMALL,
    "qwen2": LLAMA | SMALL,
    "gemma2": LLAMA | SMALL | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "mistral": LLAMA | SMALL | {"sliding_window": 6},
    "deberta-v2": BERT | SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4},
    "modernbert": BERT | SMALL | {"num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0},
}
LEFT_OUT = {"architectures", "dtype", "id2label", "label2id", "transformers_version", "problem_type", "vocab_size"}
LENGTH = 24
TOLERANCE = 1e-4


def others(name: str, value: Any) -> list[Any]:
    """Values to put in the place of one."""
    if name == "rope_parameters":
        return [{"rope_type": "linear", "rope_theta": 77.0, "factor": 2.0}, {"rope_type": "default", "rope_theta": 9.0}]
    if name == "layer_types" and value:
        return [[value[0]] * len(value), ["full_attention"] * len(value), ["sliding_attention"] * len(value)]
    if name == "pos_att_type":
        return [["c2p"], ["p2c"], []]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2 or 3, *([value // 2] if value > 1 else [])]
    if isinstance(value, float):
        return [value * 3 + 1]
    if isinstance(value, str):
        return ["relu" if value != "relu" else "silu", "mean"]
    return [6, 0.5] if value is None else []


class Torch:
    """The reference: one set of weights under changing configs."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.weights = load_file(folder / "model.safetensors")

    def __call__(self, config: Any, ids: list[int]) -> np.ndarray | None:
        """Its logits; None where it fails or would make up weights."""
        import torch

        config._attn_implementation = "eager"
        try:
            model = tiny.classifier(config)(config)
            keys = model.load_state_dict(self.weights, strict=False)
            if keys.missing_keys or keys.unexpected_keys:
                return None
            with torch.no_grad():
                tokens = torch.tensor([ids])
                return model.eval()(tokens, attention_mask=torch.ones_like(tokens)).logits[0].numpy()
        except Exception:  # whatever an impossible config makes of it
            return None


def spec_of(config: Any) -> Spec:
    return resolve(config, lambda family, labels, width: HeadSource("score.weight", None, labels or 2))


def decided(spec: Spec) -> tuple[Any, ...]:
    return spec.config, spec.head, spec.pooling, spec.late, spec.eos_token


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODELS)
def test_every_field_that_matters_to_torch_matters_to_us(model_type: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, model_type, **MODELS[model_type])
    stored = json.loads((tmp_path / "config.json").read_text())
    ids = np.random.default_rng(0).integers(10, 90, LENGTH).tolist()
    from transformers import AutoConfig

    reference, base = Torch(tmp_path), AutoConfig.from_pretrained(tmp_path)
    before, unchanged = reference(base, ids), decided(spec_of(base))
    assert before is not None
    np.testing.assert_allclose(tiny.jaxpool_logits(tmp_path, [ids])[0], before, atol=TOLERANCE)
    mattered, refused = set(), set()
    for field in sorted({field.name for field in dataclasses.fields(type(base))} - LEFT_OUT):
        for value in others(field, getattr(base, field, None)):
            (tmp_path / "config.json").write_text(json.dumps(stored | {field: value}))
            try:
                config = AutoConfig.from_pretrained(tmp_path)
            except Exception:  # transformers refuses the value
                continue
            after = reference(config, ids)
            if after is None or not np.isfinite(after).all():
                continue
            matters = bool(np.abs(after - before).max() > TOLERANCE)
            try:
                if not matters and decided(spec_of(AutoConfig.from_pretrained(tmp_path))) == unchanged:
                    continue
                ours = tiny.jaxpool_logits(tmp_path, [ids])[0]
            except JaxpoolError:
                refused.add(field)
                continue
            np.testing.assert_allclose(ours, after, atol=TOLERANCE, err_msg=f"{field}={value!r}")
            mattered |= {field} if matters else set()
    assert len(mattered) >= 3, (mattered, refused)
    (tmp_path / "config.json").write_text(json.dumps(stored))
