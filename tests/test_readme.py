"""What the README shows is what happens: its programs run, its answers are the answers, its links lead somewhere.

Its two first commands, which build a virtual environment, are run by ``.ci/run``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted({ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("jaxpool/*/README.md")})
# the command `jaxpool` of this environment comes first
ENVIRONMENT = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block(language: str, holds: str) -> str:
    [found] = [text for text in blocks(language) if holds in text]
    return found


def shell(script: str, folder: Path) -> str:
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(document: Path) -> None:
    """Modules and folders in backquotes, as seen from the root, the document's folder or the package in it."""
    text = document.read_text(encoding="utf-8")
    written = re.findall(r"`((?:[\w.-]+/)*[\w.-]+(?:\.py|/))`", text)
    found = [ROOT, document.parent, *document.parent.glob("jaxpool_*")]
    if document.parent == ROOT / "jaxpool":
        found.append(ROOT / "serving" / "jaxpool_serving")  # of which one walk tells
        found.append(ROOT / "conversions" / "jaxpool_conversions" / "families")
    missing = {name for name in written if not any((folder / name).exists() for folder in found)}
    assert not missing - {"params/"}  # a folder of every converted store
    assert written or document.parent not in (ROOT / "jaxpool", ROOT / "serving", ROOT / "conversions")


def test_every_command_is_run_by_somebody() -> None:
    """Each block of commands is one of the two of ``.ci/run`` or one of those below."""
    marked = re.findall(r"<!-- ci: (\w+) -->\n```bash\n", README)
    assert marked == ["classify", "test"]
    assert len(blocks("bash")) == len(marked) + 3


def test_the_library_example() -> None:
    [program] = blocks("python")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    labels = [line.split()[0] for line in done.stdout.splitlines()]
    assert labels[:2] == ["positive", "negative"]
    assert "('negative', 'positive')" in done.stdout


def test_files_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    out = shell(block("bash", "--input"), tmp_path)
    results = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(results) == 16
    assert (results[0]["label"], results[1]["label"]) == ("positive", "negative")
    assert len(json.loads(out)["probs"]) == 1
    assert json.loads((tmp_path / "labelled" / "manifest.json").read_text(encoding="utf-8"))["rows"] == 16


@pytest.fixture
def address() -> Iterator[str]:
    """The README's server, on a port that is free here; short texts only, so that it is warm in seconds."""
    command = block("bash", "jaxpool serve").replace("--port 8000", "--port 0 --max-model-len 32").split()
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = None
            for line in server.stderr:
                found = found or re.search(r"http://[\d.:]+", line)
                if found and "ready" in line:
                    break
            assert found, "the server never said where it listens"
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield found[0]
        finally:
            server.terminate()
            assert server.wait(30) == 0


def test_the_server_example(address: str, tmp_path: Path) -> None:
    request = block("bash", "curl").replace("http://127.0.0.1:8000", address)
    answer, shown = json.loads(shell(request, tmp_path)), json.loads(block("json", "classify-"))
    for body in (answer, shown):
        assert re.fullmatch(r"classify-[0-9a-f]{32}", body.pop("id"))
        assert isinstance(body.pop("created"), int)
        for entry in body["data"]:
            entry["probs"] = pytest.approx(entry["probs"], abs=0.02) if body is shown else entry["probs"]
    assert answer == shown
