"""Strict accounting: which source tensors fill which parameters, found from names and shapes alone.

Every source tensor is used or ignored with a reason, every parameter is filled exactly once, every shape
fits; else one WeightsError lists the names. No values are read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from jaxpool.errors import WeightsError
from jaxpool_conversions import stacking
from jaxpool_conversions.reader import Index
from jaxpool_conversions.rules import HeadSource, Part, Rule, Step, Table, Transpose

HEAD_KERNEL = "head.out.kernel"
HEAD_BIAS = "head.out.bias"
_LISTED = 10
_COPY = "a copy of another tensor"
_LOSSES = ("loss_fct", "loss_fn", "loss", "criterion")
"""Modules whose buffers (weights of the classes) some training loops save with the model."""


@dataclass(frozen=True, slots=True)
class Source:
    """One source tensor of a parameter (or of one layer of it) and the steps applied to it, in order."""

    name: str
    steps: tuple[Step, ...] = ()
    copy: bool = False


@dataclass(frozen=True, slots=True)
class Fill:
    """What fills one parameter: a source for each index into its first ``depth`` axes.

    The whole parameter (0), one source per layer (1), or per layer and expert (2).
    """

    sources: dict[tuple[int, ...], Source]
    depth: int


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
    found: dict[str, dict[tuple[int, ...], list[Source]]] = {path: {} for path in targets}
    accounts = Accounts()
    unmapped: list[str] = []
    for name in sorted(shapes):
        matches = matching(name, table)
        active = [(rule, found_at) for rule, given in matches if (found_at := stacking.find(rule, given, targets))]
        for rule, (path, place) in active:
            found[path].setdefault(place, []).append(Source(name, rule.steps, rule.copy))
        if active or name in (head.weight, head.bias):
            continue
        reason = ignored_because(name, table)
        if reason is not None:
            accounts.ignored[name] = reason
        elif matches:
            unmapped.append(f"{name} (the configuration has no {_target(*matches[0])})")
        else:
            unmapped.append(name)

    duplicate: list[str] = []
    missing: list[str] = []
    misshapen: list[str] = []
    for path, shape in targets.items():
        if path in (HEAD_KERNEL, HEAD_BIAS):
            continue
        rules = [rule for rule in (*table.rules, *table.head) if rule.target == stacking.split(path)[0]]
        # Experts come one by one or fused; the first found decides, and the other layout is then one too many.
        depth = max(map(len, found[path]), default=max(map(stacking.depth, rules), default=0))
        fills = {}
        for place in product(*map(range, shape[:depth])):
            covering = [source for n in range(depth + 1) for source in found[path].get(place[:n], [])]
            if not covering:
                missing.append(_missing(path, place, rules, table))
                continue
            originals = [source for source in covering if not source.copy] or covering[:1]
            accounts.ignored.update({source.name: _COPY for source in covering if source not in originals})
            covering = originals
            if len(covering) > 1:
                duplicate.append(f"{_place(path, place)} from " + " and ".join(source.name for source in covering))
            fills[place] = covering[-1]
            name, steps = covering[-1].name, covering[-1].steps
            if shape_after(shapes[name], steps) != shape[depth:]:
                needed = _shape_before(shape[depth:], steps)
                misshapen.append(f"{name} {list(shapes[name])}, where {path} needs {needed}")
        accounts.fills[path] = Fill(fills, depth)
    _refuse(unmapped, duplicate, missing, misshapen)
    return accounts


def shape_after(shape: tuple[int, ...], steps: Sequence[Step]) -> tuple[int, ...] | None:
    """Shape of a source once ``steps`` are applied; None when they cannot be."""
    for step in steps:
        match step:
            case Transpose():
                if len(shape) < 2:
                    return None
                shape = (*shape[:-2], shape[-1], shape[-2])
            case Part(axis, _, count, width, groups):
                if axis >= len(shape) or shape[axis] % (count * groups):
                    return None
                shape = (*shape[:axis], shape[axis] // count * width, *shape[axis + 1 :])
    return shape


def _shape_before(leaf: tuple[int, ...], steps: Sequence[Step]) -> list[int]:
    """The shape that a source must have for ``steps`` to give ``leaf``."""
    shape = list(leaf)
    for step in reversed(steps):
        match step:
            case Transpose():
                shape[-2:] = shape[:-3:-1]
            case Part(axis, _, count, width, _):
                shape[axis] = shape[axis] * count // width
    return shape


def source_index(index: Index, steps: Sequence[Step], shape: tuple[int, ...]) -> Index:
    """The slice of a source (of ``shape``) that the slice ``index`` of the result of ``steps`` comes from.

    Where a part is taken of several groups, ``index`` must lie within one of them (``runs``).
    """
    befores = [shape_after(shape, steps[:count]) for count in range(len(steps))]
    for step, before in zip(reversed(steps), reversed(befores)):
        assert before is not None, "account() has checked the shapes"
        match step:
            case Transpose():
                index = (*index[:-2], index[-1], index[-2])
            case Part(axis, number, count, width, groups):
                unit = before[axis] // (count * groups)
                group = index[axis].start // (unit * width)
                shift = (group * (count - width) + number) * unit
                moved = slice(index[axis].start + shift, index[axis].stop + shift)
                index = (*index[:axis], moved, *index[axis + 1 :])
    return index


def runs(index: Index, steps: Sequence[Step], shape: tuple[int, ...]) -> Iterator[tuple[Index, Index]]:
    """Cuts the slice ``index`` of the result of ``steps`` such that each run lies in one slice of the source.

    Yields:
        For each run, its slice of the source and its slice of what ``index`` selects.
    """
    axis, length = _grouped(steps, shape)
    if axis is None:
        yield source_index(index, steps, shape), (slice(None),) * len(index)
        return
    start, stop = index[axis].start, index[axis].stop
    for first in range(start - start % length, stop, length):
        run = slice(max(first, start), min(first + length, stop))
        place = slice(run.start - start, run.stop - start)
        rest = (slice(None),) * (len(index) - axis - 1)
        yield (
            source_index((*index[:axis], run, *index[axis + 1 :]), steps, shape),
            ((slice(None),) * axis + (place,) + rest),
        )


def _grouped(steps: Sequence[Step], shape: tuple[int, ...]) -> tuple[int | None, int]:
    """The axis of the result along which groups of the source alternate, and how much of it each gives."""
    axis, length = None, 0
    for position, step in enumerate(steps):
        match step:
            case Part(part_axis, _, count, width, groups) if groups > 1:
                before = shape_after(shape, steps[:position])
                assert before is not None, "account() has checked the shapes"
                axis, length = part_axis, before[part_axis] // (count * groups) * width
            case Transpose() if axis is not None and axis >= len(shape) - 2:
                axis = 2 * len(shape) - 3 - axis
    return axis, length


def bare(name: str, table: Table) -> str:
    """A source name without what the table has before backbone names."""
    return next((name.removeprefix(prefix) for prefix in table.prefixes if prefix and name.startswith(prefix)), name)


def matching(name: str, table: Table) -> list[tuple[Rule, tuple[int, ...]]]:
    """The rules for a source name (without the prefix, or as it is) and the numbers in it."""
    for candidate in dict.fromkeys((bare(name, table), name)):
        given = [(rule, stacking.numbers(rule, candidate)) for rule in (*table.rules, *table.head)]
        hits = [(rule, found) for rule, found in given if found is not None]
        if hits:
            return hits
    return []


def ignored_because(name: str, table: Table) -> str | None:
    """Why nobody reads a source tensor on purpose; None if somebody should."""
    for row in table.ignore:
        if any(stacking.pattern(row.source).fullmatch(candidate) for candidate in (name, bare(name, table))):
            return row.reason
    if name.split(".")[0] in _LOSSES:
        return "of the loss of training"
    if any(bare(name, table) in (f"{other}.weight", f"{other}.bias") for other in table.head_names):
        return "another head is in use"
    return None


def _target(rule: Rule, given: tuple[int, ...]) -> str:
    return _place(rule.target, given)


def _place(path: str, place: tuple[int, ...]) -> str:
    _, start, step = stacking.split(path)
    layer = f"layer {start + step * place[0]} of " if place else ""
    return (f"expert {place[1]} in " if len(place) > 1 else "") + layer + path


def _missing(path: str, place: tuple[int, ...], rules: Iterable[Rule], table: Table) -> str:
    names = [stacking.source(rule, path, place[: stacking.depth(rule)]) for rule in rules]
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
