"""Writes ``conversions/PARITY.md``: how far our float32 logits are from transformers with torch, per model type.

Run from the repository root: ``python tests/parity_table.py``. It builds every case of ``parity_cases``.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "conversions" / "PARITY.md"


def main() -> None:
    """Measures every case and writes the page."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import jax
    import numpy as np
    import tiny
    import torch
    import transformers
    from parity_cases import CASES

    rows: dict[str, list[tuple[float, float, int]]] = {}
    for name, (model_type, config) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = tiny.save(Path(folder), model_type, **config)
            ids = tiny.prompts(config["vocab_size"], end=config.get("eos_token_id"))
            theirs, ours = tiny.torch_logits(checkpoint, ids), tiny.jaxpool_logits(checkpoint, ids)
        delta, spread = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
        rows.setdefault(model_type, []).append((delta, spread, theirs.shape[1]))
        print(f"{name}: {delta:.1e}", file=sys.stderr)
    lines = [
        "# Parity with transformers",
        "",
        "Largest difference between our float32 logits and those of transformers with torch, over random tiny "
        "checkpoints whose configs exercise the features of each model type (`tests/parity_cases`), texts of "
        f"{', '.join(map(str, tiny.LENGTHS))} tokens. Written by `python tests/parity_table.py`, never by hand: "
        f"Python {platform.python_version()}, jax {jax.__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}.",
        "",
        "| model type | configs | label counts | largest logit | max difference |",
        "|---|---|---|---|---|",
        *(
            f"| {model_type} | {len(cases)} | {', '.join(map(str, sorted({c[2] for c in cases})))} "
            f"| {max(c[1] for c in cases):.1f} | {max(c[0] for c in cases):.1e} |"
            for model_type, cases in sorted(rows.items())
        ),
        "",
    ]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
