"""``jaxpool classify`` among a user's files: nothing overwritten unasked, nothing left behind, any stream will do."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from jaxpool.commands.main import main
from jaxpool.errors import JaxpoolError
from jaxpool.files import destinations

ROOT = Path(__file__).resolve().parents[3]
BERT = str(ROOT / "tests" / "data" / "models" / "bert-cls")
CSV = "id,text\n7,good\n8,bad\n"


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``script``, in which ``classify`` is the command."""
    function = f'classify() {{ {sys.executable} -m jaxpool classify --model {BERT} "$@"; }}\n'
    command = ["bash", "-c", function + script]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["classify", "--model", BERT, *map(str, arguments)]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("how", ["itself", "link", "hard link", "other spelling"])
def test_the_input_is_never_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text(CSV)
    target = {"itself": source, "other spelling": tmp_path / "x" / ".." / "in.csv"}.get(how, tmp_path / "out.csv")
    (tmp_path / "x").mkdir()
    if how == "link":
        target.symlink_to(source)
    elif how == "hard link":
        target.hardlink_to(source)
    assert "it is the input" in refused(capsys, "--input", source, "--output", target, "--force")
    assert source.read_text() == CSV


def test_a_replaced_file_keeps_its_permissions_and_a_link_stays_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.write_text("precious\n")
    real.chmod(0o640)
    link.symlink_to(real)
    assert "exists already; name another file, or replace it with --force" in refused(capsys, "x", "--output", link)
    assert real.read_text() == "precious\n"
    assert main(["classify", "--model", BERT, "x", "--output", str(link), "--force", "--quiet"]) == 0
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert json.loads(real.read_text())["text"] == "x"
    assert capsys.readouterr().err == ""


def test_closed_streams_descriptors_and_pipes(tmp_path: Path) -> None:
    """One shell for all: what counts is that no stream ends up in a file, and no result nowhere."""
    script = r"""
    classify good --output a.jsonl --quiet 2>&- >&- <&-; echo $?
    classify good >&- 2>said; echo $?; cat said
    classify <&- 2>said; echo $?; tail -n 1 said
    classify good --output /dev/stdout --quiet | cat
    classify good --output - --quiet >> appended
    classify good --output - --quiet >> appended
    classify good --output >(cat > substituted) --quiet; sleep 1
    mkfifo fifo.csv; cat fifo.csv > read & classify good --output fifo.csv --quiet; wait
    printf 'text,n\ngood,1\n' > in; classify --input <(cat in) --text-column text --quiet
    """
    done = shell(script, tmp_path)
    out = done.stdout.splitlines()
    assert out[0] == "0", done.stderr
    assert json.loads((tmp_path / "a.jsonl").read_text())["text"] == "good"
    assert out[1:3] == ["1", "jaxpool: standard output is closed; name a file with --output"]
    assert out[3] == "2"
    assert out[4].endswith("nothing to classify: give texts, --input FILE, or pipe text in")
    assert json.loads(out[5])["text"] == "good"
    assert [json.loads(line)["text"] for line in (tmp_path / "appended").read_text().splitlines()] == ["good"] * 2
    assert json.loads((tmp_path / "substituted").read_text())["text"] == "good"
    assert (tmp_path / "read").read_text().startswith("index,text,label")
    assert json.loads(out[6])["n"] == "1"
    assert len(out) == 7
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_no_hidden_files(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "jaxpool", "classify", "--model", BERT, "--output", str(tmp_path / "out.jsonl")]
    # Whoever runs the tests may ignore the signal, as nohup does, and children inherit that. A `preexec_fn` would
    # fork this process, whose threads are JAX's, so the child heeds the signal by itself and then becomes the command.
    heed = "from sys import argv; from os import execv; from signal import *; signal(int(argv[1]), SIG_DFL)"
    heed += "; execv(argv[2], argv[2:])"
    command = [sys.executable, "-c", heed, str(int(number)), *command]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("good\n")
        process.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        while not any(tmp_path.iterdir()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == 128 + number
        process.stdin.close()
    assert list(tmp_path.iterdir()) == []


def test_compressed_output(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "b.jsonl.gz"):
        assert main(["classify", "--model", BERT, "good", "--output", str(tmp_path / name), "--quiet"]) == 0
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).startswith(b"index,text,label")
    assert json.loads(gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()))["text"] == "good"
    assert main(["classify", "--model", BERT, "--input", str(tmp_path / "a.csv.gz"), "--quiet"]) == 0


def test_rows_that_cannot_be_classified_are_skipped_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.csv"
    rows = ["{", '{"text": 7}', '{"text": "good", "n": 1}', '{"body": "x"}', f'{{"text": "{"long " * 100}"}}', "[1]"]
    source.write_text("\n".join([*rows, '{"text": "bad", "n": 2}']) + "\n")
    arguments = ["classify", "--model", BERT, "--input", str(source), "--max-length", "32"]
    assert main(arguments) == 1
    assert f"{source}: line 1 is not JSON" in capsys.readouterr().err
    assert main([*arguments, "--output", str(target), "--on-error", "skip"]) == 0
    err = capsys.readouterr().err
    assert target.read_text().splitlines()[0].startswith("index,text,n,label,")
    assert [line.split(",")[:3] for line in target.read_text().splitlines()[1:]] == [
        ["2", "good", "1"],
        ["6", "bad", "2"],
    ]
    told = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [one["where"] for one in told] == [f"{source}: line {number}" for number in (1, 2, 4, 5, 6)]
    reasons = ("is not JSON", "'text' is 7", "has no field 'text'", "maximum context length is 32", "is a JSON array")
    for one, reason in zip(told, reasons, strict=True):
        assert reason in one["problem"]
    assert f"5 rows skipped; {tmp_path / 'out.errors.jsonl'} says why" in err
    assert main([*arguments, "--on-error", "skip"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["index"] for line in out.splitlines()] == [2, 6]
    assert err.count("jaxpool: skipped ") == 5


def test_kept_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.csv"
    first = {"id": 7, "text": "good", "label": "gold", "tags": ["a"], "odd": "\ud83d"}
    source.write_text(json.dumps(first) + '\n{"text": "bad", "new": 1}\n')
    assert main(["classify", "--model", BERT, "--input", str(source)]) == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert list(one) == ["index", "text", "id", "input_label", "tags", "odd", "label", "probs"]
    assert (one["id"], one["input_label"], one["tags"], one["odd"]) == (7, "gold", ["a"], "\ud83d")
    assert two["new"] == 1
    assert main(["classify", "--model", BERT, "--input", str(source), "--no-keep-columns"]) == 0
    assert list(json.loads(capsys.readouterr().out.splitlines()[0])) == ["index", "text", "label", "probs"]
    assert main(["classify", "--model", BERT, "--input", str(source), "--output", str(target)]) == 0
    assert "left out 'new', which the first row lacks" in capsys.readouterr().err
    assert target.read_text().splitlines()[0].startswith("index,text,id,input_label,tags,odd,label,probs_")
    assert target.read_text().splitlines()[1].startswith('0,good,7,gold,"[""a""]",')


def test_a_destination_is_probed(tmp_path: Path) -> None:
    destinations.probe(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(JaxpoolError, match=r"cannot write .*file/x: Not a directory"):
        destinations.probe(tmp_path / "file" / "x")
    with pytest.raises(JaxpoolError, match="the disk is too full; 1,000,000,000,000,000 MB are needed"):
        destinations.probe(tmp_path, 10**21)
    error = OSError(28, "No space left on device")
    assert destinations.reason(error) == destinations.reason(ValueError(f"I/O error: {error}")) == "the disk is full"
