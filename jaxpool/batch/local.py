"""A job's units in this process: read and tokenised ahead, computed two chunks at a time, written in order."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxpool.batch import inputs as found_inputs
from jaxpool.batch import parts
from jaxpool.batch.columns import json_types, refuse_taken
from jaxpool.batch.job import Settings, absolute, describe, open_job
from jaxpool.batch.labelling import Labelled, Labeller, Prepared
from jaxpool.batch.manifest import finish
from jaxpool.batch.parts import Part, done_units, is_done
from jaxpool.batch.pipeline import ahead, side_by_side
from jaxpool.batch.progress import Progress, Report
from jaxpool.batch.reading import Chunk, Reading
from jaxpool.batch.share import Share
from jaxpool.batch.storage import Place, place, sweep
from jaxpool.batch.units import Unit, cut
from jaxpool.errors import InputFileError, JaxpoolError

if TYPE_CHECKING:
    from jaxpool.llm import LLM

MAX_ERRORS = 1000
"""Rows of one process that may be rejected before it stops, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A job that is known and not begun.

    Attributes:
        settings: what changes its results.
        files, units: its inputs.
        json_columns: see ``job.describe``.
        output: its folder.
    """

    settings: Settings
    files: list[found_inputs.File]
    units: list[Unit]
    json_columns: dict[str, str]
    output: Place

    def open(self) -> None:
        """Begins it in its folder, or finds it there; JaxpoolError where another one is there."""
        described = describe(self.settings, self.files, len(self.units), self.json_columns)
        open_job(self.output, described)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run has done.

    Attributes:
        progress: of this process, in this run.
        manifest: of the whole job, if it is complete now; else None.
    """

    progress: Progress
    manifest: dict[str, Any] | None


def plan(inputs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], settings: Settings) -> Planned:
    """Looks at the inputs; writes nothing.

    Raises:
        InputFileError: an input is not there, has no such column, or no row of its beginning can be read.
        ValidationError: a setting is wrong.
    """
    files = found_inputs.expand(inputs, settings.input_format)
    units = cut(files, settings.columns, settings.unit_bytes, settings.encoding)
    if not units:
        raise InputFileError(f"the inputs hold no rows: {', '.join(file.url for file in files[:3])}")
    columns: dict[str, str] = {}
    for kind in {file.format: unit for file, unit in reversed([(unit.file, unit) for unit in units])}.values():
        columns = _look(kind, settings) or columns
    return Planned(settings, files, units, columns, place(output))


def _look(unit: Unit, settings: Settings) -> dict[str, str] | None:
    """Reads the first chunk of a unit, so that what is wrong everywhere shows before a model is loaded for it."""
    chunks = iter(Reading(unit, settings.columns, settings.encoding))
    first = next(chunks)
    chunks.close()  # type: ignore[attr-defined]  # a generator
    if first.rejected and not len(first):
        raise InputFileError(f"{first.rejected[0].where}: {first.rejected[0].reason}")
    rows = first.rows
    names = {name for row in rows for name in row} if isinstance(rows, list) else set(rows.column_names)
    refuse_taken(unit.file.url, (f"{settings.prefix}label", settings.kind), names)
    return json_types(rows) if isinstance(rows, list) and settings.output_format == "parquet" else None


def run(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    llm: LLM | None = None,
    share: Share | None = None,
    steal: bool = False,
    max_errors: int | None = MAX_ERRORS,
    report: Report | None = None,
    output_format: str | None = None,
    max_num_batched_tokens: int | None = None,
    **settings: Any,
) -> Summary:
    """Labels every row of the inputs, once; what an earlier run of the same job has done stays done.

    Args:
        inputs: files, folders, globs or URLs.
        output: folder for parts, receipts, ``job.json`` and, in the end, ``manifest.json``.
        model: as in ``LLM``.
        llm: a model that is open already, made of ``model`` and the settings; it stays open.
        share: which units are this process's; None for all.
        steal: after them, help with those of other processes.
        max_errors: rows that may be rejected before the run stops; None for any number.
        report: called with the progress after every chunk.
        output_format: "parquet" or "jsonl"; None is the inputs' kind: jsonl for ``.jsonl``, else parquet.
        max_num_batched_tokens: as in ``LLM``.
        **settings: fields of ``jaxpool.batch.job.Settings``.

    Raises:
        JaxpoolError: or one of its kin, in a sentence; units done so far stay done.
    """
    names = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    if output_format is None:
        files = found_inputs.expand(names, settings.get("input_format"))
        output_format = "jsonl" if any(file.format == "jsonl" for file in files) else "parquet"
    made = Settings(model=absolute(model), output_format=output_format, **settings)
    planned = plan(names, output, made)
    planned.open()
    options = {"max_num_batched_tokens": max_num_batched_tokens}
    return work(planned, llm, share or Share(), steal, max_errors, report, options)


def work(
    planned: Planned,
    llm: LLM | None = None,
    share: Share = Share(),  # noqa: B008 - frozen
    steal: bool = False,
    max_errors: int | None = MAX_ERRORS,
    report: Report | None = None,
    options: dict[str, Any] | None = None,
) -> Summary:
    """Does what is left of a share of a job; arguments as in `run`, ``options`` are for ``LLM``."""
    output, settings = planned.output, planned.settings
    for folder in (parts.PARTS, parts.RECEIPTS, parts.REJECTED):
        sweep(output / folder)
    done = done_units(output)
    own = share.own(planned.units)
    left = [unit for unit in (planned.units if steal else own) if unit.index not in done]
    mine = len(planned.units) if steal else len(own)
    progress = Progress(units=mine, units_before=mine - len(left), size=sum(unit.size for unit in left))
    if left:
        todo = share.todo(planned.units, done, steal, functools.partial(is_done, output))
        model = llm or settings.open_model(**options or {})
        try:
            for _ in label(todo, model, settings, output, planned.json_columns, progress, max_errors, report):
                pass
        except JaxpoolError as error:
            kept = len(done_units(output))
            rest = f"{kept} of {len(planned.units)} units are done, and the same command again goes on with the others"
            error.args = (f"{error.args[0]}; {rest}", *error.args[1:])
            raise
        finally:
            if model is not llm:
                model.close()
    return Summary(progress, finish(output, planned.units))


def label(
    units: Iterable[Unit],
    llm: LLM,
    settings: Settings,
    output: Place,
    json_columns: dict[str, str],
    progress: Progress | None = None,
    max_errors: int | None = None,
    report: Report | None = None,
    calls: int = 2,
) -> Iterator[dict[str, Any]]:
    """Does units, one after the other without a pause between them; yields the receipt of each when it counts.

    Args:
        units: drawn from a little ahead of what is computed.
        llm: the model.
        settings, output, json_columns: of the job.
        progress: counted up.
        max_errors: see `run`.
        report: see `run`.
        calls: chunks computed at a time.
    """
    labeller, progress = Labeller(llm, settings), progress or Progress()
    engine, before = llm.engine, (llm.engine.tokens, llm.engine.slots)

    def read() -> Iterator[tuple[Reading, Chunk | None, Prepared | None]]:
        for unit in units:
            reading = Reading(unit, settings.columns, settings.encoding)
            for chunk in reading:
                yield reading, chunk, labeller.prepare(chunk.columns)
            yield reading, None, None

    def compute(item: tuple[Reading, Chunk | None, Prepared | None]) -> Labelled | None:
        if item[2] is None:
            return None
        with progress.computing():
            return labeller.compute(item[2])

    part: Part | None = None
    finished = 0.0
    stream = side_by_side(compute, ahead(read(), 2), calls)
    try:
        for (reading, chunk, _), labelled in stream:
            if part is None:
                part = Part(output, reading, settings, labeller, json_columns).__enter__()
            if chunk is not None and labelled is not None:
                part.add(chunk, labelled)
                _count(progress, chunk, labelled, labeller)
                progress.size_done = finished + _weight(reading.unit, chunk)
                progress.tokens, progress.slots = engine.tokens - before[0], engine.slots - before[1]
                if max_errors is not None and progress.rejected > max_errors:
                    raise too_many(progress.rejected, max_errors, part.last_rejected)
            else:
                receipt = part.commit()
                part = None
                progress.units_done += 1
                progress.size_done = finished = finished + reading.unit.size
                yield receipt
            if report is not None:
                report(progress)
    except BaseException as error:
        if part is not None:
            part.__exit__(type(error), error, error.__traceback__)
        raise
    finally:
        stream.close()  # type: ignore[attr-defined]  # a generator


def too_many(rejected: int, most: int, last: str) -> JaxpoolError:
    """The error of a run that rejects more rows than it may."""
    return JaxpoolError(f"{rejected} rows could not be classified and --max-errors is {most}; the last: {last}")


def _count(progress: Progress, chunk: Chunk, labelled: Labelled, labeller: Labeller) -> None:
    progress.rows += len(chunk) - len(labelled.refused)
    progress.rejected += len(chunk.rejected) + len(labelled.refused)
    progress.labels.update(name for name in labeller.names(labelled) if name is not None)


def _weight(unit: Unit, chunk: Chunk) -> float:
    """Bytes of a unit up to the end of a chunk, about; 0 where there is no telling."""
    if not len(chunk) or not unit.last:
        return 0.0
    if unit.rows is not None:
        return unit.size * (chunk.places[-1] + 1) / unit.rows
    return chunk.places[-1] - unit.first if unit.file.format in ("txt", "jsonl") else 0.0
