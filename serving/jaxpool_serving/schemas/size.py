"""How much a body may hold, whatever it says: checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxpool.errors import ValidationError

MAX_MEMBERS = 2**15
"""Members of all lists and objects together, the outermost included."""
TOO_MANY = f"The lists of this request have more than {MAX_MEMBERS} members; split it."

TOKENS = frozenset({"input", "tokens"})
"""Fields whose lists of numbers are token ids, and do not count; other limits hold for them."""


def refuse_huge(found: Mapping[str, Any]) -> None:
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


def members(found: object) -> int:
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
