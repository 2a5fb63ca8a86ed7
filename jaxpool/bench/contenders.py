"""Contenders in processes of their own: started, told what to do, measured in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from jaxpool.errors import JaxpoolError


class Contender:
    """A worker process.

    Attributes:
        name: of the library.
        about: what it told when it was ready; ``ways`` are the names of ways to call it.
    """

    def __init__(self, name: str, process: subprocess.Popen[str], task: dict[str, Any]) -> None:
        self.name, self._process = name, process
        self.about = self._exchange({**task, "name": name})

    def settle(self, texts: Sequence[str] = ()) -> None:
        """Warm it up; these texts, or those that it was given when it started, are what will come."""
        self._exchange({"do": "settle", "texts": list(texts)})

    def bulk(self, way: str, texts: Sequence[str] = ()) -> float:
        """Seconds for all texts in one call."""
        return float(self._exchange({"do": "bulk", "way": way, "texts": list(texts)})["seconds"])

    def alone(self, way: str, texts: Sequence[str]) -> list[float]:
        """Seconds of each text in a call of its own."""
        return list(self._exchange({"do": "alone", "way": way, "texts": list(texts)})["seconds"])

    def figures(self, seconds: float, texts: Sequence[str] = ()) -> dict[str, Any]:
        """What only ours tells of bulk calls that took ``seconds``."""
        return self._exchange({"do": "figures", "seconds": seconds, "texts": list(texts)})

    def _exchange(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise JaxpoolError(f"{self.name} ended without an answer (exit code {self._process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise JaxpoolError(f"{self.name} failed: {answer['error']}")
        return answer


@contextlib.contextmanager
def running(
    name: str, task: dict[str, Any], *, python: str = sys.executable, environment: dict[str, str] | None = None
) -> Iterator[Contender]:
    """A contender, ready; its process ends with the context.

    Raises:
        JaxpoolError: it cannot be opened, or fails later; says why.
    """
    process = subprocess.Popen(
        [python, "-m", "jaxpool.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield Contender(name, process, task)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def alternate(contenders: Sequence[Contender], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of bulk calls by (name, way), the contenders taking turns in every round."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for one in contenders:
            for way in one.about["ways"]:
                seconds.setdefault((one.name, way), []).append(one.bulk(way))
    return seconds


def rate(texts: int, seconds: Sequence[float]) -> float:
    """Texts per second, by the median."""
    return texts / median(seconds)
