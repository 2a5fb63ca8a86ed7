"""Which units are this process's, of several that run the same job and never talk: flags, or what a cluster says."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxpool.batch.units import Unit
from jaxpool.errors import ValidationError


@dataclass(frozen=True, slots=True)
class Share:
    """Every ``count``-th unit, beginning with number ``index``.

    Attributes:
        index, count: which process this is, of how many.
        source: who said so.
    """

    index: int = 0
    count: int = 1
    source: str = "one process"

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValidationError(
                f"process {self.index} of {self.count} ({self.source}): processes are counted from 0 to count - 1"
            )

    def own(self, units: Sequence[Unit]) -> list[Unit]:
        """This process's units, in order."""
        return [unit for unit in units if unit.index % self.count == self.index]

    def others(self, units: Sequence[Unit]) -> list[Unit]:
        """Everybody else's, in an order of this process's own, so that two who help seldom help with the same."""
        rest = [unit for unit in units if unit.index % self.count != self.index]
        random.Random(self.index).shuffle(rest)
        return rest

    def todo(
        self, units: Sequence[Unit], done: set[int], steal: bool, is_done: Callable[[Unit], bool]
    ) -> Iterator[Unit]:
        """What this process does, asking again right before each unit whether somebody else has done it.

        Args:
            units: of the job.
            done: indices known to be done.
            steal: whether to go on with everybody else's.
            is_done: looks whether a unit is done by now.
        """
        for unit in [*self.own(units), *(self.others(units) if steal else [])]:
            if unit.index not in done and not (self.count > 1 and is_done(unit)):
                yield unit


def found_share(
    index: int | None = None, count: int | None = None, environment: Mapping[str, str] = os.environ
) -> Share:
    """This process's share, from the two flags or from the first cluster whose variables are set.

    GKE's TPU slices (alone or several), Slurm arrays and steps, SkyPilot, and Kubernetes' Indexed Jobs, which tell
    the index only.

    Raises:
        ValidationError: half an answer.
    """
    if index is not None and count is not None:
        return Share(index, count, "--process-index and --process-count")
    given = {name: value for name, value in environment.items() if value != ""}
    for source, read in SOURCES.items():
        try:
            found = read(given)
        except ValueError as error:
            raise ValidationError(f"{source}: {error}") from error
        if found is not None:
            who, many = found if index is None else (index, found[1])
            return Share(who, many if count is None else count, source)
    if "JOB_COMPLETION_INDEX" in given or index is not None:
        if count is None:
            raise ValidationError(
                "this is one process of several (JOB_COMPLETION_INDEX or --process-index), but nobody says of how "
                "many; pass --process-count or set JAXPOOL_PROCESS_COUNT"
            )
        return Share(index or int(given["JOB_COMPLETION_INDEX"]), count, "JOB_COMPLETION_INDEX")
    if count is not None:
        raise ValidationError("--process-count says how many processes there are; --process-index says which is this")
    return Share()


def _ours(given: Mapping[str, str]) -> tuple[int, int] | None:
    if "JAXPOOL_PROCESS_COUNT" not in given:
        return None
    index = given.get("JAXPOOL_PROCESS_INDEX", given.get("JOB_COMPLETION_INDEX"))
    if index is None:
        raise ValueError("JAXPOOL_PROCESS_COUNT is set, JAXPOOL_PROCESS_INDEX is not")
    return int(index), int(given["JAXPOOL_PROCESS_COUNT"])


def _slurm_array(given: Mapping[str, str]) -> tuple[int, int] | None:
    if "SLURM_ARRAY_TASK_ID" not in given:
        return None
    first, step = int(given.get("SLURM_ARRAY_TASK_MIN", 0)), int(given.get("SLURM_ARRAY_TASK_STEP", 1))
    return (int(given["SLURM_ARRAY_TASK_ID"]) - first) // step, int(given["SLURM_ARRAY_TASK_COUNT"])


def _two(index: str, count: str) -> Callable[[Mapping[str, str]], tuple[int, int] | None]:
    def read(given: Mapping[str, str]) -> tuple[int, int] | None:
        return (int(given[index]), int(given[count])) if index in given and count in given else None

    return read


def _tpu(given: Mapping[str, str]) -> tuple[int, int] | None:
    if "TPU_WORKER_ID" not in given or "TPU_WORKER_HOSTNAMES" not in given:
        return None
    hosts = len(given["TPU_WORKER_HOSTNAMES"].split(","))
    slice_index, slices = int(given.get("MEGASCALE_SLICE_ID", 0)), int(given.get("MEGASCALE_NUM_SLICES", 1))
    return slice_index * hosts + int(given["TPU_WORKER_ID"]), slices * hosts


SOURCES: dict[str, Callable[[Mapping[str, str]], tuple[int, int] | None]] = {
    "JAXPOOL_PROCESS_INDEX and JAXPOOL_PROCESS_COUNT": _ours,
    "a Slurm array": _slurm_array,
    "a Slurm step": _two("SLURM_PROCID", "SLURM_NTASKS"),
    "SkyPilot": _two("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    "a TPU slice": _tpu,
}
"""Who may say which process this is -> how to read it; the first that says anything is believed."""
