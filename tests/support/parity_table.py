"""Writes ``conversions/PARITY.md``: how far our numbers are from transformers with torch, per model type.

Run from the repository root: ``python tests/support/parity_table.py``. It builds every case of ``parity_cases``, or
those of the model types that are named after it, and keeps the other rows.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

PAGE = Path(__file__).parents[2] / "conversions" / "PARITY.md"


def measure(name: str) -> tuple[str, float, float, int, float]:
    """One case: its model type, the largest difference, the largest logit, the number of labels, and bfloat16.

    That is the largest difference of a probability, for the one case of each model type that is tested; 0 for others.
    """
    import numpy as np
    import tiny
    from parity_cases import CASES, FIRST

    model_type, config = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = tiny.save(Path(folder), model_type, **config)
        ids = tiny.prompts(config["vocab_size"], end=config.get("eos_token_id"))
        theirs, ours = tiny.torch_logits(checkpoint, ids), tiny.jaxpool_logits(checkpoint, ids)
        half = 0.0
        if name == FIRST[model_type]:
            ids = tiny.prompts(config["vocab_size"], tiny.ONE_BUCKET, end=config.get("eos_token_id"))
            pair = tiny.torch_logits(checkpoint, ids), tiny.jaxpool_logits(checkpoint, ids, "bfloat16")
            half = float(np.abs(np.subtract(*map(tiny.softmax, pair))).max())
    return model_type, float(np.abs(ours - theirs).max()), float(np.abs(theirs).max()), theirs.shape[1], half


def main() -> None:
    """Measures every case, one process a core, and writes the page."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    import jax
    import tiny
    import torch
    import transformers
    from parity_cases import CASES

    rows: dict[str, list[tuple[float, float, int, float]]] = {}
    named = sys.argv[1:]
    wanted = [name for name, (model_type, _) in CASES.items() if not named or model_type in named]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for model_type, *figures in pool.map(measure, wanted):
            rows.setdefault(model_type, []).append(tuple(figures))
            print(f"{model_type}: {figures[0]:.1e}", file=sys.stderr)
    table = {
        model_type: f"| {model_type} | {len(cases)} | {', '.join(map(str, sorted({c[2] for c in cases})))} "
        f"| {max(c[1] for c in cases):.1f} | {max(c[0] for c in cases):.1e} "
        f"| {max(c[3] for c in cases):.3f} |"
        for model_type, cases in rows.items()
    }
    if named:
        kept = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
        table = {line.split(" | ")[0].removeprefix("| "): line for line in kept} | table
    lines = [
        "# Parity with transformers",
        "",
        "Largest difference between our float32 logits and those of transformers with torch, over random tiny "
        "checkpoints whose configs exercise the features of each model type (`tests/support/parity_cases`), texts of "
        f"{', '.join(map(str, tiny.LENGTHS))} tokens; and the largest difference between the probabilities of our "
        f"bfloat16 and of torch's float32, texts of {tiny.ONE_BUCKET[0]} to {tiny.ONE_BUCKET[-1]} tokens. Written by "
        f"`python tests/support/parity_table.py`, not by hand: Python {platform.python_version()}, jax "
        f"{jax.__version__}, transformers {transformers.__version__}, torch {torch.__version__}.",
        "",
        "| model type | configs | label counts | largest logit | max difference | bfloat16 |",
        "|---|---|---|---|---|---|",
        *(table[model_type] for model_type in sorted(table)),
        "",
    ]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
