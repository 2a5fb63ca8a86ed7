"""Places in parameters: which layer of which group, and which expert of it, a source tensor fills.

A rule's ``{layer}`` and ``{expert}`` capture numbers. Its target may exist once, with all layers stacked, or in
several groups named ``from<start>by<step>``, where layers differ in kind:
``backbone.layers.from3by8.attention.query.kernel`` holds the layers 3, 11, 19 and so on. Rules do not mention groups;
the names and shapes of the parameters say it all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product

from jaxpool_conversions.rules import Rule

Place = tuple[str, tuple[int, ...]]
"""A parameter path and an index into its leading axes: ``()``, ``(row,)`` or ``(row, expert)``."""

_GROUP = re.compile(r"\.from(\d+)by(\d+)(?=\.)")
_FIELDS = ("layer", "expert")


@cache
def pattern(template: str) -> re.Pattern[str]:
    """``{layer}`` and ``{expert}`` capture a number; ``{rest}``, in ignore rows, is any run of characters."""
    literal = re.escape(template).replace(r"\{rest\}", ".*")
    for field in _FIELDS:
        literal = literal.replace(rf"\{{{field}\}}", rf"(?P<{field}>0|[1-9]\d*)")
    return re.compile(literal)


def numbers(rule: Rule, name: str) -> tuple[int, ...] | None:
    """What a source name gives for the rule's fields, layer first; None if it is not the rule's."""
    found = pattern(rule.source).fullmatch(name)
    if found is None:
        return None
    given = [int(found[field]) for field in _FIELDS if field in found.groupdict()]
    if given:
        given[0] = given[0] * rule.every + rule.first
    return *given, *(() if rule.expert is None else (rule.expert,))


def depth(rule: Rule) -> int:
    """How many leading axes of the parameter the rule's source does not have."""
    return len(pattern(rule.source).groupindex) + (rule.expert is not None)


@cache
def split(path: str) -> tuple[str, int, int]:
    """A parameter path without its group, and the group's first layer and step."""
    group = _GROUP.search(path)
    return (path, 0, 1) if group is None else (_GROUP.sub("", path), int(group[1]), int(group[2]))


def find(rule: Rule, given: tuple[int, ...], targets: Mapping[str, tuple[int, ...]]) -> Place | None:
    """The place that a rule's source of these numbers fills; None if the model has no such place.

    Args:
        rule: the rule.
        given: from :func:`numbers`.
        targets: shape of each parameter, by path.
    """
    for path in _groups(rule.target, frozenset(targets)):
        _, start, step = split(path)
        place = ((given[0] - start) // step, *given[1:]) if given else ()
        inside = all(0 <= i < size for i, size in zip(place, targets[path]))
        if len(place) <= len(targets[path]) and inside and (not given or (given[0] - start) % step == 0):
            return path, place
    return None


@cache
def _groups(target: str, paths: frozenset[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if split(path)[0] == target)


def sources(rule: Rule, path: str, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Every index into the leading axes of a parameter, with the source name that the rule has for it."""
    for place in product(*map(range, shape[: depth(rule)])):
        if rule.expert in (None, place[-1] if place else None) and (not place or place[0] % rule.every == rule.first):
            yield place, source(rule, path, place)


def source(rule: Rule, path: str, place: tuple[int, ...]) -> str:
    """The source name that a rule has for a place."""
    _, start, step = split(path)
    given = ((start + step * place[0]) // rule.every, *place[1:]) if place else ()
    name = rule.source
    for field, number in zip(_FIELDS, given):
        name = name.replace(f"{{{field}}}", str(number))
    return name
