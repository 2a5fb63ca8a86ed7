"""The logs, one JSON object per line: the access log, and what the server says of itself."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.state import OBSERVERS, OPTIONS, PROBES

if TYPE_CHECKING:
    from jaxpool_serving.state import RequestRecord

log = logging.getLogger("jaxpool.serving")

STDOUT = "-"
FLUSH_SECONDS = 0.1
MAX_WAITING = 100_000
"""Lines kept while whoever reads the log does not; later ones are lost, and the log says how many."""


class AccessLog:
    """Collects lines in the event loop and writes them from a thread: neither a full pipe nor a slow disk holds
    a request up.

    Args:
        to: path of a file to append to, or ``-`` for standard output.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, to: str) -> None:
        # A descriptor, not a stream: a thread that hangs in a stream's lock would hang the interpreter's end too.
        self._descriptor = (
            os.dup(sys.__stdout__.fileno() if sys.__stdout__ else 1)
            if to == STDOUT
            else os.open(to, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        )
        self._lines: deque[str] = deque()
        self._lost = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def answered(self, _: web.Request, record: RequestRecord) -> None:
        """Log a request; probes are left out, they would be most of the log. See `middleware.record_request`."""
        if record.path in PROBES:
            return
        if len(self._lines) >= MAX_WAITING:
            self._lost += 1
            return
        entry: dict[str, object] = {
            "time": iso_time(record.time),
            "method": record.method,
            "path": record.path,
            "status": record.status,
            "ms": round(record.total * 1000, 3),
            "request_id": record.request_id,
        }
        if record.model is not None:
            entry |= {"model": record.model, "texts": record.texts, "tokens": record.tokens}
            for part in ("tokenise", "queue", "device"):
                entry[f"{part}_ms"] = round(getattr(record, part) * 1000, 3)
        if record.trace_id is not None:
            entry["trace_id"] = record.trace_id
        self._lines.append(json.dumps(entry))  # ASCII: every control character and line break is escaped

    def close(self) -> None:
        """Write what is left; gives up after a second if nobody reads."""
        self._stopping.set()
        self._thread.join(1.0)

    def _write(self) -> None:
        healthy = True
        while not self._stopping.wait(FLUSH_SECONDS) or self._lines:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            lost, self._lost = self._lost, 0
            if lost:
                lines.append(json.dumps({"lost_lines": lost}))
            rest = "".join(f"{line}\n" for line in lines).encode()
            try:
                while rest:
                    rest, healthy = rest[os.write(self._descriptor, rest) :], True
            except OSError as error:
                if healthy:
                    log.error("the access log cannot be written, lines are lost: %s", error.strerror)
                healthy = False
        os.close(self._descriptor)


async def access_log_context(app: web.Application) -> AsyncIterator[None]:
    """A cleanup context of the application: keeps the access log that its options ask for."""
    to = app[OPTIONS].access_log
    if to is None:
        yield
        return
    access_log = AccessLog(to)
    app[OBSERVERS].append(access_log.answered)
    yield
    access_log.close()


def iso_time(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON; line breaks and control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        entry = {
            "time": iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def log_as_json() -> None:
    """Turns what is logged to the handlers there are (standard error, for the command) into JSON lines."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter())
