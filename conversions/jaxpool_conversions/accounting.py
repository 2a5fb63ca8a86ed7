"""Strict accounting: which source tensors fill which parameters, found from names and shapes alone.

Every source tensor is used or ignored with a reason, every parameter is filled exactly once, every shape
fits; else one WeightsError lists the names. No values are read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from jaxpool.errors import WeightsError
from jaxpool_conversions.reader import Index
from jaxpool_conversions.rules import HeadSource, Part, Rule, Step, Table, Transpose

HEAD_KERNEL = "head.out.kernel"
HEAD_BIAS = "head.out.bias"
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Source:
    """One source tensor of a parameter (or of one layer of it) and the steps applied to it, in order."""

    name: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Fill:
    """What fills one parameter: one source, or one per layer if it is stacked."""

    sources: tuple[Source, ...]
    stacked: bool


@dataclass(frozen=True, slots=True)
class Accounts:
    """The result.

    Attributes:
        fills: parameter path -> its sources. The last linear layer of the head is not among them: its
            :class:`HeadSource` says all there is to say.
        ignored: source tensors read by nobody -> the reason.
    """

    fills: dict[str, Fill] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


def account(
    shapes: Mapping[str, tuple[int, ...]],
    table: Table,
    head: HeadSource,
    targets: Mapping[str, tuple[int, ...]],
) -> Accounts:
    """Match sources to parameters.

    Args:
        shapes: shape of each source tensor, by name.
        table: the family's rules. A rule whose target is not among ``targets`` is inactive.
        head: where the last linear layer comes from.
        targets: shape of each parameter, by path; stacked ones with the layer axis in front.

    Raises:
        WeightsError: names (at most ten of each kind) of what is unmapped, duplicate, missing or misshapen.
    """
    found: dict[tuple[str, int], list[Source]] = {}
    accounts = Accounts()
    unmapped: list[str] = []
    for name in sorted(shapes):
        matches = _match(name, table)
        active = [(rule, layer) for rule, layer in matches if _exists(rule, layer, targets)]
        for rule, layer in active:
            found.setdefault((rule.target, layer), []).append(Source(name, rule.steps))
        if active or name in (head.weight, head.bias):
            continue
        reason = _ignored_because(name, table)
        if reason is not None:
            accounts.ignored[name] = reason
        elif matches:
            unmapped.append(f"{name} (the configuration has no {_target(*matches[0])})")
        else:
            unmapped.append(name)

    duplicate = [
        f"{_target_name(path, layer, table)} from " + " and ".join(s.name for s in sources)
        for (path, layer), sources in found.items()
        if len(sources) > 1
    ]
    missing: list[str] = []
    misshapen: list[str] = []
    for path, shape in targets.items():
        if path in (HEAD_KERNEL, HEAD_BIAS):
            continue
        rules = [rule for rule in (*table.rules, *table.head) if rule.target == path]
        stacked = bool(shape) and any(_stacked(rule) for rule in rules)
        layers, leaf = (range(shape[0]), shape[1:]) if stacked else (range(1), shape)
        fills = []
        for layer in layers:
            sources = found.get((path, layer), [])
            if not sources:
                missing.append(_missing(path, layer, rules, table))
                continue
            fills.append(sources[0])
            name, steps = sources[0].name, sources[0].steps
            if shape_after(shapes[name], steps) != leaf:
                needed = _shape_before(leaf, steps)
                misshapen.append(f"{name} {list(shapes[name])}, where {path} needs {needed}")
        accounts.fills[path] = Fill(tuple(fills), stacked)
    _refuse(unmapped, duplicate, missing, misshapen)
    return accounts


def shape_after(shape: tuple[int, ...], steps: Sequence[Step]) -> tuple[int, ...] | None:
    """Shape of a source once ``steps`` are applied; None when they cannot be."""
    for step in steps:
        match step:
            case Transpose():
                if len(shape) != 2:
                    return None
                shape = (shape[1], shape[0])
            case Part(axis, _, count):
                if axis >= len(shape) or shape[axis] % count:
                    return None
                shape = (*shape[:axis], shape[axis] // count, *shape[axis + 1 :])
    return shape


def _shape_before(leaf: tuple[int, ...], steps: Sequence[Step]) -> list[int]:
    """The shape that a source must have for ``steps`` to give ``leaf``."""
    shape = list(leaf)
    for step in reversed(steps):
        match step:
            case Transpose():
                shape.reverse()
            case Part(axis, _, count):
                shape[axis] *= count
    return shape


def source_index(index: Index, steps: Sequence[Step], shape: tuple[int, ...]) -> Index:
    """The slice of a source (of ``shape``) that the slice ``index`` of the result of ``steps`` comes from."""
    befores = [shape_after(shape, steps[:count]) for count in range(len(steps))]
    for step, before in zip(reversed(steps), reversed(befores)):
        assert before is not None, "account() has checked the shapes"
        match step:
            case Transpose():
                index = (index[1], index[0])
            case Part(axis, number, count):
                shift = number * (before[axis] // count)
                moved = slice(index[axis].start + shift, index[axis].stop + shift)
                index = (*index[:axis], moved, *index[axis + 1 :])
    return index


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """``{layer}`` captures a layer number; ``{rest}``, in ignore rows, is any run of characters."""
    literal = re.escape(template).replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d*)").replace(r"\{rest\}", ".*")
    return re.compile(literal)


def bare(name: str, table: Table) -> str:
    """A source name without the table's prefix."""
    return name.removeprefix(table.prefix)


def _match(name: str, table: Table) -> list[tuple[Rule, int]]:
    """The rules for a source name (without the prefix, or as it is) and its layer, 0 if not stacked."""
    rules = (*table.rules, *table.head)
    for candidate in dict.fromkeys((bare(name, table), name)):
        matches = [(rule, _pattern(rule.source).fullmatch(candidate)) for rule in rules]
        hits = [(rule, int(m.groupdict().get("layer") or 0)) for rule, m in matches if m is not None]
        if hits:
            return hits
    return []


def _ignored_because(name: str, table: Table) -> str | None:
    for row in table.ignore:
        if any(_pattern(row.source).fullmatch(candidate) for candidate in (name, bare(name, table))):
            return row.reason
    if any(bare(name, table) in (f"{other}.weight", f"{other}.bias") for other in table.head_names):
        return "another head is in use"
    return None


def _stacked(rule: Rule) -> bool:
    return "{layer}" in rule.source


def _exists(rule: Rule, layer: int, targets: Mapping[str, tuple[int, ...]]) -> bool:
    if rule.target not in targets:
        return False
    shape = targets[rule.target]
    return not _stacked(rule) or (bool(shape) and layer < shape[0])


def _target(rule: Rule, layer: int) -> str:
    return f"layer {layer} of {rule.target}" if _stacked(rule) else rule.target


def _target_name(path: str, layer: int, table: Table) -> str:
    return next(_target(rule, layer) for rule in (*table.rules, *table.head) if rule.target == path)


def _missing(path: str, layer: int, rules: Iterable[Rule], table: Table) -> str:
    names = [rule.source.replace("{layer}", str(layer)) for rule in rules]
    if not names:
        return f"{path} (no rule of the table fills it)"
    return " or ".join(names) + (f" (also looked for with prefix {table.prefix!r})" if table.prefix else "")


def listed(names: Sequence[str]) -> str:
    """At most ten names, then how many more there are."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _refuse(
    unmapped: Sequence[str], duplicate: Sequence[str], missing: Sequence[str], misshapen: Sequence[str]
) -> None:
    kinds = (
        ("tensors that no rule uses", unmapped),
        ("parameters given twice", duplicate),
        ("missing tensors", missing),
        ("tensors of the wrong shape", misshapen),
    )
    problems = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names]
    if problems:
        raise WeightsError(
            f"weights and config.json do not fit together: {'; '.join(problems)}. "
            "Check that both belong to the same checkpoint"
        )
