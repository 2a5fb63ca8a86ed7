"""The arrows of the house: which room may import which. Read the table; the rest is a little ``ast``."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("jaxpool", "jaxpool_conversions", "jaxpool_serving")

# Room -> what of ours it may import, both without the leading "jaxpool.". The longest matching name rules; a room
# covers the modules inside it. Imports under TYPE_CHECKING count: a name in a signature is knowledge too.
ARROWS = {
    "jaxpool": "version errors params outputs client llm training commands",  # the front door: `__init__`, `__main__`
    "version": "",
    "errors": "",
    "params": "errors",
    "outputs": "errors params",
    "engine_args": "params vllm_args",
    "vllm_args": "",
    "client": "errors client",
    "text": "errors text",
    "ops": "errors ops",
    "models": "errors ops models",
    "checkpoints": "version errors params text ops models checkpoints jaxpool_conversions",
    "engine": "version errors params ops models checkpoints engine jaxpool_conversions",
    "engine.buckets": "",  # numpy alone
    "engine.packing": "engine.buckets",
    "engine.costs": "engine.buckets",
    "engine.beginnings": "",  # numpy alone
    "engine.prefix_store": "engine.beginnings",
    "engine.chips": "",
    "views": "",
    "zero_shot": "errors params outputs text ops models checkpoints engine zero_shot",
    "zero_shot.tree": "",  # numpy alone
    "offline": "outputs params text checkpoints engine",
    "llm": "errors params outputs engine_args views text checkpoints engine zero_shot offline",
    "files": "errors params outputs llm files",
    "batch": "version errors text checkpoints engine llm zero_shot files batch",
    "ray": "errors batch ray",
    "training": "version errors text ops models checkpoints engine llm files training jaxpool_conversions",
    "default_model": "errors params llm training default_model",
    "forecast": "errors ops checkpoints engine forecast jaxpool_conversions",
    "bench": "version errors params checkpoints engine llm bench",
    "bench.texts": "",
    "commands": "version errors engine_args vllm_args text checkpoints engine llm files batch ray training forecast "
    "bench commands jaxpool_conversions",
    "jaxpool_conversions": "errors jaxpool_conversions",
    "jaxpool_conversions.families": "errors ops models jaxpool_conversions",
    "jaxpool_serving": "errors params outputs text ops.host_activations engine.engine engine.adapters engine.buckets "
    "engine.daemon_threads engine.packing engine.postprocess engine.prefixes engine_args llm zero_shot "
    "checkpoints.adapters checkpoints.digest checkpoints.spec "
    "commands.options commands.vllm_options bench.texts jaxpool_serving",
    "jaxpool_serving.batching": "errors engine.engine engine.buckets engine.packing jaxpool_serving.batching",
    "jaxpool_serving.schemas": "errors params text.scoring text.windows jaxpool_serving.schemas",
}
# What even a wide row may not hold: nobody imports the server (`jaxpool serve` finds it by name, at run time).
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
            # `from jaxpool import engine` imports the module jaxpool.engine.engine, not only the package
            inner = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            named |= inner or {base}
    return {name for name in named if name.split(".")[0] in OURS}


def full(room: str) -> str:
    return room if room.startswith("jaxpool") else f"jaxpool.{room}"


def inside(name: str, room: str) -> bool:
    return f"{name}.".startswith(f"{full(room)}.")


def room_of(module: str) -> str:
    """The row that rules a module: its own, or that of the nearest room around it."""
    if module in ("jaxpool", "jaxpool.__main__"):
        return "jaxpool"
    found = [room for room in ARROWS if room != "jaxpool" and inside(module, room)]
    assert found, f"{module} stands in no room: give it a row in ARROWS"
    return max(found, key=lambda room: len(full(room)))


def violations(module: str, imported: set[str]) -> list[str]:
    """Imports that no arrow allows."""
    row = room_of(module)
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


def test_rooms_stand_on_floors() -> None:
    """No circle: whatever a room imports, directly or through others, never imports it back."""
    below = {room: {name for name in arrows.split() if name != room} for room, arrows in ARROWS.items()}
    assert set(TopologicalSorter(below).static_order()) >= ARROWS.keys()


ROOMS = sorted(
    path.parent
    for package in (ROOT / "jaxpool", ROOT / "serving" / "jaxpool_serving")
    for path in package.glob("*/__init__.py")
)


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_says_what_lives_there(room: Path) -> None:
    doc = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert doc
    assert len(doc.split()) > 20 or room.name == "default_model"
    assert len(list(room.glob("*.py"))) > 2, "a room of one file is a file"


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("jaxpool.engine.buckets", "from jaxpool.errors import JaxpoolError"),
        ("jaxpool.ops.pooling", "from jaxpool.engine import buckets"),
        ("jaxpool.models.bert", "def f():\n    import jaxpool.engine.engine"),
        ("jaxpool.models.bert", "from jaxpool.engine.buckets import Bucket"),
        ("jaxpool.commands.main", "from jaxpool_serving import app"),
        ("jaxpool.llm", "import jaxpool_serving.app"),
        ("jaxpool_conversions.load", "from jaxpool import llm"),
        ("jaxpool_serving.app", "from jaxpool.engine.programs import Programs"),
        ("jaxpool_serving.schemas.request", "from jaxpool_serving.state import OPTIONS"),
        ("jaxpool_serving.batching.batcher", "from jaxpool_serving.schemas.errors import RequestError"),
    ],
)
def test_the_check_sees_a_wrong_arrow(module: str, line: str) -> None:
    assert violations(module, imports(line, module))


@pytest.mark.parametrize("module", ["jaxpool", "jaxpool.commands.main"])
def test_importing_is_light(module: str) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert not HEAVY & set(loaded)
