"""A cross-encoder: a checkpoint of the test data with the first of its labels only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file


def one_label(model: Path, folder: Path) -> Path:
    """Copies a checkpoint into ``folder``, cuts its head to one label, and returns the copy."""
    copy = Path(shutil.copytree(model, folder / model.name))
    for file in copy.iterdir():
        file.chmod(0o644)
    weights = load_file(copy / "model.safetensors")
    for name in weights:
        if name.startswith(("classifier.", "score.")):
            weights[name] = weights[name][:1].copy()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy
