"""How far a process is, for people on a terminal and, as JSON lines, for whatever else reads along."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

LINE_EVERY = 5.0  # seconds between two JSON lines
_BAR = 20


@dataclass
class Progress:
    """What this process has done since it began.

    Attributes:
        units, units_before: of this process's share; those that had been done already.
        units_done: since.
        size, size_done: bytes of units to do, and of those of them that are done, fractions of units included.
        rows, rejected, tokens: rows labelled, rows that went to side files, tokens computed.
        slots: tokens computed, padding included.
        busy: seconds during which the device had work.
        labels: label -> rows.
        other_rows: rows of units done before.
        clock: seconds.
    """

    units: int = 0
    units_before: int = 0
    units_done: int = 0
    size: int = 0
    size_done: float = 0.0
    rows: int = 0
    rejected: int = 0
    tokens: int = 0
    slots: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._busy, self._active, self._since = 0.0, 0, 0.0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the device has work."""
        with self._lock:
            if not self._active:
                self._since = self.clock()
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                if not self._active:
                    self._busy += self.clock() - self._since

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self.clock() - self.started

    @property
    def busy(self) -> float:
        """Seconds during which the device had work."""
        with self._lock:
            return self._busy + (self.clock() - self._since if self._active else 0.0)

    def as_json(self) -> dict[str, Any]:
        """The figures of one line."""
        seconds = max(self.seconds, 1e-9)
        rest = self.size - self.size_done
        return {
            "units_done": self.units_before + self.units_done,
            "units": self.units,
            "rows": self.rows,
            "rejected": self.rejected,
            "seconds": round(seconds, 1),
            "rows_per_second": round(self.rows / seconds, 1),
            "eta_seconds": round(seconds * rest / self.size_done, 1) if self.size_done else None,
            "padding_waste": round(1 - self.tokens / self.slots, 4) if self.slots else 0.0,
            "device_share": round(min(self.busy / seconds, 1.0), 3),
            "labels": dict(self.labels.most_common(20)),
        }


Report = Callable[[Progress], None]


@contextlib.contextmanager
def lines(stream: TextIO, every: float = LINE_EVERY) -> Iterator[Report]:
    """A report that writes a JSON line now and then."""
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            print(json.dumps({"event": "progress"} | progress.as_json(), ensure_ascii=False), file=stream, flush=True)

    yield report


@contextlib.contextmanager
def live(stream: TextIO) -> Iterator[Report]:
    """A report that draws on a terminal, and is gone when the block ends."""
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=stream), transient=True, auto_refresh=False) as view:
        last = 0.0

        def report(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= 0.25:
                last = time.monotonic()
                view.update(drawn(progress), refresh=True)

        yield report


def drawn(progress: Progress) -> Any:
    """The view of a terminal: a bar, the figures, and the shares of the labels."""
    from rich.table import Table
    from rich.text import Text

    now = progress.as_json()
    share = progress.size_done / progress.size if progress.size else 1.0
    done = f"{now['units_done']:,} of {now['units']:,} units, {now['rows']:,} rows"
    if now["rejected"]:
        done += f", {now['rejected']:,} rejected"
    eta = "" if now["eta_seconds"] is None else f", {duration(now['eta_seconds'])} left"
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_row(bar(share), f"{share:4.0%}  {done}")
    speed = f"{now['rows_per_second']:,.0f} rows/s{eta}"
    table.add_row("", f"{speed}; padding {now['padding_waste']:.0%}, device busy {now['device_share']:.0%}")
    total = sum(progress.labels.values())
    for label, count in progress.labels.most_common(8):
        table.add_row(bar(count / total), Text(f"{count / total:4.0%}  {label} ({count:,})"))
    return table


def bar(share: float) -> Any:
    """A bar of fixed width."""
    from rich.text import Text

    full = round(min(max(share, 0.0), 1.0) * _BAR)
    return Text("█" * full + "·" * (_BAR - full), style="cyan")


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    shown = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(shown[:2]) or "0 s"
