"""Configs that exercise every feature of every model type: name -> (model_type, fields of the transformers config).

One module per family file; every module's ``CASES`` is found by itself. A tiny case costs about two seconds.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    name: case
    for module in pkgutil.iter_modules(__path__)
    for name, case in import_module(f"{__name__}.{module.name}").CASES.items()
}
FIRST: dict[str, str] = {}
"""Model type -> name of its first case with several labels."""
for _name, (_type, _config) in CASES.items():
    if _config["num_labels"] > 1:
        FIRST.setdefault(_type, _name)
