"""The arrows of the house: which room may import which. Read the table; the rest is a little ``ast``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("jaxpool", "jaxpool_conversions", "jaxpool_serving")

# room -> what of ours it may import, both without the leading "jaxpool.". The longest matching name rules; a room
# covers the modules inside it. Imports under TYPE_CHECKING count: a name in a signature is knowledge too.
ARROWS = {
    "jaxpool": "jaxpool jaxpool_conversions",  # llm, fit, cli …: the rooms on top
    "errors": "",
    "buckets": "",
    "pooling": "",
    "activations": "pooling",
    "cache": "errors",
    "chat": "errors",
    "params": "errors",
    "outputs": "errors params",
    "wire": "errors",
    "client": "errors wire",
    "prompts": "errors",
    "tasks": "errors",
    "labels": "errors pooling",
    "sentence_files": "errors labels pooling",
    "score_files": "errors sentence_files",
    "textfiles": "errors",
    "tokens": "errors prompts vocabulary",
    "own_code": "errors",
    "trained_words": "",
    "vocabulary": "errors own_code trained_words",
    "text_length": "errors labels sentence_files",
    "checkpoint": "errors cache own_code sentence_files",
    "sharding": "errors",
    "ops": "errors ops",
    "models": "errors models ops pooling",
    "resolve": "errors labels own_code params tasks score_files sentence_files text_length models pooling "
    "jaxpool_conversions",
    "programs": "errors buckets cache models ops pooling resolve sharding",
    "engine": "errors buckets programs resolve",
    "refine": "errors engine params resolve",
    "jaxpool_conversions": "errors jaxpool_conversions",
    "jaxpool_conversions.families": "errors models ops pooling jaxpool_conversions",
    "jaxpool_serving": "activations chat errors params prompts options buckets engine refine llm jaxpool_serving",
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


def full(room: str) -> str:
    return room if room.startswith("jaxpool") else f"jaxpool.{room}"


def inside(name: str, room: str) -> bool:
    return f"{name}.".startswith(f"{full(room)}.")


def violations(module: str, imported: set[str]) -> list[str]:
    """Imports that no arrow allows."""
    row = max((room for room in ARROWS if inside(module, room)), key=lambda room: len(full(room)))
    never = NEVER.get(module.split(".")[0], set())
    return sorted(
        f"{module} -> {name}"
        for name in imported
        if not any(inside(name, room) for room in ARROWS[row].split()) or any(inside(name, room) for room in never)
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
