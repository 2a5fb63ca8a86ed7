"""Where a large CSV file can be cut: at ends of rows, and never inside a quoted text."""

from __future__ import annotations

from typing import Any

import numpy as np

_BLOCK = 4 << 20
_QUOTE, _NEWLINE = b'"'[0], b"\n"[0]


def row_starts(stream: Any, step: int, delimiter: str) -> list[int] | None:
    """Positions at which rows begin: of the first row after the header, then of one about every ``step`` bytes.

    Quotes are counted: an even number of them before a line's end means that a row ends there. That holds if every
    quote that opens stands at the beginning of a field and every one that closes at an end; it is checked.

    Args:
        stream: the bytes of the file, read from its beginning.
        step: bytes.
        delimiter: one character.

    Returns:
        Ascending positions below the file's size, or None where quotes stand elsewhere, so that cutting would be
        guessing.
    """
    begins = np.frombuffer(delimiter.encode() + b'\n"', np.uint8)
    ends = np.frombuffer(delimiter.encode() + b'\n\r"', np.uint8)
    found: list[int] = []
    quotes, offset, wanted = 0, 0, 1
    held = np.frombuffer(b"\n", np.uint8)  # the byte before the file, then the last two of the block before
    while True:
        block = stream.read(_BLOCK)
        data = np.concatenate([held, np.frombuffer(block or b"\n", np.uint8)])
        inner = data[1:-1]  # those whose neighbours are both known
        at = np.flatnonzero(inner == _QUOTE)
        opens = (quotes + np.arange(len(at))) % 2 == 0
        if not (np.isin(data[at][opens], begins).all() and np.isin(data[at + 2][~opens], ends).all()):
            return None
        lines = np.flatnonzero(inner == _NEWLINE)
        outside = lines[(quotes + np.searchsorted(at, lines)) % 2 == 0] + offset + 1
        while (index := int(np.searchsorted(outside, wanted))) < len(outside):
            found.append(int(outside[index]))
            wanted = found[-1] + step
        quotes += len(at)
        offset += len(inner)
        held = data[-2:]
        if not block:
            break
    return [start for start in found if start < offset]
