"""The arrows of the house: which room may import which. Read the table; the rest is a little ``ast``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("jaxpool", "jaxpool_conversions", "jaxpool_serving")

LEAF = {"jaxpool.errors", "jaxpool.params"}  # words that everybody may use
# room -> what of ours it may import. The longest matching name rules; a room covers the modules inside it.
# Imports under TYPE_CHECKING count: a name in a signature is knowledge too.
ARROWS: dict[str, set[str]] = {
    "jaxpool": {"jaxpool", "jaxpool_conversions"},  # llm, fit, cli …: the rooms on top
    "jaxpool.errors": set(),
    "jaxpool.buckets": set(),
    "jaxpool.pooling": set(),
    "jaxpool.params": {"jaxpool.errors"},
    "jaxpool.outputs": LEAF,
    "jaxpool.prompts": LEAF,
    "jaxpool.tokens": LEAF | {"jaxpool.prompts", "jaxpool.vocabulary"},
    "jaxpool.checkpoint": LEAF,
    "jaxpool.textfiles": LEAF,
    "jaxpool.sharding": LEAF,
    "jaxpool.ops": {"jaxpool.ops", "jaxpool.errors"},
    "jaxpool.models": {"jaxpool.models", "jaxpool.ops", "jaxpool.pooling", "jaxpool.errors"},
    "jaxpool.resolve": LEAF | {"jaxpool.models", "jaxpool.pooling", "jaxpool_conversions"},
    "jaxpool.programs": LEAF
    | {
        "jaxpool.buckets",
        "jaxpool.models",
        "jaxpool.ops",
        "jaxpool.pooling",
        "jaxpool.resolve",
        "jaxpool.sharding",
    },
    "jaxpool.engine": LEAF
    | {"jaxpool.buckets", "jaxpool.models", "jaxpool.programs", "jaxpool.resolve", "jaxpool.sharding"},
    "jaxpool_conversions": {"jaxpool_conversions", "jaxpool.errors"},
    "jaxpool_conversions.families": {
        "jaxpool_conversions",
        "jaxpool.errors",
        "jaxpool.models",
        "jaxpool.ops",
        "jaxpool.pooling",
    },
    "jaxpool_serving": LEAF
    | {"jaxpool_serving", "jaxpool.buckets", "jaxpool.engine", "jaxpool.llm", "jaxpool.options"},
}
# what even a wide row may not hold: nobody imports the server (`jaxpool serve` finds it by name, at run time)
NEVER = {"jaxpool": {"jaxpool_serving"}, "jaxpool_conversions": {"jaxpool_serving"}}
HEAVY = {"jax", "flax", "transformers", "torch", "orbax", "optax", "aiohttp", "numpy"}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of ours."""
    found = {}
    for base in (ROOT, ROOT / "conversions", ROOT / "serving"):
        for package in OURS:
            for path in (base / package).rglob("*.py"):
                dotted = ".".join(path.relative_to(base).with_suffix("").parts)
                found[dotted.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Modules of ours that ``source`` imports, at the top or inside functions, as dotted names."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            parts = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            # `from jaxpool import engine` imports the module jaxpool.engine, not only the package
            inner = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            named |= inner or {base}
    return {name for name in named if name.split(".")[0] in OURS}


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def violations(module: str, imported: set[str]) -> list[str]:
    """Imports that no arrow allows."""
    row = max((room for room in ARROWS if inside(module, room)), key=len)
    never = NEVER.get(module.split(".")[0], set())
    return sorted(
        f"{module} -> {name}"
        for name in imported
        if not any(inside(name, room) for room in ARROWS[row]) or any(inside(name, room) for room in never)
    )


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows(module: str) -> None:
    path = MODULES[module]
    found = imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    assert not violations(module, found)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("jaxpool.buckets", "from jaxpool.errors import JaxpoolError"),
        ("jaxpool.pooling", "from . import buckets"),
        ("jaxpool.models.bert", "def f():\n    import jaxpool.engine"),
        ("jaxpool.models.bert", "from jaxpool.buckets import Bucket"),
        ("jaxpool.cli", "from jaxpool_serving import app"),
        ("jaxpool.llm", "import jaxpool_serving.app"),
        ("jaxpool_conversions.load", "from jaxpool import llm"),
        ("jaxpool_serving.app", "from jaxpool.programs import Programs"),
    ],
)
def test_the_check_sees_a_wrong_arrow(module: str, line: str) -> None:
    assert violations(module, imports(line, module))


@pytest.mark.parametrize("module", ["jaxpool", "jaxpool.cli"])
def test_importing_is_light(module: str) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert not HEAVY & set(loaded)
