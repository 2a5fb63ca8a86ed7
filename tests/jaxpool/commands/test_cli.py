"""The command ``jaxpool`` as people meet it: terminal, pipes, files, mistakes, Ctrl-C."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE

from jaxpool.commands.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "tests" / "data" / "models"
BERT = str(MODELS / "bert-cls")
TEXTS = ["Loved the new café—coffee was great.", "This update broke everything. Frustrating.", "It is a chair."]

# As the installed script does, but with Ctrl-C working even where pytest itself runs in the background.
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxpool.commands.main import main
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run sets in the environment goes with it."""
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, "3" if name.startswith("TF") else "error"))


@pytest.fixture(scope="module")
def expected() -> list[dict]:
    """What the library says of TEXTS, in the form of the command."""
    from jaxpool import LLM

    with LLM(BERT) as llm:
        outputs = [output.outputs for output in llm.classify(TEXTS, use_tqdm=False)]
    return [
        {"index": i, "text": text, "label": one.label, "probs": pytest.approx(dict(zip(llm.labels, one.probs)))}
        for i, (text, one) in enumerate(zip(TEXTS, outputs))
    ]


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def failure(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """The one sentence that a run with these arguments ends in."""
    if code == 2:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    else:
        assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith("jaxpool")
    assert code == 2 or len(err.strip().splitlines()) == 1
    return sentence


def test_texts_give_json_lines_in_order(capsys: pytest.CaptureFixture[str], expected: list[dict]) -> None:
    assert main(["classify", "--model", BERT, *TEXTS]) == 0
    out, err = capsys.readouterr()
    assert lines(out) == expected
    assert "café" in out, "readable, not escaped"
    assert err == ""


def test_a_pipe_with_blank_lines_stays_in_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], expected: list[dict]
) -> None:
    pipe(monkeypatch, f"{TEXTS[0]}\r\n\n{TEXTS[1]}\n   \n{TEXTS[2]}".encode())
    assert main(["classify", "--model", BERT]) == 0
    out, err = capsys.readouterr()
    got = lines(out)
    assert [one["index"] for one in got] == [0, 1, 2, 3, 4]
    assert [got[i]["probs"] for i in (0, 2, 4)] == [one["probs"] for one in expected]
    assert main(["classify", "--model", BERT, ""]) == 0
    [empty] = lines(capsys.readouterr().out)
    assert got[1] == {**empty, "index": 1, "probs": pytest.approx(empty["probs"], abs=1e-5)}, (
        "as the library and the server do"
    )
    assert err == "jaxpool: 2 blank texts, which the model labels all the same\n"


def test_a_table_in_and_a_table_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: list[dict]) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    with source.open("w", newline="", encoding="cp1252") as file:
        csv.writer(file).writerows([("id", "body"), *enumerate(TEXTS)])
    target.write_text("an older result\n")
    arguments = ["--input", str(source), "--text-column", "body", "--encoding", "cp1252", "--output", str(target)]
    assert f"{target} exists already" in failure(capsys, "classify", "--model", BERT, *arguments)
    assert target.read_text() == "an older result\n"
    assert main(["classify", "--model", BERT, *arguments, "--force"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"jaxpool: wrote {target} (3 results)\n")
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert list(rows[0]) == ["index", "text", "id", "label", "probs_negative", "probs_neutral", "probs_positive"]
    for row, want in zip(rows, expected, strict=True):
        assert (row["text"], row["label"]) == (want["text"], want["label"])
        assert {name: float(row[f"probs_{name}"]) for name in ("negative", "neutral", "positive")} == want["probs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_pairs_top_k_and_logits(tmp_path: Path) -> None:
    from jaxpool import LLM, PoolingParams

    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"premise": TEXTS[0], "hypothesis": TEXTS[1]}) + "\n")
    columns = ["--text-column", "premise", "--pair-column", "hypothesis"]
    options = ["--top-k", "2", "--logits", "--max-length", "64", "--batch-tokens", "512", "--dtype", "float32"]
    arguments = ["--input", str(source), *columns, "--output", str(target), *options]
    assert main(["classify", "--model", BERT, *arguments]) == 0
    with LLM(BERT) as llm:
        prompt = {"prompt": TEXTS[0], "text_pair": TEXTS[1]}
        [one] = llm.classify(prompt, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
        assert one.prompt_token_ids != llm.classify(TEXTS[0], use_tqdm=False)[0].prompt_token_ids
    ranked = sorted(zip(llm.labels, one.outputs.probs), key=lambda score: -score[1])[:2]
    [got] = lines(target.read_text())
    assert got.pop("logits") == pytest.approx(dict(ranked), abs=1e-5)
    assert got == {"index": 0, "text": TEXTS[0], "pair": TEXTS[1], "label": ranked[0][0]}


def test_multi_label_models_name_every_label_that_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = ["--hf-overrides", '{"problem_type": "multi_label_classification"}']
    target = tmp_path / "out.csv"
    assert main(["classify", "--model", BERT, *overrides, *TEXTS]) == 0
    assert main(["classify", "--model", BERT, *overrides, "--output", str(target), *TEXTS]) == 0
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for one, row in zip(lines(capsys.readouterr().out), rows, strict=True):
        assert one["labels"] == [name for name, value in one["probs"].items() if value > 0.5]
        assert row["labels"] == ";".join(one["labels"])


def test_too_long_texts(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.txt"
    source.write_text("short\n" * 5 + "long " * 100 + "\n" + "short\n")
    arguments = ["classify", "--model", BERT, "--input", str(source), "--max-length", "32"]
    sentence = failure(capsys, *arguments)
    assert f"{source}: line 6: This model's maximum context length is 32 tokens" in sentence
    assert "--truncate" in sentence
    assert main([*arguments, "--truncate"]) == 0
    got = lines(capsys.readouterr().out)
    assert len(got) == 7
    assert got[5]["probs"] is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "none.csv"], "none.csv does not exist"),
        (["--input", "in.csv"], "there is no column 'text'; the columns are 'id', 'body'; choose with --text-column"),
        (["--input", "latin.csv", "--text-column", "body"], "latin.csv: line 3, byte 20: 0xe9 is not valid utf-8"),
        (["--input", "numbers.jsonl"], "numbers.jsonl: line 2: 'text' is 7, a JSON number; a text was expected"),
        (["--input", "empty.txt"], "empty.txt holds no texts"),
        (["--input", "in.xlsx"], "has suffix .xlsx; jaxpool reads .txt"),
        (["--input", "in.txt", "--encoding", "klingon"], "unknown text encoding 'klingon'"),
        (["text", "--output", "gone/out.csv"], "there is no folder gone"),
        (["text", "--output", "out.xlsx"], "results are written as .jsonl, .json, .csv and .tsv"),
        (["text", "--model", "./nowhere"], "There is no folder ./nowhere"),
        (["text", "--model", "."], "has no config.json"),
    ],
)
def test_mistakes_show_before_a_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("id,body\n1,fine\n")
    Path("latin.csv").write_bytes("id,body\n1,fine\n2,caf\xe9\n".encode("latin-1"))
    Path("numbers.jsonl").write_text('{"text": null}\n{"text": 7}\n')
    Path("empty.txt").touch()
    Path("in.txt").write_text("x\n")
    before = sorted(Path().iterdir())
    model = [] if "--model" in arguments else ["--model", BERT]
    assert words in failure(capsys, "classify", *model, *arguments)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["text", "--input", "in.txt"], "give texts or --input, not both"),
        (["text", "--text-column", "x"], "belong to --input or a pipe"),
        (["text", "--top-k", "0"], "must be a whole number from 1 up, not '0'"),
        (["text", "--hf-overrides", "[1]"], "must be a JSON object, not [1]"),
        (["text", "--hf-overrides", "{"], "is not JSON"),
        (["text", "--dtype", "int3"], "invalid choice: 'int3'"),
        (["text", "--topk", "3"], "jaxpool classify: error: unrecognized arguments: --topk 3; did you mean --top-k?"),
        (["text", "--outptu=x"], "unrecognized arguments: --outptu=x; did you mean --output?"),
        (["text", "--delimiter", ";"], "belong to --input or a pipe"),
        (["--input", "x.csv", "--delimiter", "ab"], "must be one character, or 'tab', not 'ab'"),
    ],
)
def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert words in failure(capsys, "classify", *arguments, code=2)


def test_usage_is_that_of_the_command_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for words, usage, message in (
        (["clasify", "x"], "usage: jaxpool [-h]", "no command 'clasify' (classify, batch, "),
        (["bench", "--txets=1"], "usage: jaxpool bench [--model MODEL", "did you mean --texts?"),
        (["compile", "x"], "usage: jaxpool compile --topology", "the following arguments are required: --topology"),
        (["classify", "x", "--topk", "1"], "usage: jaxpool classify [TEXT ...]", "did you mean --top-k?"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        err = capsys.readouterr().err
        assert err.startswith(usage)
        assert message in err
    with pytest.raises(SystemExit, match="2"):
        main(["clasify"])
    assert "did you mean classify?" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "on-error", "label-column", "served-model-name"):
        assert word in script
    if shell == "bash":
        ask = "COMP_WORDS=(jaxpool cl); COMP_CWORD=1; _shtab_jaxpool; echo ${COMPREPLY[@]}"
        ask += "; COMP_WORDS=(jaxpool classify --on); COMP_CWORD=2; _shtab_jaxpool; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["classify", "--on-error"]


def test_a_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    words = "cannot write /dev/full: the disk is full; no results were kept"
    assert words in failure(capsys, "classify", "--model", BERT, "--output", "/dev/full", *TEXTS)


def test_a_reader_that_left_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["classify", "--model", BERT, *TEXTS]) == 141
    assert capsys.readouterr().err == ""


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--debug", "--input", "none.txt"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_unexpected_errors_are_told_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "classify", ("json", "no command at all"))
    assert "unexpected AttributeError" in failure(capsys, "classify", "x")


def test_a_missing_extra_names_its_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in [name for name in sys.modules if name.startswith(("jaxpool_serving", "pydantic"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert failure(capsys, "serve").endswith("'pydantic' is not installed; get it with: pip install 'jaxpool[serve]'")


def test_help_is_pleasant_and_light() -> None:
    code = """
import contextlib, sys
from jaxpool.commands.main import main
for words in ([], ["--help"], ["classify", "--help"], ["convert", "--help"]):
    with contextlib.suppress(SystemExit):
        main(words)
heavy = {"jax", "numpy", "transformers", "rich", "tqdm", "aiohttp"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for command in COMMANDS:
        assert f"\n  jaxpool {command} " in run.stdout, f"one example of {command}"
    assert "--text-column" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 96


def test_a_terminal_gets_a_table() -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    command = [sys.executable, "-c", SCRIPT, "classify", "--model", BERT, *TEXTS]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side has closed
                break
            if not data:
                break
            shown += data
    os.close(ours)
    table = shown.decode().replace("\r\n", "\n")
    assert process.returncode == 0, table
    header, first, *rest = table.splitlines()
    assert header.split() == ["text", "label", "probability"]
    assert first.startswith("Loved the new café—coffee")
    assert "█" in first
    assert first.rstrip().endswith("%")
    assert len(rest) == 8, "one line per label"
    assert max(map(len, table.splitlines())) <= 80


def test_ctrl_c_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """Even while a thread is blocked on a pipe from which nothing more comes."""
    target = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", SCRIPT, "classify", "--model", BERT, "--output", str(target)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("".join(f"{text}\n" for text in TEXTS))
        process.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        while not any(tmp_path.iterdir()):  # the hidden file: the model is open, results could be written
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130
        assert process.stderr.read() == "\njaxpool: interrupted\n"
        process.stdin.close()
    assert list(tmp_path.iterdir()) == []
