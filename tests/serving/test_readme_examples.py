"""The examples of ``serving/README.md``, read out of it and run against real servers."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from patience import PATIENCE

from .conftest import MODELS
from .test_lifecycle import SMALL

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "serving" / "README.md").read_text(encoding="utf-8")
# the command `jaxpool` of this environment comes first; a server here is not the hub
ENVIRONMENT = os.environ | {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "KEY": "s3cret",
    "HF_HUB_OFFLINE": "0",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block(language: str, holds: str) -> str:
    [found] = [text for text in blocks(language) if holds in text]
    return found


@contextmanager
def server(holds: str, folder: Path, *more: str, names: Mapping[str, str] | None = None) -> Iterator[str]:
    """The server of the block that ``holds`` this, on a port that is free here; yields its address once it is warm.

    ``more`` goes to the end of the command; ``names`` are put in the place of what stands for them.
    """
    [line] = [line for line in block("bash", holds).splitlines() if line.startswith("jaxpool serve")]
    line = re.sub(r"--port \d+", "--port 0", line)
    for placeholder, name in (names or {}).items():
        assert placeholder in line
        line = line.replace(placeholder, name)
    command = ["bash", "-c", f"exec {line} {' '.join(more)}"]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = list(itertools.takewhile(lambda line: "ready after" not in line, process.stderr))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield next(found[0] for line in said if (found := re.search(r"https?://[\d.:]+", line)))
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def output(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shell(script: str, address: str, folder: Path | None = None) -> str:
    script = re.sub(r"https?://127\.0\.0\.1:\d+", address, script)
    return output(["bash", "-euo", "pipefail", "-c", script], folder)


def python(program: str, address: str) -> str:
    return output([sys.executable, "-c", program.replace("http://127.0.0.1:8000", address)])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The first server, with the embedded model and short texts, so that it is warm in seconds."""
    embedded = {" FOLDER_OR_HUB_ID": ""}
    with server("--api-key ", tmp_path_factory.mktemp("server"), "--max-model-len 32", names=embedded) as found:
        yield found


def test_every_example_is_run_by_somebody() -> None:
    """Each block is run below; ``jaxpool bench serve`` has its own tests, which are longer than this."""
    run = ('/classify -H "Authorization', "/metrics", '"model": "topic"', "--cacert", "jaxpool serve", "bench serve")
    assert not [text for text in blocks("bash") if not any(holds in text for holds in run)]
    assert len(blocks("python")) == 3


def test_curl(address: str) -> None:
    answer = json.loads(shell(block("bash", '/classify -H "Authorization'), address))
    assert [entry["label"] for entry in answer["data"]] == ["positive", "negative"]


def test_the_client(address: str) -> None:
    lines = python(block("python", "import Client"), address).splitlines()
    assert [line.split()[0] for line in lines] == ["positive", "negative"]


def test_the_async_client(address: str) -> None:
    assert python(block("python", "AsyncClient"), address).split() == ["1000", "positive"]


def test_huggingface_hub(address: str) -> None:
    assert python(block("python", "InferenceClient"), address).strip() == "positive"


def test_metrics(address: str) -> None:
    """Every metric of the table is there, and every metric that is there is in the table."""
    shell("curl -s http://127.0.0.1:8000/health", address)  # requests are counted from the first one on
    shown = {re.split(r"[{ ]", line)[0] for line in shell(block("bash", "/metrics"), address).splitlines()}
    shown = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in shown} - {"jaxpool_info"}
    shown -= {name.removesuffix("_total") for name in shown if name.endswith("_total")}  # of `_created`
    assert shown == set(re.findall(r"`(jaxpool_\w+)`", README))


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    (tmp_path / "keys.txt").write_text("# mine\ns3cret\n")
    with server("--api-key-file", tmp_path, "--max-model-len 32") as address:
        assert json.loads(shell(block("bash", "--cacert"), address, tmp_path))["version"]


def test_several_models(tmp_path: Path) -> None:
    names = {"=OTHER_FOLDER": f"={MODELS / 'gpt2-cls'}", "=FOLDER": f"={MODELS / 'bert-cls'}"}
    with server("--model mood=", tmp_path, *SMALL, names=names) as address:
        assert json.loads(shell(block("bash", '"model": "topic"'), address))["model"] == "topic"
