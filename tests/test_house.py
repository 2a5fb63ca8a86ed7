"""Rules of the house that no linter knows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
MAX_MODEL_BYTES = 30 * 2**20
TEXT_SUFFIXES = {".py", ".md", ".toml", ".ipynb", ".yaml", ".yml", ".json", ".txt", ".csv", ".jsonl", ""}
MACHINE = re.compile(r"/(?:work|tmp|root|opt|home|Users|mnt)/[\w.]|file:/{2,3}\w|\bextra-index-url\b")


def tracked() -> list[Path]:
    """Every file of the repository, whether or not this copy of it still has its history."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    rooms = ("jaxpool", "conversions", "serving", "notebooks", "tests", ".ci")
    return [path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]


TEXTS = [path for path in tracked() if path.suffix in TEXT_SUFFIXES and path.stat().st_size < 2**20]
SOURCES = [path for path in TEXTS if path.suffix == ".py"]


def test_the_listing_sees_the_house() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert {"jaxpool/errors.py", "conversions/jaxpool_conversions/rules.py", "tests/test_house.py"} <= names


def test_no_machine_paths() -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in TEXTS
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize("text", ["/tmp/x", "see /root/.cache", "file:///srv", "/home/ann/models"])
def test_the_path_pattern_bites(text: str) -> None:
    assert MACHINE.search(text)


def test_files_stay_small() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_bytes().splitlines()) for path in SOURCES}
    long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert not long, f"a file does one job in at most {MAX_LINES} lines: {long}"


def test_the_embedded_model_stays_small() -> None:
    folder = ROOT / "jaxpool" / "default_model"
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert "config.json" in sizes
    assert sum(sizes.values()) <= MAX_MODEL_BYTES, sizes
