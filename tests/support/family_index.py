"""Writes ``conversions/FAMILIES.md``: in which file each model type is configured, and which module runs it.

Run from the repository root: ``python tests/support/family_index.py``.
"""

from __future__ import annotations

from pathlib import Path

from jaxpool_conversions.families import families, file_of

PAGE = Path(__file__).parents[2] / "conversions" / "FAMILIES.md"


def page() -> str:
    """The whole page."""
    rows = [
        f"| {model_type} | {family.prefix_class} "
        f"| [`families/{file_of(model_type)}`](jaxpool_conversions/families/{file_of(model_type)}) "
        f"| [`models/{family.backbone.__module__.rpartition('.')[2]}.py`]"
        f"(../jaxpool/models/{family.backbone.__module__.rpartition('.')[2]}.py) |"
        for model_type, family in sorted(families().items())
    ]
    return "\n".join(
        [
            "# Where each model type is",
            "",
            "The `model_type` of a checkpoint's `config.json`, the start of its class names in transformers, the file "
            "with its config function and conversion table, and the module that runs it. Written by "
            "`python tests/support/family_index.py`, not by hand; how close each is to transformers is on "
            "[the parity page](PARITY.md).",
            "",
            "| model type | classes | config and table | module |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
