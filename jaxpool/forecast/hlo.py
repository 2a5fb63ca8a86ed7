"""Operations, bytes and cycles of a compiled program, read from the text of its optimised HLO.

XLA's own ``cost_analysis`` counts the body of a loop once, and a model is a loop over its layers; here bodies count as
often as they run. Bytes are those of operands and results in the device's main memory, padded to tiles as they lie
there; what the compiler placed beside the cores (layouts with ``S(1)``) moves for nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from math import prod

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "copy-done",
        "slice-done", "async-done", "async-update", "iota", "opt-barrier", "while", "call", "conditional"}  # fmt: skip
"""Operations that move no bytes themselves."""

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32,
        "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8}  # fmt: skip

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_END = re.compile(
    r"^\}(?:$|,? *execution_thread=|\s*//)"
)  # lines of a kernel's own configuration begin with it as well
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(slots=True)
class Operation:
    """One line of HLO."""

    name: str
    type: str
    code: str
    operands: list[str]
    arguments: str
    rest: str


@dataclass(slots=True)
class Counts:
    """What one run of a program takes on one device.

    Attributes:
        flops: of matrix products and convolutions.
        bytes: read from and written to the device's main memory.
        cycles: the compiler's own estimates, added up; it knows nothing of collectives.
        collectives: how often each runs.
        kernels: hand-written ones (custom calls) by name, and how often each runs; their flops are not counted.
        unknown_loops: loops whose trips could not be read; each was counted as one.
    """

    flops: float = 0.0
    bytes: float = 0.0
    cycles: float = 0.0
    collectives: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    unknown_loops: int = 0


def count(text: str) -> Counts:
    """Counts of a module, by the text that ``Compiled.as_text()`` gives.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations, entry = _parsed(text)
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    found = Counts()
    _walk(computations, entry, 1.0, found)
    return found


Computations = dict[str, dict[str, Operation]]


def _parsed(text: str) -> tuple[Computations, str | None]:
    computations: Computations = {}
    entry, inside = None, None
    for line in text.splitlines():
        if (head := _HEAD.match(line)) is not None:
            inside = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif _END.match(line) is not None:
            inside = None
        elif inside is not None and (found := _LINE.match(line)) is not None:
            arguments, rest = _closed(found[4])
            inside[found[1]] = Operation(found[1], found[2], found[3], _names(arguments), arguments, rest)
    return computations, entry


def _names(text: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", text)


def _closed(text: str) -> tuple[str, str]:
    """Splits at the parenthesis that closes an argument list."""
    depth = 1
    for i, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def _walk(computations: Computations, name: str, times: float, found: Counts) -> None:
    inside = computations.get(name, {})
    for one in inside.values():
        if one.code == "while":
            body, condition = _named(one, "body"), _named(one, "condition")
            trips = _trips(computations, one, condition)
            found.unknown_loops += trips is None
            _walk(computations, body, times * (trips or 1), found)
        elif one.code in ("call", "async-start") and (called := _named(one, "calls") or _named(one, "to_apply")):
            _walk(computations, called, times, found)
        elif one.code == "conditional":
            branches = _names(one.rest.partition("branch_computations={")[2].partition("}")[0])
            for branch in branches:  # one of them runs; which is not known
                _walk(computations, branch, times / len(branches), found)
        _weigh(computations, inside, one, times, found)


def _weigh(
    computations: Computations, inside: dict[str, Operation], one: Operation, times: float, found: Counts
) -> None:
    base = one.code.removesuffix("-start")
    if base in COLLECTIVES:
        found.collectives[base] += round(times)
    if one.code == "custom-call":
        target = re.search(r'custom_call_target="([^"]+)"', one.rest)
        if target is not None and target[1] == "tpu_custom_call":
            found.kernels[_kernel(one)] += round(times)
    if (cycles := _CYCLES.search(one.rest)) is not None:
        found.cycles += times * int(cycles[1])
    found.flops += times * _flops(computations, inside, one)
    if one.code not in FREE:
        found.bytes += times * _moved(computations, inside, one)


def _kernel(one: Operation) -> str:
    named = re.search(r'op_name="([^"]*)"', one.rest)
    parts = [part for part in (named[1] if named else "").split("/") if "pallas" in part or "attention" in part]
    return parts[-1] if parts else one.name.partition(".")[0]


def _named(one: Operation, attribute: str) -> str:
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", one.rest)
    return found[1] if found else ""


def _trips(computations: Computations, loop: Operation, condition: str) -> int | None:
    """Times a loop runs: what XLA says, or the number that its counter, from 0 by one, is compared with."""
    if (known := _TRIPS.search(loop.rest)) is not None:
        return int(known[1])
    bounds = []
    for one in computations.get(condition, {}).values():
        if one.code == "constant" and one.type.startswith(("s32[]", "u32[]", "s64[]")):
            bounds += [int(one.arguments)] if one.arguments.isdigit() else []
    return max(bounds) if bounds else None


def _flops(computations: Computations, inside: dict[str, Operation], one: Operation) -> float:
    if one.code == "fusion":
        fused = computations.get(_named(one, "calls"), {})
        return sum(_flops(computations, fused, inner) for inner in fused.values())
    if one.code == "dot":
        left = _dimensions(inside, one.operands[0])
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
        sizes = [left[int(i)] for i in contracted[1].split(",") if i] if contracted else []
        return 2.0 * prod(_sizes(one.type)) * prod(sizes)
    if one.code == "convolution":
        return _convolution(inside, one)
    return 0.0


def _convolution(inside: dict[str, Operation], one: Operation) -> float:
    """TPUs do every matrix product as a convolution, batches as windows of which one place in each is not padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if labels is None:
        return 0.0
    left, kernel, out = _dimensions(inside, one.operands[0]), _dimensions(inside, one.operands[1]), _sizes(one.type)
    window = {
        name: values.split("x")
        for name, values in re.findall(r"(\w+)=([\d_x\-]+)", one.rest.partition("window={")[2].partition("}")[0])
    }
    flops = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")] * kernel[labels[2].index("i")]
    for i in range(sum(sign.isdigit() for sign in labels[1])):

        def part(name: str, default: str, i: int = i) -> str:
            return window[name][i] if name in window else default

        flops *= _taps(
            left[labels[1].index(str(i))],
            out[labels[3].index(str(i))],
            int(part("size", "1")),
            int(part("stride", "1")),
            int(part("pad", "0_0").split("_")[0]),
            int(part("lhs_dilate", "1")),
            int(part("rhs_dilate", "1")),
        )
    return flops


@cache
def _taps(size: int, out: int, window: int, stride: int, pad: int, spread: int, spread_window: int) -> int:
    """Pairs of an output and a place in its window that fall on an input, along one dimension."""
    import numpy as np

    at = np.arange(out)[:, None] * stride - pad + np.arange(window) * spread_window
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


def _dimensions(inside: dict[str, Operation], name: str) -> list[int]:
    return _sizes(inside[name].type) if name in inside else []


def _sizes(kind: str) -> list[int]:
    found = _SHAPE.match(kind.lstrip("("))
    return [int(size) for size in found[2].split(",") if size] if found else []


def _moved(computations: Computations, inside: dict[str, Operation], one: Operation) -> float:
    """Bytes that an operation reads from main memory and writes to it."""
    if one.code.endswith("-start") and one.code.removesuffix("-start") not in COLLECTIVES:
        first = _SHAPE.search(one.type)  # a tuple: target, source, context
        return (_bytes(first[0]) if first else 0.0) + sum(_bytes(inside[n].type) for n in one.operands if n in inside)
    if one.code in ("dynamic-slice", "slice", "gather"):
        return 2 * _bytes(one.type)
    if one.code == "dynamic-update-slice":
        return 2 * _bytes(inside[one.operands[1]].type)
    fused = computations.get(_named(one, "calls")) if one.code == "fusion" else None
    written = _bytes(one.type)
    if fused is not None and (update := _updated(fused)) is not None and written:
        written = min(written, update)
    read = 0.0
    for i, name in enumerate(one.operands):
        whole = _bytes(inside[name].type) if name in inside else 0.0
        read += min(whole, _part_read(computations, fused, i)) if fused is not None and whole else whole
    return read + written


def _updated(fused: dict[str, Operation]) -> float | None:
    """Bytes of the part that a fusion writes into an array in place, if it is such a one."""
    last = list(fused.values())[-1]
    return 2 * _bytes(fused[last.operands[1]].type) if last.code == "dynamic-update-slice" else None


def _part_read(computations: Computations, fused: dict[str, Operation], index: int) -> float:
    """Bytes of a fusion's operand that it reads: slices of it, where it takes only such."""
    parameter = next((o for o in fused.values() if o.code == "parameter" and o.arguments == str(index)), None)
    if parameter is None:
        return float("inf")
    total = 0.0
    for user in fused.values():
        if parameter.name not in user.operands:
            continue
        if user.code in ("dynamic-slice", "slice", "gather"):
            total += _bytes(user.type, anywhere=True)
        elif user.code == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue  # written in place
        elif user.code == "fusion" and (inner := computations.get(_named(user, "calls"))):
            total += _part_read(computations, inner, user.operands.index(parameter.name))
        else:
            return float("inf")
    return total


def _bytes(kind: str, *, anywhere: bool = False) -> float:
    """Bytes of a type that lie in main memory, padded to its tiles."""
    total = 0.0
    for element, sizes, order, layout in _SHAPE.findall(kind):
        if element not in BITS or (not anywhere and re.search(r"S\([1-9]", layout)):
            continue
        shape = [int(size) for size in sizes.split(",") if size]
        tile = re.match(r"T\(([\d,]+)\)", layout)
        if tile is not None and shape:
            minor = [int(i) for i in order.split(",") if i]
            for axis, unit in zip(minor, reversed([int(n) for n in tile[1].split(",")])):
                shape[axis] = -(-shape[axis] // unit) * unit
        total += prod(shape) * BITS[element] / 8
    return total
