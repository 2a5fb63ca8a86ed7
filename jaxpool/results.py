"""Results out: JSON lines, CSV, a terminal table; files appear under their name only when complete."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from jaxpool.errors import JaxpoolError, ValidationError

Result = Mapping[str, Any]
"""``index``, ``text``, maybe ``pair``, ``label``, for multi-label models ``labels``, and ``probs`` or ``logits``,
which map label names to numbers."""


def as_json(result: Result) -> str:
    """One JSON line, readable in any script."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def check_path(path: Path) -> None:
    """Refuses a path that `open_file` could not write; call it before a model is loaded for nothing.

    Raises:
        ValidationError: a folder, in a folder that does not exist, or neither ``.jsonl`` nor ``.csv``.
    """
    if path.is_dir():
        raise ValidationError(f"cannot write to {path}: it is a folder; name a .jsonl or .csv file in it")
    if not path.parent.is_dir():
        raise ValidationError(f"cannot write {path}: there is no folder {path.parent}")
    if path.suffix not in (".jsonl", ".csv") and not _is_device(path):
        raise ValidationError(f"cannot write {path}: results are written as .jsonl or .csv")


@contextlib.contextmanager
def open_file(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Result], None]]:
    """Gives a function that writes one result; ``path`` appears, complete, when the block ends without error.

    Until then the results are in a hidden file beside it, which is removed when the block fails for whatever
    reason, Ctrl-C included. An existing file is replaced; a device or pipe is written directly.

    Args:
        path: ``.jsonl`` (one object per line) or ``.csv``.
        columns: header of a ``.csv``; nested results are found under ``key_subkey``, lists are joined by ``;``,
            what is absent stays empty.

    Raises:
        JaxpoolError: the file cannot be written (disk full, no permission).
    """
    target = path.resolve()  # a symbolic link stays one
    part = target if _is_device(target) else target.with_name(f".{target.name}.{os.getpid()}.part")
    complete = False
    file: TextIO | None = None
    try:
        with _in_words(path):
            file = part.open("w", encoding="utf-8", newline="")
            write = _writer(file, path.suffix, columns)

        def write_in_words(result: Result) -> None:
            with _in_words(path):
                write(result)

        yield write_in_words
        with _in_words(path):
            file.close()
            if part is not target:
                part.replace(target)
        complete = True
    finally:
        if file is not None and not complete:
            with contextlib.suppress(OSError):  # the error that brought us here is the one to report
                file.close()
            if part is not target:
                part.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        raise JaxpoolError(f"cannot write {path}: {reason}; no results were kept") from error


def _writer(file: TextIO, suffix: str, columns: Sequence[str]) -> Callable[[Result], None]:
    if suffix != ".csv":
        return lambda result: print(as_json(result), file=file)
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns)

    def write(result: Result) -> None:
        flat: dict[str, Any] = {}
        for key, value in result.items():
            if isinstance(value, Mapping):
                flat |= {f"{key}_{sub}": number for sub, number in value.items()}
            else:
                flat[key] = ";".join(value) if isinstance(value, list) else value
        table.writerow([flat.get(column) for column in columns])

    return write


def print_table(results: Sequence[Result], kind: str, most: int | None = None) -> None:
    """A table of results on the terminal: text, label, and a bar per label shown.

    Args:
        results: see `Result`.
        kind: ``probs`` (drawn as bars) or ``logits`` (numbers only).
        most: labels shown of each result, highest first; None shows all.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = []
    for result in results:
        words = " ".join(result["text"].split())
        if "pair" in result:
            words += " | " + " ".join(result["pair"].split())
        label = ", ".join(result["labels"]) if "labels" in result else result["label"]
        scores = sorted((result[kind] or {}).items(), key=lambda score: -score[1])[:most]
        rows.append((Text(words), Text(label or "-", style="bold"), scores))
    name_width = max((cell_len(name) for *_, scores in rows for name, _ in scores), default=0)
    drawn = [[_score(name, value, kind, name_width) for name, value in scores] for *_, scores in rows]

    console = Console()
    bars = max((line.cell_len for lines in drawn for line in lines), default=0)
    labels = min(max((label.cell_len for _, label, _ in rows), default=0), 40)
    texts = max((text.cell_len for text, *_ in rows), default=0)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    # Left to itself, rich lets a long text take the bars' room.
    room = max(console.width - bars - labels - 3 * 2, 8)
    table.add_column("text", width=max(min(texts, room), 4), no_wrap=True, overflow="ellipsis")
    table.add_column("label", width=max(labels, 5), no_wrap=True, overflow="ellipsis")
    table.add_column("probability" if kind == "probs" else "logit", min_width=bars, no_wrap=True)
    for (text, label, _), lines in zip(rows, drawn):
        table.add_row(text, label, Text("\n").join(lines))
    console.print(table)


_BAR = 16  # characters of a full bar


def _score(name: str, value: float, kind: str, width: int) -> Any:
    from rich.text import Text

    if kind != "probs":
        return Text.assemble(f"{name:<{width}} ", f"{value:9.4f}")
    eighths = round(min(max(value, 0.0), 1.0) * _BAR * 8)
    bar = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    return Text.assemble(f"{name:<{width}} ", (f"{bar:<{_BAR}}", "cyan"), f" {value:6.1%}")
