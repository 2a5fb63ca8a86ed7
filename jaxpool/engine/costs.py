"""What programs take, learned: seconds of each program and each compile, kept for the next process.

The planner's formula (`buckets.CostModel`) is a guess per chip. `Costs` corrects it by what was measured, and by its
neighbours where a shape was not: after a few batches the planner knows this machine and this model.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import exp, isfinite, log
from statistics import median
from typing import Any

import numpy as np

from jaxpool.engine.buckets import Bucket, CostModel

FORMAT = 2
"""Raise it when the content of the file changes."""

SAMPLES = 8
"""Runs of a program that are remembered; their mean counts, the slowest of four or more left out."""

NEAR = 1.0
"""Octaves of tokens, and of length, over which what was measured of one shape tells about another."""

SAVE_SECONDS = 30.0
"""At most so often is the file written while batches run."""

MOST_ENTRIES = 4096


class Costs:
    """Prices of one model on one kind of device. Thread-safe.

    Args:
        prior: what to assume.
        buckets: the shapes that may be asked for.
        read: gives what ``write`` kept last, or None.
        write: keeps bytes for other processes; what several write is merged.
        on_disk: whether the compile cache holds an entry of this key.
        learns: False keeps to the prior whatever is measured.
    """

    def __init__(
        self,
        prior: CostModel,
        buckets: Sequence[Bucket] = (),
        read: Callable[[], bytes | None] = lambda: None,
        write: Callable[[bytes], object] = lambda _content: None,
        on_disk: Callable[[str], bool] = lambda _key: False,
        *,
        learns: bool = True,
    ) -> None:
        self.prior, self._buckets = prior, tuple(buckets)
        self._read, self._write, self._on_disk = read, write, on_disk
        self._lock, self._learns = threading.Lock(), learns
        self._runs: dict[Bucket, deque[float]] = {}
        self._warm: set[Bucket] = set()  # have run in this process
        self._doubtful: set[Bucket] = set()  # measured while something else ran, and never else
        self._compiles: list[float] = []
        self._loads: list[float] = []
        self._keys: dict[Bucket, str] = {}
        self._model: CostModel | None = None
        self._changed, self._saved = False, time.monotonic()
        self._take(_parsed(read()))

    @property
    def model(self) -> CostModel:
        """The prices as they are known now."""
        with self._lock:
            if self._model is None:
                self._model = self._learned() if self._learns else self.prior
            return self._model

    def seconds(self) -> dict[Bucket, float]:
        """Measured seconds of every program that was."""
        with self._lock:
            return {bucket: _typical(runs) for bucket, runs in self._runs.items()}

    def ran(self, bucket: Bucket, seconds: float, *, disturbed: bool = False) -> None:
        """A batch took ``seconds``; ``disturbed`` if something else wanted the same cores meanwhile."""
        if not 0 < seconds < float("inf"):
            return
        with self._lock:
            runs = self._runs.get(bucket)
            if bucket not in self._warm:  # a first run also makes room and touches memory: it tells nothing
                self._warm.add(bucket)
                return
            if runs is None:
                self._runs[bucket] = deque([seconds], SAMPLES)
                if disturbed:
                    self._doubtful.add(bucket)
            elif disturbed and bucket not in self._doubtful:
                return
            else:
                before = _typical(runs)
                if not disturbed and bucket in self._doubtful:
                    self._doubtful.discard(bucket)
                    runs.clear()
                runs.append(seconds)
                if abs(log(_typical(runs) / before)) < 0.02:
                    return
            self._model, self._changed = None, True
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def compiled(self, bucket: Bucket, seconds: float, key: str | None = None, *, found: bool = False) -> None:
        """A program is there after ``seconds``; ``found`` on disk or compiled, and kept there under ``key``."""
        with self._lock:
            (self._loads if found else self._compiles).append(seconds)
            if key is not None:
                self._keys[bucket] = key
            self._model, self._changed = None, True
        if not found:
            self.save()  # a process that is killed has compiled for the next one

    def save(self) -> None:
        """Keeps what was learned, beside what others have learned meanwhile."""
        with self._lock:
            if not self._changed:
                return
            self._changed, self._saved = False, time.monotonic()
            ours: dict[str, Any] = {
                "runs": {bucket: _typical(runs) for bucket, runs in self._runs.items()},
                "keys": dict(self._keys),
                "compiles": self._compiles[-SAMPLES:],
                "loads": self._loads[-SAMPLES:],
            }
        theirs = _parsed(self._read())
        merged = {name: {**theirs[name], **ours[name]} for name in ("runs", "keys")}
        content = {
            "format": FORMAT,
            "runs": [[*_numbers(bucket), seconds] for bucket, seconds in merged["runs"].items()],
            "keys": [[*_numbers(bucket), key] for bucket, key in merged["keys"].items()],
            **{name: ours[name] or theirs[name] for name in ("compiles", "loads")},
        }
        self._write(json.dumps(content).encode())

    def _take(self, kept: dict[str, Any]) -> None:
        for bucket, seconds in kept["runs"].items():
            self._runs[bucket] = deque([seconds], SAMPLES)
            self._doubtful.add(bucket)  # gives way to what this process measures
        self._kept = frozenset(self._runs)
        self._keys |= kept["keys"]
        self._compiles += kept["compiles"]
        self._loads += kept["loads"]

    def _learned(self) -> CostModel:
        prior = self.prior
        compile_seconds = median(self._compiles[-SAMPLES:]) if self._compiles else prior.seconds_per_compile
        measured = {bucket: _typical(runs) for bucket, runs in self._runs.items()}
        sure = {b: seconds for b, seconds in measured.items() if b not in self._doubtful or b in self._kept}
        return replace(
            prior,
            known=foretold(prior, sure, self._buckets) | measured,
            seconds_per_compile=compile_seconds,
            seconds_per_load=median(self._loads[-SAMPLES:]) if self._loads else compile_seconds / 10,
            on_disk=frozenset(bucket for bucket, key in self._keys.items() if self._on_disk(key)),
        )


def foretold(prior: CostModel, measured: dict[Bucket, float], buckets: Iterable[Bucket]) -> dict[Bucket, float]:
    """Seconds of what was measured, and of other buckets from how wrong the formula was near them."""
    if not measured:
        return {}
    others = [bucket for bucket in buckets if bucket not in measured]
    wrong = np.array([log(seconds / prior.formula(bucket)) for bucket, seconds in measured.items()])
    at = np.array([_place(bucket) for bucket in measured])
    result = dict(measured)
    if others:
        distance = (((np.array([_place(bucket) for bucket in others])[:, None] - at) / NEAR) ** 2).sum(axis=-1)
        weight = np.exp(-distance / 2) + 1e-3  # far from everything: the mean of all
        correction = (weight * wrong).sum(axis=1) / weight.sum(axis=1)
        result |= {b: prior.formula(b) * exp(c) for b, c in zip(others, correction.tolist())}
    return result


def _typical(runs: Sequence[float]) -> float:
    """Batches that overlap share the device: one seems too fast and the other too slow, their mean is right."""
    most = sorted(runs)[: -1 if len(runs) > 3 else None]
    return sum(most) / len(most)


def _place(bucket: Bucket) -> tuple[float, float]:
    return log(bucket.tokens, 2), log(bucket.length, 2)


def _numbers(bucket: Bucket) -> list[int]:
    return [getattr(bucket, name) for name in Bucket.__slots__]


def _parsed(content: bytes | None) -> dict[str, Any]:
    """What a file holds; whatever in it has another form than we write is nothing."""
    runs: dict[Bucket, float] = {}
    keys: dict[Bucket, str] = {}
    times: dict[str, list[float]] = {"compiles": [], "loads": []}
    size = len(Bucket.__slots__)
    try:
        data = json.loads(content or b"{}")
        if isinstance(data, dict) and data.get("format") == FORMAT:
            for name in times:
                times[name] = [float(one) for one in data[name] if _sane(one)][-SAMPLES:]
            for *shape, value in data["runs"][:MOST_ENTRIES]:
                if len(shape) == size and _is_shape(shape) and _sane(value):
                    runs[Bucket(*shape)] = float(value)
            for *shape, value in data["keys"][:MOST_ENTRIES]:
                if len(shape) == size and _is_shape(shape) and isinstance(value, str):
                    keys[Bucket(*shape)] = value
    except (ValueError, TypeError, KeyError, AttributeError):
        return {"runs": {}, "keys": {}, "compiles": [], "loads": []}
    return {"runs": runs, "keys": keys, **times}


def _is_shape(numbers: list[Any]) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers) and min(numbers[:2]) > 0


def _sane(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0
