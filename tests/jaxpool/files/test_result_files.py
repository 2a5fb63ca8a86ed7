"""Result files: complete under their name, or not there."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from jaxpool.errors import JaxpoolError, ValidationError
from jaxpool.files import result_files, terminal

RESULT = {"index": 0, "text": 'a "quoted",\ntext', "label": "x", "labels": ["x", "y"], "probs": {"x": 0.75, "y": 0.25}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_name_appears_when_the_block_has_ended(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with result_files.open_file(target, []) as write:
        write(RESULT)
        assert names(tmp_path) == [f".out.jsonl.{os.getpid()}.part"]
    assert names(tmp_path) == ["out.jsonl"]
    assert target.read_text().count("\n") == 1
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask, "readable to whom the user's files are readable"


@pytest.mark.parametrize("failure", [ValidationError("no"), KeyboardInterrupt(), OSError("another file's trouble")])
def test_a_failed_block_leaves_what_was_there(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("older")

    def fail() -> None:
        with result_files.open_file(target, []) as write:
            write(RESULT)
            raise failure

    with pytest.raises(type(failure)) as caught:
        fail()
    assert caught.value is failure
    assert names(tmp_path) == ["out.jsonl"]
    assert target.read_text() == "older"


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    link, target = tmp_path / "link.csv", tmp_path / "real.csv"
    link.symlink_to(target)
    with result_files.open_file(link, ["text", "labels", "probs_y", "probs_z"]) as write:
        write(RESULT)
    assert link.is_symlink()
    with target.open(newline="") as file:
        assert list(csv.reader(file)) == [["text", "labels", "probs_y", "probs_z"], [RESULT["text"], "x;y", "0.25", ""]]
    result_files.check_path(Path(os.devnull))
    with result_files.open_file(Path(os.devnull), []) as write:
        write(RESULT)
    assert not Path(os.devnull).is_file()


def test_a_file_that_cannot_grow_is_one_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    target = tmp_path / "out.jsonl"

    def write_often() -> None:
        with result_files.open_file(target, []) as write:
            for _ in range(1000):
                write(RESULT)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(JaxpoolError) as caught:
            write_often()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == f"cannot write {target}: File too large; no results were kept"
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "it is a folder"), ("gone/a.csv", "there is no folder"), ("a.txt", "results are written as ")],
)
def test_impossible_paths(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        result_files.check_path(tmp_path / name)


@pytest.mark.parametrize("columns", [40, 100])
def test_the_table_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    many = [
        {"text": "long " * 50, "label": "positive", "probs": {"negative": 0.0177, "positive": 0.9823}},
        {
            "text": "[red]not markup[/red]\n日本語",
            "pair": "b",
            "label": "negative",
            "probs": {"negative": 1.0, "positive": 0.0},
        },
        {"text": " ", "label": "negative", "probs": {"negative": 0.75, "positive": 0.25}},
    ]
    terminal.print_table(many, "probs")
    wide = capsys.readouterr().out
    assert max(map(len, wide.splitlines())) <= columns
    if columns == 100:
        assert "long … " in wide or "lon… " in wide or "lo… " in wide or "l… " in wide
        assert "[red]not markup[/red] 日本語 | b" in wide
        assert wide.index("positive ███████████████▊  98.2%") < wide.index("negative ▎                  1.8%")
        assert "negative ████████████████ 100.0%" in wide
    terminal.print_table([{**one, "logits": one["probs"]} for one in many], "logits", most=1)
    assert "positive    0.9823" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_thirty_columns_still_have_label_and_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    scores = {"negative": 0.0177, "neutral": 0.0, "positive": 0.9823}
    terminal.print_table([{"text": "long " * 50, "label": "positive", kind: scores}], kind)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 30
    assert "positive" in out
    assert ("98.2%" if kind == "probs" else "0.9823") in out


def test_texts_have_no_power_over_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eflip \x7f 👩\u200d🔬 é"
    terminal.print_table([{"text": hostile, "label": "\x1b[5m", "probs": {"\x1b[5m": 1.0}}], "probs")
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b", "\x7f", "\u202e"} & set(out)
    assert "\\x1b[5m" in out
    shown = terminal.printable(hostile)
    assert shown == "\\x1b[31mred\\x1b]0;title\\x07 \\x9b2J \\u202eflip \\x7f 👩\u200d🔬 é"


def test_arrays_and_tabs(tmp_path: Path) -> None:
    for count in range(3):
        target = tmp_path / f"{count}.json"
        with result_files.open_file(target, []) as write:
            for _ in range(count):
                write(RESULT)
        assert json.loads(target.read_text()) == [RESULT] * count
    with result_files.open_file(tmp_path / "a.tsv", ["text", "label"]) as write:
        write(RESULT)
    assert (tmp_path / "a.tsv").read_text().splitlines()[0] == "text\tlabel"
