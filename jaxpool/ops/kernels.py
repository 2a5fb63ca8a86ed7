"""Which kernel computes an attention: one table, decided while a program is traced.

Nothing here computes; ``attention.py`` asks ``choose`` and runs what it names. The figures are of the TPU compiler
(v5e, bfloat16) and of two CPU cores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

Name = Literal["dense", "blocks", "cudnn", "splash"]

QUERY_BLOCK = 512
"""Texts longer than two blocks are attended one block of queries at a time: memory is O(block * T), not O(T * T)."""

logger = logging.getLogger(__name__)


class Implementation(NamedTuple):
    """Where programs run, and what the user insists on; given to every model when it is built.

    Attributes:
        platform: ``cpu``, ``gpu`` or ``tpu``.
        forced: a kernel to use wherever it can compute what is asked, or None for the table's choice.
        capability: of a CUDA device, 9.0 for Hopper; 0.0 elsewhere.
        interpreted: whether TPU kernels are interpreted, for tests without a TPU.
    """

    platform: str = "cpu"
    forced: Name | None = None
    capability: float = 0.0
    interpreted: bool = False


ANYWHERE = Implementation()
"""What XLA alone computes, on any platform."""


class Call(NamedTuple):
    """What decides which kernel can compute an attention, and which should.

    Attributes:
        queries, keys: tokens of a row that ask, and that are asked.
        picked: whether the queries are a few of the row's tokens.
        head_size, value_size: of queries and keys, and of values.
        bits: of a number.
        packed: whether rows hold several texts.
        causal: whether a query sees only what precedes it.
        window: how far it sees; None for all, 0 where only the device knows.
        plain: whether scores are neither biased nor capped, and no key is a landmark.
        sinks: whether heads may attend to nothing.
        softcap: whether scores are capped.
        branched: whether rows end in a tree of continuations.
        past: keys of a shared beginning that no row holds.
    """

    queries: int
    keys: int
    picked: bool
    head_size: int
    value_size: int
    bits: int
    packed: bool
    causal: bool
    window: int | None
    plain: bool
    sinks: bool
    softcap: bool
    branched: bool = False
    past: int = 0


class Kernel(NamedTuple):
    """One row of the table.

    Attributes:
        platforms: where it exists; ``any`` for everywhere.
        can: what it computes.
        wins: what it is chosen for, of that.
        why: the reason.
    """

    name: Name
    platforms: str
    can: Callable[[Call, Implementation], bool]
    wins: Callable[[Call], bool]
    why: str


def _always(*_: object) -> bool:
    return True


def _splash(call: Call, _: Implementation) -> bool:
    whole = not call.picked and call.queries == call.keys and call.keys % 128 == 0
    return whole and call.plain and call.window != 0 and not call.branched and not call.past


def _cudnn(call: Call, at: Implementation) -> bool:
    largest = 256 if at.capability >= 9 else 128
    fits = call.bits == 16 and call.head_size % 8 == 0 and call.head_size <= largest
    return (
        fits
        and call.head_size == call.value_size
        and not (call.picked or call.branched or call.past)
        and call.plain
        and call.window != 0
        and not (call.sinks or call.softcap or (_needs_mask(call) and call.keys > 2 * QUERY_BLOCK))
    )


def _needs_mask(call: Call) -> bool:
    """Whether cuDNN must be told token by token what it may see: lengths and left windows it knows itself."""
    return call.packed or (call.window is not None and not call.causal)


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "splash",
        "tpu",
        _splash,
        lambda call: call.keys >= 512,
        "scores stay in fast memory and windows skip what they cannot see: Qwen2.5-0.5B 296 -> 107 ms at 512 tokens, "
        "1985 -> 279 at 8,192. Its tiles are 128 wide: shorter rows are better off dense.",
    ),
    Kernel(
        "cudnn",
        "gpu",
        _cudnn,
        _always,
        "fused, scores never leave the chip. 16 bits, heads of 128 (256 on Hopper); packed rows and two-sided windows "
        "need a mask [B, 1, T, T], which is small up to 1,024 tokens only.",
    ),
    Kernel(
        "blocks",
        "any",
        # Within a branch tokens are farther apart in the row than by position: blocks of a window would miss keys.
        lambda call, _: not call.picked and call.queries == call.keys and (call.window is None or not call.branched),
        lambda call: call.keys > 2 * QUERY_BLOCK or bool(call.window and 8 * call.window <= call.keys),
        "a block of queries at a time: memory grows with the text, not with its square, and blocks that a window "
        "hides are never computed (a window of 128 sees 768 of 8,192 keys).",
    ),
    Kernel(
        "dense",
        "any",
        _always,
        _always,
        "matrix products and a softmax: XLA's own, best for short rows everywhere (attention is 3 % of BERT-base's "
        "work at 128 tokens), and the only one for a few queries of a row.",
    ),
)
"""The first row whose platform it is, that can and wins, computes. A forced kernel only has to be able to."""


def choose(call: Call, at: Implementation) -> Name:
    """The kernel that computes ``call``."""
    here = [row for row in KERNELS if row.platforms in (at.platform, "any") and row.can(call, at)]
    forced = [row.name for row in here if row.name == at.forced]
    name = (forced or [row.name for row in here if row.wins(call)])[0]
    _log(at.platform, call, name)
    return name


def available(platform: str) -> tuple[Name, ...]:
    """Kernels that exist on a platform."""
    return tuple(row.name for row in KERNELS if row.platforms in (platform, "any"))


@cache
def _log(platform: str, call: Call, name: str) -> None:
    logger.info("attention on %s: %s for %s", platform, name, call)
