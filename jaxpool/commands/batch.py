"""``jaxpool batch``: files of any size to labelled parts, begun again as often as it takes."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jaxpool.batch import estimate, local, progress
from jaxpool.batch.inputs import KINDS, expand
from jaxpool.batch.job import JOB, Settings, absolute, read_job
from jaxpool.batch.manifest import MANIFEST, status
from jaxpool.batch.share import Share, found_share
from jaxpool.batch.storage import place
from jaxpool.commands.candidate_labels import question, question_options
from jaxpool.commands.options import engine_options, long_text_options, long_texts, model_options, natural, positive
from jaxpool.errors import JaxpoolError

_ARGUMENTS = ("recipe", "revision", "dtype", "convert", "hf_overrides", "max_model_len")
_DEVICES = ("tensor_parallel_size", "pipeline_parallel_size")
MODEL = {name: engine_options()[name] for name in (*_ARGUMENTS, "max_num_batched_tokens", *_DEVICES)}
MODEL["convert"] = replace(
    MODEL["convert"],
    about="what to make of a language model: a classifier, or an embedder",
    choices=("auto", "classify", "embed"),
)
DESCRIPTION = """\
Label every row of files, folders, globs or URLs, exactly once, and keep all their columns.

  jaxpool batch reviews.parquet --output labelled/ --text-column body
  jaxpool batch 's3://bucket/2026/*.jsonl.zst' --output s3://bucket/labelled/ --model my-model
  jaxpool batch reviews/ --output labelled/ --dry-run
  jaxpool batch status labelled/

It may be killed at any moment: the same command again does what is left. Under several processes (a TPU slice, an
Indexed Job, a Slurm array, SkyPilot, or --process-index and --process-count) each does its share. Results are in
DIR/parts, rows that cannot be classified in DIR/rejected, and DIR/manifest.json says when everything is there.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declares the options of ``jaxpool batch``."""
    command.usage = "jaxpool batch INPUT [INPUT ...] --output DIR [options]\n       jaxpool batch status DIR"
    command.description = DESCRIPTION
    add = command.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL (s3://, gs://, hf://, …)")
    add = command.add_argument_group("input").add_argument
    add("--text-column", metavar="NAME", default="text", help="column of the text (default: text)")
    add("--pair-column", metavar="NAME", help="column of a second text, for models that read two")
    add("--input-format", choices=KINDS, metavar="KIND", help=f"{', '.join(KINDS)} (default: by suffix)")
    add("--encoding", default="utf-8", help="of text files (default: utf-8)")
    add = command.add_argument_group("output").add_argument
    add("--output", metavar="DIR", help="folder or URL of the job")
    add("--output-format", choices=("parquet", "jsonl"), help="(default: jsonl for .jsonl, else parquet)")
    add("--prefix", default="", metavar="WORD", help="before the names of the columns added: label, probs")
    add("--top-k", metavar="K", type=positive, help="the K highest labels only")
    add("--logits", action="store_true", help="scores before softmax or sigmoid")
    add("--max-errors", metavar="N", type=natural, default=local.MAX_ERRORS, help="rejected rows before it stops")
    add("--quiet", action="store_true", help="no progress, no summary")
    model_options(command, MODEL)
    long_text_options(command)
    question_options(command)
    add = command.add_argument_group("work").add_argument
    add("--unit-mb", metavar="MB", type=_megabytes, help="input of a part, about (default: 32)")
    add("--dry-run", action="store_true", help="say what would be done, and how long it may take; write nothing")
    add("--process-index", metavar="I", type=natural, help="which of several processes this is, from 0")
    add("--process-count", metavar="N", type=positive, help="of how many")
    add("--steal", action="store_true", help="when its share is done, help with the others'")
    about = "local: each process has the whole model; global: one model over the devices of all processes"
    add("--mesh", choices=("local", "global"), default="local", help=f"{about} (default: local)")
    add("--coordinator", metavar="HOST:PORT", help="of process 0, for --mesh global (default: as the cluster says)")
    add("--ray", metavar="ADDRESS", help="do the units on a Ray cluster: auto, ray://HOST:PORT")
    add("--ray-actors", metavar="N", type=positive, default=1, help="copies of the model there (default: 1)")
    add("--ray-tpus", metavar="N", type=positive, default=0, help="TPU chips of each")
    add("--ray-gpus", metavar="N", type=positive, default=0, help="GPUs of each")


def main(args: argparse.Namespace) -> int:
    """Runs the command; errors are JaxpoolErrors for the caller to print."""
    if args.inputs[0] == "status" and len(args.inputs) == 2 and args.output is None:
        return _status(args.inputs[1])
    if args.output is None:
        args.usage("--output DIR is missing")
    planned = local.plan(args.inputs, args.output, _settings(args))
    share = found_share(args.process_index, args.process_count)
    if args.dry_run:
        return _dry_run(args, planned, share)
    planned.open()
    options = {
        "max_num_batched_tokens": args.max_num_batched_tokens,
        **{name: getattr(args, name) for name in _DEVICES},
    }
    if args.mesh == "global":
        return _together(args, planned, share, options)
    if args.ray is not None:
        return _on_ray(args, planned, options)
    with _reporting(args.quiet) as report:
        summary = local.work(planned, None, share, args.steal, args.max_errors, report, options)
    if not args.quiet:
        _sum_up(planned, summary, share)
    return 0


def _together(args: argparse.Namespace, planned: local.Planned, share: Share, options: dict[str, Any]) -> int:
    """One model over the devices of all processes; process 0 reports."""
    from jaxpool.batch import spmd

    if args.candidate_labels:
        args.usage("--candidate-labels does not go with --mesh global: each process asks a model of its own")
    if args.steal:
        args.usage("--steal has no meaning with --mesh global: all processes do every unit together")
    first = spmd.join(args.coordinator, share)
    with _reporting(args.quiet or not first) as report:
        summary = spmd.work(planned, args.max_errors, report, options)
    if first and not args.quiet:
        _sum_up(planned, summary, Share())
    return 0


def _on_ray(args: argparse.Namespace, planned: local.Planned, options: dict[str, Any]) -> int:
    """The same units, done by actors of a Ray cluster."""
    try:
        from jaxpool.ray import units
    except ModuleNotFoundError as error:
        raise JaxpoolError("--ray needs Ray; get it with: pip install 'jaxpool[ray]'") from error

    with _reporting(args.quiet) as report:
        summary = units.work(
            planned,
            args.ray,
            actors=args.ray_actors,
            tpus=args.ray_tpus,
            gpus=args.ray_gpus,
            max_errors=args.max_errors,
            report=report,
            options=options,
        )
    if not args.quiet:
        _sum_up(planned, summary, Share())
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    long_texts(args)  # ends with a word on options that contradict each other
    kind = args.output_format
    if kind is None:
        files = expand(args.inputs, args.input_format)
        kind = "jsonl" if any(file.format == "jsonl" for file in files) else "parquet"
    more = {} if args.unit_mb is None else {"unit_bytes": args.unit_mb}
    return Settings(
        model=absolute(args.model),
        revision=args.revision,
        dtype=args.dtype,
        convert=args.convert,
        recipe=args.recipe,
        question=question(args) or None,
        hf_overrides=args.hf_overrides,
        max_length=args.max_model_len,
        text_column=args.text_column,
        pair_column=args.pair_column,
        encoding=args.encoding,
        input_format=args.input_format,
        output_format=kind,
        prefix=args.prefix,
        logits=args.logits,
        top_k=args.top_k,
        long_text="truncate" if args.truncate else args.long_text,
        window=args.window,
        overlap=args.overlap,
        aggregate=args.aggregate,
        **more,
    )


def _megabytes(word: str) -> int:
    try:
        found = int(float(word) * (1 << 20))
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"must be a number of megabytes above 0, not {word!r}")
    return found


@contextlib.contextmanager
def _reporting(quiet: bool) -> Iterator[progress.Report | None]:
    """A live view on a terminal; JSON lines on standard output where that is piped."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and sys.stdout.isatty():
        with progress.live(sys.stderr) as report:
            yield report
    else:
        with progress.lines(sys.stdout) as report:
            yield report


def _say(event: str, values: dict[str, Any], sentences: list[str]) -> None:
    """Sentences for a terminal, one JSON line for a pipe."""
    if sys.stdout.isatty():
        print("\n".join(sentences))
    else:
        print(json.dumps({"event": event} | values, ensure_ascii=False))


def _sum_up(planned: local.Planned, summary: local.Summary, share: Share) -> None:
    done, manifest = summary.progress.as_json(), summary.manifest
    complete = manifest is not None
    sentences = [
        f"{done['rows']:,} rows in {progress.duration(done['seconds'])} ({done['rows_per_second']:,.0f} rows/s), "
        f"{done['rejected']:,} rejected; padding {done['padding_waste']:.0%}, device busy {done['device_share']:.0%}."
    ]
    if manifest is not None:
        sentences += [f"The job is complete: {planned.output / MANIFEST} lists {len(manifest['parts']):,} parts."]
        total = sum(manifest["labels"].values())
        sentences += [f"  {count / total:6.1%}  {label} ({count:,})" for label, count in manifest["labels"].items()][
            :20
        ]
        done["labels"] = dict(list(manifest["labels"].items())[:20])
    else:
        sentences += ["Units of other processes are not done yet; the last process to end writes the manifest."]
    _say("done", done | {"complete": complete, "process": [share.index, share.count]}, sentences)


def _dry_run(args: argparse.Namespace, planned: local.Planned, share: Share) -> int:
    own = share.own(planned.units)
    options = {"max_num_batched_tokens": args.max_num_batched_tokens}
    found = estimate.estimate(own, planned.settings, options)
    about = "" if found.exact else "about "
    sentences = [
        f"{len(planned.files):,} files, {len(planned.units):,} units; {len(own):,} of them for process {share.index} "
        f"of {share.count} ({share.source})",
        *(
            f"  {unit.name}  {unit.file.url}" + (f" [{unit.first}:{unit.last}]" if unit.last else "")
            for unit in own[:10]
        ),
        *([f"  and {len(own) - 10:,} more"] if len(own) > 10 else []),
        f"{about}{found.rows:,} rows, {found.tokens:,} tokens; predicted time {progress.duration(found.seconds)} "
        f"({found.rows / found.seconds:,.0f} rows/s)",
    ]
    values = {
        "files": len(planned.files),
        "units": len(own),
        "rows": found.rows,
        "rows_exact": found.exact,
        "tokens": found.tokens,
        "seconds": round(found.seconds, 3),
    }
    _say("plan", values, sentences)
    return 0


def _status(folder: str) -> int:
    output = place(folder)
    job = read_job(output)
    if job is None:
        raise JaxpoolError(f"{output} has no {JOB}: no job was begun there")
    found = status(output, job)
    total = sum(found["labels"].values()) or 1
    state = "complete" if found["finished"] else "not complete"
    sentences = [
        f"{found['units_done']:,} of {found['units']:,} units, {found['rows']:,} rows, {found['rejected']:,} rejected; "
        f"{state}",
        *(f"  {count / total:6.1%}  {label} ({count:,})" for label, count in list(found["labels"].items())[:20]),
    ]
    if found["missing"]:
        sentences.append(f"missing: {', '.join(map(str, found['missing'][:20]))}")
    _say("status", found, sentences)
    return 0 if found["finished"] else 3
