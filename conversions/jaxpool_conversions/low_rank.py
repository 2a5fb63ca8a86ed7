"""What an adapter does to parameters: its updates through the same conversion rules as the weights they are for.

A rule that transposes a weight, takes a part of it or puts it into a stack does the same to the two factors of an
update: A lies along the input, B along the output. So no family needs code of its own, and it does not matter whether
checkpoint and adapter call or fuse their weights alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxpool.errors import WeightsError
from jaxpool_conversions import stacking
from jaxpool_conversions.accounting import HEAD_BIAS, HEAD_KERNEL, bare, ignored_because, listed, matching, shape_after
from jaxpool_conversions.peft_folder import PeftAdapter, Update
from jaxpool_conversions.rules import Part, Rule, Step, Table, Transpose

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Factors:
    """What is added to one parameter ``[…, in, out]``: ``left @ right``; zeros in layers that are not adapted.

    Attributes:
        left: float32 ``[…, in, r]``.
        right: float32 ``[…, r, out]``, scaled.
        magnitude: float32 ``[…, out]``, DoRA's, NaN in layers without; None where no layer has any.
    """

    left: np.ndarray
    right: np.ndarray
    magnitude: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """All that an adapter does, by dotted parameter path.

    Attributes:
        factors: of kernels and embeddings.
        biases: of a module (a path without ``.bias``), added to its output: float32 ``[…, out]``.
        whole: parameters that are replaced, by index into their leading axes; float32, as the parameter has it.
    """

    factors: dict[str, Factors] = field(default_factory=dict)
    biases: dict[str, np.ndarray] = field(default_factory=dict)
    whole: dict[str, dict[tuple[int, ...], np.ndarray]] = field(default_factory=dict)


def changes(adapter: PeftAdapter, table: Table, targets: Shapes) -> Changes:
    """What ``adapter`` does to a model with these parameters.

    Args:
        adapter: as read.
        table: the family's rules.
        targets: shape of each parameter, by path. The last linear layer of the head may have any number of labels.

    Raises:
        WeightsError: the model has no place for some of its tensors, or another shape there; they are named.
    """
    found = Changes()
    strays: list[str] = []
    misshapen: list[str] = []
    for update in adapter.updates:
        places = _places(update.name, table, targets)
        if not places and ignored_because(update.name, table) is None:
            strays.append(update.name)
        for rule, path, place in places:
            if problem := _add(found, update, rule, path, place, targets, adapter.rank):
                misshapen.append(problem)
    for name, values in adapter.replaced.items():
        places = _places(name, table, targets)
        if not places and ignored_because(name, table) is None:
            strays.append(name)
        for rule, path, place in places:
            stepped, needed = through(values, rule.steps), targets[path][len(place) :]
            if stepped is None or (stepped.shape != needed and path not in (HEAD_KERNEL, HEAD_BIAS)):
                misshapen.append(f"{name} {list(values.shape)}, where {path} needs {list(needed)}")
            else:
                found.whole.setdefault(path, {})[place] = stepped
    problems = [("tensors that the model has no place for", strays), ("tensors of another shape", misshapen)]
    if strays or misshapen:
        said = "; ".join(f"{len(names)} {kind}: {listed(sorted(names))}" for kind, names in problems if names)
        raise WeightsError(f"the adapter {adapter.folder} does not fit this model: {said}. Is it for another one?")
    return found


def _places(name: str, table: Table, targets: Shapes) -> list[tuple[Rule, str, tuple[int, ...]]]:
    """Where a weight goes: rule, parameter and index into its leading axes."""
    plain = bare(name, table)
    for kind, path, steps in ((".weight", HEAD_KERNEL, (Transpose(),)), (".bias", HEAD_BIAS, ())):
        if path in targets and plain.endswith(kind) and plain.removesuffix(kind) in table.head_names:
            return [(Rule(plain, path, steps), path, ())]
    found = [(rule, stacking.find(rule, given, targets)) for rule, given in matching(name, table)]
    return [(rule, *where) for rule, where in found if where is not None]


def _add(
    found: Changes,
    update: Update,
    rule: Rule,
    path: str,
    place: tuple[int, ...],
    targets: Shapes,
    rank: int,
) -> str | None:
    """Puts one update where it belongs; what is wrong with it, or None."""
    shape = targets[path]
    source = _oriented(update, update.a, update.b, rule.steps)
    pair = _pair(*source, rule.steps)
    if len(shape) < 2 or pair is None or _shape(*pair) != shape[len(place) :]:
        made = [*source[0].shape[:-1], source[1].shape[-1]]
        return f"{update.name} {made}, where {path} has {list(shape[len(place) :])}"
    if path not in found.factors:
        lead, (n_in, n_out) = shape[:-2], shape[-2:]
        found.factors[path] = Factors(
            np.zeros((*lead, n_in, rank), np.float32), np.zeros((*lead, rank, n_out), np.float32)
        )
    factors, own = found.factors[path], pair[0].shape[-1]
    if factors.left[place].any() or factors.right[place].any():
        return f"{update.name}, a second update of {path}"
    factors.left[place][..., :own] = pair[0]
    factors.right[place][..., :own, :] = pair[1]
    if update.magnitude is not None:
        if factors.magnitude is None:
            empty = np.full((*shape[:-2], shape[-1]), np.nan, np.float32)
            found.factors[path] = factors = Factors(factors.left, factors.right, empty)
        assert factors.magnitude is not None
        factors.magnitude[place] = _along_output(update, update.magnitude, rule.steps)
    if update.bias is not None:
        module = path.rpartition(".")[0]
        found.biases.setdefault(module, np.zeros((*shape[:-2], shape[-1]), np.float32))
        found.biases[module][place] += _along_output(update, update.bias, rule.steps)
    return None


def _oriented(update: Update, a: np.ndarray, b: np.ndarray, steps: Sequence[Step]) -> tuple[np.ndarray, np.ndarray]:
    """The factors as the source lies: ``[out, in]`` where its rule turns it round, else ``[in, out]`` (Conv1D)."""
    turned = sum(isinstance(step, Transpose) for step in steps) % 2 == 1
    return (b, a) if turned and not update.table else (a.swapaxes(-1, -2), b.swapaxes(-1, -2))


def _along_output(update: Update, values: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """A vector with a number per output, through the steps of the weight."""
    inputs = np.zeros((1, update.a.shape[-1]), np.float32)
    pair = _pair(*_oriented(update, inputs, values[:, None], steps), steps)
    assert pair is not None, "the weight itself went the same way"
    return pair[1][0]


def _shape(left: np.ndarray, right: np.ndarray) -> tuple[int, ...]:
    return (*left.shape[:-1], right.shape[-1])


def _pair(left: np.ndarray, right: np.ndarray, steps: Sequence[Step]) -> tuple[np.ndarray, np.ndarray] | None:
    """``left @ right`` through steps without multiplying; None where they cannot be applied."""
    for step in steps:
        if shape_after(_shape(left, right), (step,)) is None:
            return None
        match step:
            case Transpose():
                left, right = right.swapaxes(-1, -2), left.swapaxes(-1, -2)
            case Part(axis):
                of_left, of_right = axis != right.ndim - 1, axis != left.ndim - 2
                left = _part(left, step) if of_left else left
                right = _part(right, step) if of_right else right
    return left, right


def through(values: np.ndarray, steps: Sequence[Step]) -> np.ndarray | None:
    """A whole tensor through steps; None where they cannot be applied."""
    if shape_after(values.shape, steps) is None:
        return None
    for step in steps:
        values = values.swapaxes(-1, -2) if isinstance(step, Transpose) else _part(values, step)
    return values


def _part(values: np.ndarray, step: Part) -> np.ndarray:
    size = values.shape[step.axis]
    units = np.arange(size).reshape(step.groups, step.count, -1)[:, step.index : step.index + step.width]
    return np.take(values, units.reshape(-1), axis=step.axis)
