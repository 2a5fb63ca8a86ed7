"""One model over the devices of several processes: all do every unit together, and process 0 writes.

Every process reads and tokenises the same rows and makes the same plans of them, as every program is compiled before
the first: nothing but the device's own traffic passes between them. If one dies, all end, and are begun again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxpool.batch.labelling import Labeller
from jaxpool.batch.local import MAX_ERRORS, Planned, Summary, label, too_many
from jaxpool.batch.manifest import finish
from jaxpool.batch.parts import done_units
from jaxpool.batch.pipeline import ahead
from jaxpool.batch.progress import Progress, Report
from jaxpool.batch.reading import Reading
from jaxpool.batch.share import Share
from jaxpool.batch.units import Unit
from jaxpool.errors import JaxpoolError


def join(coordinator: str | None, share: Share) -> bool:
    """Makes this process one of those of ``jax.distributed``; returns whether it is process 0.

    Args:
        coordinator: ``HOST:PORT`` of process 0; None leaves everything to what JAX finds of the cluster.
        share: which process this is, of how many; of use with ``coordinator`` only.

    Raises:
        JaxpoolError: they do not find each other.
    """
    # Two batches in flight must not meet on the wire in two orders: GPUs and TPUs have streams, the CPU has not.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        if coordinator is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, share.count, share.index)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise JaxpoolError(f"the processes of --mesh global do not find each other: {reason}") from error
    return bool(jax.process_index() == 0)


def work(
    planned: Planned,
    max_errors: int | None = MAX_ERRORS,
    report: Report | None = None,
    options: dict[str, Any] | None = None,
) -> Summary:
    """Does what is left of a job, in every process at once; arguments as in ``local.work``.

    Raises:
        JaxpoolError: as there; what concerns the rows is raised in every process.
    """
    first = jax.process_index() == 0
    known = np.zeros(len(planned.units), np.int32)
    known[list(done_units(planned.output))] = 1
    done = np.flatnonzero(multihost_utils.broadcast_one_to_all(known))  # a folder need not look alike everywhere
    left = [unit for unit in planned.units if unit.index not in set(done.tolist())]
    progress = Progress(len(planned.units), len(done), size=sum(unit.size for unit in left))
    if left:
        given = dict(options or {})
        copies = jax.device_count() // given.get("tensor_parallel_size", 1)
        with planned.settings.open_model(compile="ahead", data_parallel_size=copies, **given) as llm:
            if first:
                receipts = label(
                    left,
                    llm,
                    planned.settings,
                    planned.output,
                    planned.json_columns,
                    progress,
                    max_errors,
                    report,
                    calls=1,
                )
                for _ in receipts:
                    pass
            else:
                _follow(planned, left, Labeller(llm, planned.settings), max_errors)
            multihost_utils.sync_global_devices("jaxpool: every unit is done")
    return Summary(progress, finish(planned.output, planned.units) if first else None)


def _follow(planned: Planned, units: Sequence[Unit], labeller: Labeller, max_errors: int | None) -> None:
    """The same computations in the same order as ``label`` makes, and nothing else."""
    settings, rejected = planned.settings, 0
    for unit in units:
        chunks = iter(Reading(unit, settings.columns, settings.encoding))
        for chunk, prepared in ahead(((chunk, labeller.prepare(chunk.columns)) for chunk in chunks), 2):
            labelled = labeller.compute(prepared)
            rejected += len(chunk.rejected) + len(labelled.refused)
            if max_errors is not None and rejected > max_errors:
                raise too_many(rejected, max_errors, "see process 0")
