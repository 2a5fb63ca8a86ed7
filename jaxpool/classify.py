"""``jaxpool classify``: texts from the command line, a pipe or a file; labels to a terminal, a pipe or a file."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpool import results, stream
from jaxpool.errors import InputFileError, ValidationError
from jaxpool.options import model_options, positive
from jaxpool.stream import Item
from jaxpool.textfiles import TextFile, as_text

if TYPE_CHECKING:
    from jaxpool.llm import LLM

DESCRIPTION = """\
Label texts from the command line, a pipe or a file, in order.

  jaxpool classify "Loved the new café." "This update broke everything."
  cat reviews.txt | jaxpool classify > labels.jsonl
  jaxpool classify --input reviews.csv --text-column body --output labels.csv

A terminal shows a table; pipes and .jsonl files get one line per text:
  {"index": 0, "text": "…", "label": "positive", "probs": {"negative": 0.02, "positive": 0.98}}
A blank text of a file gets the label null, so that results line up with its lines.
"""
TABLE_LABELS = 4  # labels a table shows of each text, unless told otherwise


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declares the options of ``jaxpool classify``."""
    command.usage = "jaxpool classify [TEXT ...] [--input FILE] [--output FILE] [--model MODEL] [options]"
    command.description = DESCRIPTION
    add = command.add_argument
    add("texts", nargs="*", metavar="TEXT", help="texts to label; without any, --input or a pipe is read")
    add = command.add_argument_group("input").add_argument
    add("--input", metavar="FILE", type=Path, help=".txt (one text per line), .jsonl, .csv, .tsv; also .gz")
    add("--text-column", metavar="NAME", help="field or column of the text (default: text)")
    add("--pair-column", metavar="NAME", help="field or column of a second text, for models that read two")
    add("--format", choices=("txt", "jsonl", "csv", "tsv"), help="of the input (default: its suffix; pipe: txt)")
    add("--encoding", default="utf-8", help="of the input (default: utf-8)")
    add = command.add_argument_group("output").add_argument
    add("--output", metavar="FILE", type=Path, help="write .jsonl or .csv; it appears when it is complete")
    add("--top-k", metavar="K", type=positive, help="the K highest labels only")
    add("--logits", action="store_true", help="scores before softmax or sigmoid")
    add("--quiet", action="store_true", help="no progress bar, no notes")
    add = model_options(command)
    add("--truncate", action="store_true", help="cut texts that are too long (default: refuse them)")
    add("--max-length", metavar="N", type=positive, help="most tokens of a text (default: the model's limit)")
    add("--batch-tokens", metavar="N", type=positive, help="most tokens of a batch, padding included")


def main(args: argparse.Namespace) -> int:
    """Runs the command; errors are JaxpoolErrors for the caller to print."""
    _check_usage(args)
    if args.output is not None:
        results.check_path(args.output)
    with contextlib.ExitStack() as stack:
        file = None if args.texts else stack.enter_context(_open_input(args))
        items = _words(args.texts) if file is None else _not_empty(_read(file), file.name)
        llm = stack.enter_context(_open_model(args))
        activated = llm.engine.spec.use_activation and not args.logits
        advance = stack.enter_context(_progress(file, args.quiet))
        write = stack.enter_context(_sink(args, llm, "probs" if activated else "logits"))
        blank = 0
        for result in stream.classify(
            llm, items, activated=activated, truncate=args.truncate, top_k=args.top_k, advance=advance
        ):
            write(result)
            blank += result["label"] is None
    if blank and not args.quiet:
        texts = "1 blank text has" if blank == 1 else f"{blank} blank texts have"
        print(f"jaxpool: {texts} no label", file=sys.stderr)
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    """Ends the process with exit code 2 where options contradict each other."""
    if args.texts and args.input is not None:
        args.usage("give texts or --input, not both")
    if args.texts and (args.text_column or args.pair_column or args.format):
        args.usage("--text-column, --pair-column and --format belong to --input or a pipe")
    if not args.texts and args.input in (None, Path("-")) and sys.stdin.isatty():
        args.usage("nothing to classify: give texts, --input FILE, or pipe text in")


def _open_model(args: argparse.Namespace) -> LLM:
    from jaxpool.llm import LLM

    return LLM(
        args.model,
        revision=args.revision,
        dtype=args.dtype,
        convert=args.convert,
        hf_overrides=args.hf_overrides,
        max_model_len=args.max_length,
        max_num_batched_tokens=args.batch_tokens,
        pooler_config={"task": "classify"},
    )


def _words(texts: Sequence[str]) -> Iterator[Item]:
    items = [Item(text, where=f"text {number}") for number, text in enumerate(texts, 1)]
    for item in items:
        if item.blank:
            raise ValidationError(f"{item.where} is blank")
    return iter(items)


def _open_input(args: argparse.Namespace) -> TextFile:
    columns = (args.text_column or "text", *([args.pair_column] if args.pair_column else []))
    path = None if args.input in (None, Path("-")) else args.input
    return TextFile(path, columns, file_format=args.format, encoding=args.encoding)


def _read(file: TextFile) -> Iterator[Item]:
    for row in file:
        where = f"{file.name}: line {row.line}"
        text, *pair = [as_text(value, f"{where}: {column!r}") for value, column in zip(row.values, file.columns)]
        yield Item(text, pair[0] if pair else None, where, file.position)


def _not_empty(items: Iterator[Item], name: str) -> Iterator[Item]:
    """Reads the first item now, so that a wrong file or column shows before a model is loaded for it."""
    first = next(items, None)
    if first is None:
        raise InputFileError(f"{name} holds no texts")
    return itertools.chain([first], items)


@contextlib.contextmanager
def _sink(args: argparse.Namespace, llm: LLM, kind: str) -> Iterator[Callable[[results.Result], None]]:
    """Where results go: ``--output``, a table on a terminal, or JSON lines."""
    if args.output is not None:
        pair, several = ["pair"] * bool(args.pair_column), ["labels"] * (llm.engine.spec.problem == "multi")
        scores = [f"{kind}_{label}" for label in llm.labels]
        with results.open_file(args.output, ["index", "text", *pair, "label", *several, *scores]) as write:
            yield write
    elif sys.stdout.isatty():
        from tqdm import tqdm

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that cannot draw bars still gets its numbers
        most = args.top_k or (len(llm.labels) if len(llm.labels) <= TABLE_LABELS else TABLE_LABELS)
        rows: list[results.Result] = []

        def show() -> None:
            with tqdm.external_write_mode(file=sys.stdout):
                results.print_table(rows, kind, most)
            rows.clear()

        def collect(result: results.Result) -> None:
            rows.append(result)
            if len(rows) == stream.CHUNK:
                show()

        yield collect
        if rows:
            show()
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the locale says
        yield lambda result: print(results.as_json(result))


@contextlib.contextmanager
def _progress(file: TextFile | None, quiet: bool) -> Iterator[Callable[[int, float], None]]:
    """A bar on standard error, if that is a terminal and the work takes longer than a second."""
    if file is None or quiet or not sys.stderr.isatty():
        yield lambda _texts, _read: None
        return
    from tqdm import tqdm

    style = "{percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}" if file.size else "{elapsed}{postfix}"
    started, done = time.monotonic(), 0
    with tqdm(total=file.size or None, delay=1, leave=False, dynamic_ncols=True, bar_format=style) as bar:

        def advance(texts: int, read: float) -> None:
            nonlocal done
            done += texts
            bar.set_postfix_str(f"{done:,} texts, {done / (time.monotonic() - started):,.0f}/s", refresh=False)
            bar.update(read)

        yield advance
