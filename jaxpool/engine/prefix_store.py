"""What was computed of shared beginnings: kept on the devices, as long as there is room."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from typing import Any

import numpy as np

from jaxpool.engine.beginnings import Beginning, Owner


class PrefixStore:
    """A bounded store of immutable device arrays, of which the least recently used give way. Thread-safe.

    A batch that reads an entry keeps it alive until it is done, whatever happens here meanwhile.

    Args:
        limit: most bytes, on each device.

    Attributes:
        limit: most bytes.
        bytes: of all entries.
        hits, misses: lookups that found an entry, and that did not.
        evictions: entries that gave way.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.hits = self.misses = self.evictions = 0
        self._entries: OrderedDict[Beginning, tuple[Any, int]] = OrderedDict()
        self._lengths: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, beginning: Beginning) -> bool:
        return beginning in self._entries

    def get(self, beginning: Beginning) -> Any:
        """What was kept of it, or None; counts as a use."""
        with self._lock:
            found = self._entries.get(beginning)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(beginning)
            return found[0]

    def put(self, beginning: Beginning, value: Any, size: int) -> None:
        """Keeps a value of ``size`` bytes, unless it is larger than the whole store."""
        with self._lock:
            self._drop(beginning)
            if size > self.limit:
                return
            while self.bytes + size > self.limit:
                self._drop(next(iter(self._entries)))
                self.evictions += 1
            self._entries[beginning] = (value, size)
            self._lengths[beginning.length] += 1
            self.bytes += size

    def longest(self, ids: np.ndarray, owner: Owner, limit: int) -> Beginning | None:
        """The longest entry of at most ``limit`` tokens that a text of these ids begins with; no use of it."""
        with self._lock:
            for length in sorted((length for length in self._lengths if length <= limit), reverse=True):
                beginning = Beginning.of(ids, length, owner)
                if beginning in self._entries:
                    return beginning
        return None

    def clear(self) -> None:
        """Keeps nothing any more."""
        with self._lock:
            self._entries.clear()
            self._lengths.clear()
            self.bytes = 0

    def _drop(self, beginning: Beginning) -> None:
        found = self._entries.pop(beginning, None)
        if found is not None:
            self.bytes -= found[1]
            self._lengths[beginning.length] -= 1
            if not self._lengths[beginning.length]:
                del self._lengths[beginning.length]
