"""Writes ``conversions/HUB.md``: what becomes of published checkpoints as they lie on the hub.

Run from the repository root: ``python tests/support/hub_table.py``. It opens every folder of ``hub_layouts.py``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hub_layouts import CLASSIFIERS, EMBEDDERS, LAYOUTS, PAIRS, REWARDS_AND_GUARDS, TOKENS, V3, V4, Layout

if TYPE_CHECKING:
    import numpy as np

PAGE = Path(__file__).parents[2] / "conversions" / "HUB.md"
PARTS = {
    "Classifiers": CLASSIFIERS,
    "Entailment and reranking": PAIRS,
    "Rewards and guards": REWARDS_AND_GUARDS,
    "Tokens": TOKENS,
    "Embeddings": EMBEDDERS,
}
ERAS = {"every field, as before version 3": V3, "fields of version 4": V4}


def ours(folder: Path, layout: Layout) -> np.ndarray:
    """What jaxpool answers of a folder that ``hub_folders.make`` wrote, shaped as torch's answers."""
    import numpy as np
    from hub_folders import ids_of

    from jaxpool import LLM, PoolingParams

    dtype = "auto" if layout.dtype == "float16" else "float32"
    with LLM(str(folder), skip_tokenizer_init=True, dtype=dtype) as llm:
        raw = PoolingParams(use_activation=None if layout.labels == 0 and not layout.per_token else False)
        outputs = llm.encode(ids_of(layout), raw, pooling_task=llm.pooling_task, use_tqdm=False)
        assert llm.engine.spec.max_length <= 64, "the learned positions"
    data = [output.outputs.data for output in outputs]
    return np.concatenate(data) if layout.per_token else np.array(data)


def row(name: str, layout: Layout, figures: str) -> str:
    """A line of the table; ``figures`` is its last column."""
    facts = list(layout.changes)
    left = set(layout.config)
    for era, fields in ERAS.items():
        if fields.keys() <= layout.config.keys():
            facts.append(era)
            left -= fields.keys()
    facts += [f"`{field}`" for field in layout.config if field in left]
    dense = f", Dense {layout.activation}" if layout.dense else ""
    made = f"`{layout.model_type}`, {layout.dtype}" + (f", {layout.pooling}{dense}" if layout.pooling else "")
    outcome = "refused" if layout.refused else "opens, with a warning" if layout.warned else "opens"
    return f"| {name} | {made} | {', '.join(facts) or 'nothing'} | {outcome} | {figures} |"


def main() -> None:
    """Makes and opens every folder, and writes the page."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    import numpy as np
    from hub_folders import make

    named = [name for name in LAYOUTS if "/" in name]
    refused = sum(bool(LAYOUTS[name].refused) for name in named)
    lines = [
        "# Checkpoints as they lie on the hub",
        "",
        f"{len(named)} published checkpoints by name, and {len(LAYOUTS) - len(named)} folders without one. Each is a "
        "tiny random checkpoint made to look like the folder on the hub: fields of its `config.json`, names of "
        "tensors, dtype, container, files of Sentence-Transformers. Compared with transformers, or with the "
        "checkpoint's own code written again in plain torch (`tests/support/own_code.py`), on the same weights. "
        f"{refused} are refused by name, each for a reason that the error gives. What the folders hold, and torch's "
        "answers: `tests/support/hub_folders.py`. Written by `python tests/support/hub_table.py`, not by hand.",
        "",
    ]
    for title, part in PARTS.items():
        lines += [f"## {title}", "", "| checkpoint | made of | what is old or odd | outcome | largest difference |"]
        lines += ["|---|---|---|---|---|"]
        for name, layout in part.items():
            figures = "—"
            if not layout.refused:
                with tempfile.TemporaryDirectory() as folder:
                    theirs = make(Path(folder), layout)
                    figures = f"{np.abs(ours(Path(folder), layout) - theirs).max():.1e}"
            lines.append(row(name, layout, figures))
            print(lines[-1], file=sys.stderr)
        lines.append("")
    PAGE.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
