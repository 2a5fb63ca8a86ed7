"""JSON of large bodies: weighed before anything is made of it, and read in small steps.

A body is read in a thread, but a call into C keeps all other threads waiting until it returns. So no call here takes
longer than a few milliseconds, whatever the body is.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from json import decoder
from typing import Any

import numpy as np

from jaxpool.errors import ValidationError

AT_ONCE = 2**16
"""Bytes of a body that the event loop reads itself."""

MAX_IDS = 2**20
"""Token ids of a body."""
MAX_STRING_BYTES = 2**22
"""Bytes of one string: the longest text that the server takes by default is smaller, even if all is escaped."""
STEP = 2**18
"""Bytes that are looked at in one call."""

SCAN = decoder.JSONDecoder().scan_once  # type: ignore[attr-defined]  # in C


def loads(body: bytes) -> Any:
    """As ``json.loads``, with its errors, for bodies of any size.

    Raises:
        ValidationError: it is large, and holds too much.
        ValueError, RecursionError: as ``json.loads`` does.
    """
    if len(body) <= AT_ONCE:
        return json.loads(body)
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        body = body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    check_json_size(body)
    decode = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8-sig" else "utf-8")("surrogatepass").decode
    text = "".join([decode(body[start : start + STEP]) for start in range(0, len(body), STEP)] + [decode(b"", True)])
    start = _after_space(text, 0)
    # lists, and the outermost object, in Python; all other objects have few keys, and strings are short
    is_object = text[start : start + 1] == "{"
    found, end = _outermost(text, start) if is_object else _element(text, start)
    if (end := _after_space(text, end)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return found


def check_json_size(body: bytes) -> None:
    """Refuse JSON that would be a burden to read. All that is counted here is counted without Python's lock.

    Raises:
        ValidationError: it has too many members, too many numbers, or too long a string.
    """
    keys = opened = commas = quotes = 0
    inside, string_start, start = False, 0, 0
    while start < len(body):
        chunk = body[start : start + STEP]
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:  # what is escaped belongs to its backslash
            chunk = body[start : start + STEP + 1]
        # runs of backslashes are read from the left, in pairs; what is left before a quote escapes it
        plain = np.frombuffer(chunk.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
        marks = np.flatnonzero(plain == ord('"'))
        within = (np.cumsum(plain == ord('"'), dtype=np.uint8) + np.uint8(inside)) & 1
        outside = plain[within == 0]
        keys += int(np.count_nonzero(outside == ord(":")))
        opened += int(np.count_nonzero(outside == ord("["))) + int(np.count_nonzero(outside == ord("{")))
        commas += int(np.count_nonzero(outside == ord(",")))
        quotes += len(marks)
        # from each opening quote to its closing one, those of earlier and later chunks included
        edges = np.concatenate([[string_start - start] * inside, marks, [len(plain)] * ((inside + len(marks)) % 2)])
        longest = int((edges[1::2] - edges[::2]).max(initial=0))
        if keys > MAX_MEMBERS or opened > MAX_MEMBERS or quotes > 4 * MAX_MEMBERS:
            raise ValidationError(TOO_MANY)
        if commas > MAX_MEMBERS + MAX_IDS:
            raise ValidationError(f"This request has more than {MAX_IDS} token ids; split it.")
        if longest > MAX_STRING_BYTES:
            raise ValidationError(f"A string of this request has more than {MAX_STRING_BYTES} bytes; split it.")
        if (len(marks) + inside) % 2:
            if len(marks):
                string_start = start + int(marks[-1])
            inside = True
        else:
            inside = False
        start += len(chunk)


def _after_space(text: str, start: int) -> int:
    match = decoder.WHITESPACE.match(text, start)  # type: ignore[attr-defined]  # the stubs lack what is undocumented
    return start if match is None else match.end()


def _outermost(text: str, start: int) -> tuple[Any, int]:
    """The object that begins at ``start``, and where it ends."""
    found: tuple[Any, int] = decoder.JSONObject(  # type: ignore[attr-defined]
        (text, start + 1), True, _element, None, None, {}
    )
    return found


def _element(text: str, start: int) -> tuple[Any, int]:
    """Any other value, and where it ends."""
    try:
        if text[start : start + 1] == "[":
            return decoder.JSONArray((text, start + 1), _element)  # type: ignore[attr-defined]
        return SCAN(text, start)
    except StopIteration as error:
        raise json.JSONDecodeError("Expecting value", text, error.value) from None


MAX_MEMBERS = 2**15
"""Members of all lists and objects together, the outermost included."""
TOO_MANY = f"The lists of this request have more than {MAX_MEMBERS} members; split it."

TOKENS = frozenset({"input", "tokens"})
"""Fields whose lists of numbers are token ids, and do not count; other limits hold for them."""


def check_members(found: Mapping[str, Any]) -> None:
    """Refuse a body that would keep the server busy with finding out what is wrong with it.

    Raises:
        ValidationError: it has more than `MAX_MEMBERS` members.
    """
    members = len(found)
    left = [(name in TOKENS, value) for name, value in found.items() if isinstance(value, list | dict)]
    if members > MAX_MEMBERS:
        raise ValidationError(TOO_MANY)
    while left:
        tokens, one = left.pop()
        inside = one.values() if isinstance(one, dict) else one
        if tokens and set(map(type, inside)) == {int}:
            continue
        members += len(one)
        if members > MAX_MEMBERS:
            raise ValidationError(TOO_MANY)
        left += [(tokens, value) for value in inside if isinstance(value, list | dict)]


def count_members(found: object) -> int:
    """Members of all lists and objects in a body, token ids included."""
    total, left = 0, [found]
    while left:
        inside = left.pop()
        total += len(inside) if isinstance(inside, list | dict) else 0
        if isinstance(inside, dict):
            left += [value for value in inside.values() if isinstance(value, list | dict)]
        elif isinstance(inside, list):
            left += [value for value in inside if isinstance(value, list | dict)]
    return total
