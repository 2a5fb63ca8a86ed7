"""The units of a batch job on a Ray cluster: Ray decides where and how often, receipts decide what counts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import ray
import ray.data

from jaxpool.batch.job import Settings
from jaxpool.batch.local import Planned, Summary, label
from jaxpool.batch.manifest import finish
from jaxpool.batch.parts import done_units
from jaxpool.batch.progress import Progress, Report
from jaxpool.batch.storage import in_words, place
from jaxpool.batch.units import Unit
from jaxpool.errors import JaxpoolError
from jaxpool.ray.actors import resources


def work(
    planned: Planned,
    address: str | None = None,
    *,
    actors: int | tuple[int, int] = 1,
    tpus: float = 0,
    gpus: float = 0,
    cpus: float | None = None,
    max_errors: int | None = None,
    report: Report | None = None,
    options: dict[str, Any] | None = None,
) -> Summary:
    """Does what is left of a job on a cluster. An actor that dies is begun again by Ray, and so is its unit.

    Args:
        planned: the job, begun; its inputs and its folder must be reachable from every host by the same names.
        address: of the cluster ("auto", "ray://…"); None where Ray is connected already.
        actors, tpus, gpus, cpus: see ``jaxpool.ray.classify``.
        max_errors: rejected rows of one unit before the job stops; None for any number.
        report: called with the progress after every unit.
        options: further arguments of ``LLM``.

    Raises:
        JaxpoolError: a unit cannot be done, wherever it is tried; what is done stays done.
    """
    if address is not None:
        with in_words("--ray " + address):
            ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    done = done_units(planned.output)
    left = [unit for unit in planned.units if unit.index not in done]
    progress = Progress(len(planned.units), len(done), size=sum(unit.size for unit in left))
    if left:
        items = ray.data.from_items([{"unit": unit.as_json()} for unit in left], override_num_blocks=len(left))
        arguments = (asdict(planned.settings), str(planned.output), planned.json_columns, max_errors, options or {})
        found = items.map_batches(
            Actor,
            fn_constructor_args=arguments,
            batch_size=1,
            concurrency=actors,
            **resources(tpus, gpus, cpus),
        )
        try:
            for row in found.iter_rows():
                _count(progress, row)
                if report is not None:
                    report(progress)
        except ray.exceptions.RayError as error:
            raise JaxpoolError(_cause(error)) from error
    return Summary(progress, finish(planned.output, planned.units))


def _count(progress: Progress, row: dict[str, Any]) -> None:
    progress.units_done += 1
    progress.size_done += float(row["size"])
    progress.rows += int(row["rows"])
    progress.rejected += int(row["rejected"])
    progress.tokens += int(row["tokens"])


def _cause(error: Exception) -> str:
    """The sentence at the bottom of what Ray tells."""
    while (cause := getattr(error, "cause", None)) is not None:
        error = cause
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition("Error: ")[2] or lines[-1] if lines else type(error).__name__


class Actor:
    """Does whole units, one a call; its rows are receipts.

    Args:
        settings: of the job, as plain values.
        output: its folder.
        json_columns: see ``job.describe``.
        max_errors: see `work`.
        options: further arguments of ``LLM``.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        output: str,
        json_columns: dict[str, str],
        max_errors: int | None,
        options: dict[str, Any],
    ) -> None:
        self._settings, self._output = Settings(**settings), place(output)
        self._json_columns, self._max_errors = json_columns, max_errors
        self._llm = self._settings.open_model(**options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Receipts of the units in ``batch``."""
        units = [Unit.of_json(one) for one in batch["unit"]]
        done = list(
            label(
                units,
                self._llm,
                self._settings,
                self._output,
                self._json_columns,
                max_errors=self._max_errors,
            )
        )
        return {
            "size": [unit.size for unit in units],
            **{name: [receipt[name] for receipt in done] for name in ("rows", "rejected", "tokens")},
        }
