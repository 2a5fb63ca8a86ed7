"""A table of results on the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from jaxpool.files.writers import Result

_BAR = 16  # characters of a full bar
_LEAST = 8  # columns of the text, if they can be had
_GAP = 2  # columns between columns


def printable(text: str) -> str:
    """``text`` without power over a terminal: control characters, and those that turn reading around, as escapes."""
    if text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    turns = unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    if unicodedata.category(char) in ("Cc", "Cs") or turns:
        return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
    return char


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, in columns as wide as they must be; never folded, whatever reads it."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join("  ".join(word.ljust(n) for word, n in zip(row, widths)).rstrip() for row in (head, *rows))


def print_table(results: Sequence[Result], kind: str, most: int | None = None) -> None:
    """A table of results on the terminal: text, label, and a bar per label shown.

    A narrow terminal loses first the bars, then all but the highest score, last the text: never label and score.

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
        scores = sorted(result[kind].items(), key=lambda score: -score[1])[:most]
        shown = [(printable(name), value) for name, value in scores]
        rows.append((Text(printable(words)), Text(printable(label) or "-", style="bold"), shown))

    console = Console()
    labels = min(max((label.cell_len for _, label, _ in rows), default=5), 40)
    texts = max((text.cell_len for text, *_ in rows), default=0)
    name_width = max((cell_len(name) for *_, scores in rows for name, _ in scores), default=0)
    for bars, names in ((kind == "probs", True), (False, True), (False, False)):
        drawn = [_scores(scores, kind, name_width if names else 0, bars) for *_, scores in rows]
        width = max((line.cell_len for lines in drawn for line in lines), default=0)
        room = console.width - width - labels - 3 * _GAP
        if room >= min(_LEAST, texts):
            break
    else:
        labels = max(min(labels, console.width - width - 2 * _GAP - 1), 1)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    # Left to itself, rich lets a long text take the room of label and score.
    table.add_column("text", width=max(min(texts, room), 1), no_wrap=True, overflow="ellipsis")
    table.add_column("label", width=labels, no_wrap=True, overflow="ellipsis")
    header = ("probability" if width >= len("probability") else "prob") if kind == "probs" else "logit"
    table.add_column(header, width=max(width, len(header)), no_wrap=True)
    for (text, label, _), lines in zip(rows, drawn):
        table.add_row(text, label, Text("\n").join(lines))
    console.print(table)


def _scores(scores: Sequence[tuple[str, float]], kind: str, width: int, bars: bool) -> list[Any]:
    """A line per score; without ``width`` the names are left out, and all but the highest score."""
    if not width:
        scores = [("", value) for _, value in scores[:1]]
    return [_score(name, value, kind, width, bars) for name, value in scores]


def _score(name: str, value: float, kind: str, width: int, bars: bool) -> Any:
    from rich.text import Text

    named = f"{name:<{width}} " if width else ""
    if kind != "probs":
        return Text.assemble(named, f"{value:9.4f}")
    eighths = round(min(max(value, 0.0), 1.0) * _BAR * 8)
    bar = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    return Text.assemble(named, *([(f"{bar:<{_BAR}} ", "cyan")] if bars else []), f"{value:6.1%}")
