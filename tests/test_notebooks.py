"""The notebooks run from top to bottom, and their two forms say the same."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.py"))


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_there_are_notebooks() -> None:
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_both_forms_say_the_same(source: Path) -> None:
    """``jupytext --sync notebooks/*.py`` makes it so."""
    shown = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert cells(shown) == cells(jupytext.read(source))


# The kernel's own libraries warn about their future (fork in threads, sockets at exit); that is not our news.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(source: Path) -> None:
    notebook = jupytext.read(source)
    # the first kernel of this environment, whatever a reader's own is called
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    drawn = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert drawn, "the plot of class probabilities is missing"
