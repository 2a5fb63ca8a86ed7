"""Random PEFT adapters on tiny checkpoints, and the answers that PEFT and torch give with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tiny


def save(base: Path, folder: Path, *, seed: int = 0, task_type: str | None = "SEQ_CLS", **settings: Any) -> Path:
    """Writes an adapter of random weights, none of them zero; returns its folder.

    Args:
        base: a checkpoint.
        folder: where to.
        seed: of the weights.
        task_type: as in PEFT.
        settings: fields of PEFT's ``LoraConfig``; ``num_labels`` of the base's class.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    model = _model(base, settings.pop("num_labels", None))
    with _quiet():
        wrapped = get_peft_model(model, LoraConfig(task_type=task_type, **settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if weight.requires_grad and "magnitude" not in name:
                weight.copy_(torch.randn(weight.shape) * 0.15)
            elif weight.requires_grad:
                weight.mul_(1 + 0.3 * torch.rand(weight.shape))
    with _quiet():
        wrapped.save_pretrained(folder)
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PEFT's warnings about transformers and about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def torch_logits(base: Path, adapter: Path, ids: list[list[int]], num_labels: int | None = None) -> np.ndarray:
    """Raw logits of PEFT in float32, one text at a time: ``[texts, labels]``."""
    import torch
    from peft import PeftModel

    with _quiet():
        model = PeftModel.from_pretrained(_model(base, num_labels), adapter).eval()
    with torch.no_grad():
        out = [model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits[0] for row in ids]
    return torch.stack(out).float().numpy()


def _model(base: Path, num_labels: int | None) -> Any:
    import torch
    from transformers import AutoConfig

    changed = {} if num_labels is None else {"num_labels": num_labels}
    config = AutoConfig.from_pretrained(base, **changed)
    return tiny.classifier(config).from_pretrained(
        base, config=config, dtype=torch.float32, attn_implementation="eager", ignore_mismatched_sizes=True
    )
