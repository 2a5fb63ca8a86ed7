"""``jaxpool classify``: texts from the command line, a pipe or a file; labels to a terminal, a pipe or a file."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpool.commands.candidate_labels import question, question_options
from jaxpool.commands.options import (
    engine_options,
    long_text_options,
    long_texts,
    model_arguments,
    model_options,
    positive,
)
from jaxpool.errors import InputFileError, JaxpoolError
from jaxpool.files import formats, result_files, stream, writers
from jaxpool.files.input_files import Row, TextFile, as_text
from jaxpool.files.stream import Item

if TYPE_CHECKING:
    from jaxpool.files.writers import Write
    from jaxpool.llm import LLM

DESCRIPTION = """\
Label texts from the command line, a pipe or a file, in order.

  jaxpool classify "Loved the new café." "This update broke everything."
  cat reviews.txt | jaxpool classify > labels.jsonl
  jaxpool classify --input reviews.csv --text-column body --output labels.csv

A terminal shows a table; pipes and .jsonl files get one line per text:
  {"index": 0, "text": "…", "label": "positive", "probs": {"negative": 0.02, "positive": 0.98}}
The other columns of a table or of JSON stand between text and label.
An empty text is what the tokenizer makes of it, or an error if that is nothing.
"""
TABLE_LABELS = 4  # labels a table shows of each text, unless told otherwise
RESULT_FIELDS = {"index", "text", "pair", "label", "labels", "probs", "logits"}
"""Names in results; a kept column of such a name gets ``input_`` before it."""
MODEL = engine_options(without={"runner", "pooler_config", "compile"})
MODEL["convert"] = replace(
    MODEL["convert"],
    about="what to make of a language model: a classifier, or an embedder",
    choices=("auto", "classify", "embed"),
)
"""Argument of a model -> its option; the command is for classifiers, and compiles what its texts need."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declares the options of ``jaxpool classify``."""
    command.usage = "jaxpool classify [TEXT ...] [--input FILE] [--output FILE] [--model MODEL] [options]"
    command.description = DESCRIPTION
    add = command.add_argument
    add("texts", nargs="*", metavar="TEXT", help="texts to label; without any, --input or a pipe is read")
    add = command.add_argument_group("input").add_argument
    add("--input", metavar="FILE", type=Path, help=f"{formats.listed(formats.READ)}, most also .gz; - is a pipe")
    add("--text-column", metavar="NAME", help="field or column of the text (default: text)")
    add("--pair-column", metavar="NAME", help="field or column of a second text, for models that read two")
    add("--format", choices=formats.READ, help="of the input (default: its suffix; a pipe: lines, unless columns)")
    add("--delimiter", metavar="CHAR", type=_delimiter, help="between columns, 'tab' for a tab (default: as found)")
    add("--encoding", default="utf-8", help="of the input (default: utf-8)")
    about = "rows that cannot be classified end the run, or are skipped and listed (default: stop)"
    add("--on-error", choices=("stop", "skip"), default="stop", help=about)
    add = command.add_argument_group("output").add_argument
    about = f"{formats.listed(formats.WRITTEN)}, also .gz; it appears when it is complete"
    add("--output", metavar="FILE", type=Path, help=about)
    add("--force", action="store_true", help="replace FILE if it exists")
    about = "pass the input's other columns on (default: on)"
    add("--keep-columns", action=argparse.BooleanOptionalAction, default=True, help=about)
    add("--top-k", metavar="K", type=positive, help="the K highest labels only")
    add("--logits", action="store_true", help="scores before softmax or sigmoid")
    add("--quiet", action="store_true", help="no progress bar, no notes")
    model_options(command, MODEL)
    long_text_options(command)
    question_options(command)


def main(args: argparse.Namespace) -> int:
    """Runs the command; errors are JaxpoolErrors for the caller to print."""
    _check_usage(args)
    with contextlib.ExitStack() as stack:
        file = None if args.texts else stack.enter_context(_open_input(args))
        _check_output(args, file)
        items = _given_texts(args.texts) if file is None else _not_empty(_read(file), file.name)
        lead = _lead(items)
        items = itertools.chain(lead, items)
        llm = stack.enter_context(_open_model(args))
        activated = llm.engine.spec.use_activation and not args.logits
        advance = stack.enter_context(_progress(file, args.quiet))
        skip, skipped = stack.enter_context(_skipping(args))
        lost: set[str] = set()
        write = stack.enter_context(_sink(args, llm, "probs" if activated else "logits", lead[-1], lost))
        count = blank = 0
        for result in stream.classify(
            llm,
            items,
            activated=activated,
            top_k=args.top_k,
            advance=advance,
            skip=skip,
            question=question(args),
            **long_texts(args),
        ):
            write(result)
            count += 1
            blank += not (result["text"].strip() or result.get("pair", "").strip())
    if not args.quiet:
        _report(args, count, blank, len(skipped), lost)
    return 0


def _report(args: argparse.Namespace, count: int, blank: int, skipped: int, lost: set[str]) -> None:
    """Notes on standard error: what was written, and what a reader of it should know."""
    if args.output is not None:
        print(f"jaxpool: wrote {args.output} ({_counted(count, 'result')})", file=sys.stderr)
    if skipped:
        where = f"; {_errors_file(args.output)} says why" if args.output is not None else ""
        print(f"jaxpool: {_counted(skipped, 'row')} skipped{where}", file=sys.stderr)
    if lost:
        names = ", ".join(map(repr, sorted(lost)))
        print(f"jaxpool: left out {names}, which the first row lacks; a .jsonl keeps every field", file=sys.stderr)
    if blank:
        print(f"jaxpool: {_counted(blank, 'blank text')}, which the model labels all the same", file=sys.stderr)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _delimiter(word: str) -> str:
    found = {"tab": "\t", "\\t": "\t"}.get(word, word)
    if len(found) != 1 or found in '"\r\n':
        raise argparse.ArgumentTypeError(f"must be one character, or 'tab', not {word!r}")
    return found


def _check_usage(args: argparse.Namespace) -> None:
    """Ends the process with exit code 2 where options contradict each other."""
    if args.candidate_labels and (args.truncate or args.on_error == "skip"):
        args.usage("--candidate-labels does not go with --truncate and --on-error skip")
    question(args)
    if args.texts and args.input is not None:
        args.usage("give texts or --input, not both")
    if args.texts and (args.text_column or args.pair_column or args.format or args.delimiter):
        args.usage("--text-column, --pair-column, --format and --delimiter belong to --input or a pipe")
    piped = sys.stdin is not None and not sys.stdin.isatty()
    if not args.texts and args.input in (None, Path("-")) and not piped:
        args.usage("nothing to classify: give texts, --input FILE, or pipe text in")


def _check_output(args: argparse.Namespace, file: TextFile | None) -> None:
    """Refuses to write what must not be written, before anything slow begins."""
    inputs = [file.status] if file is not None and file.status is not None else []
    if args.output is None:
        if sys.stdout is None:
            raise JaxpoolError("standard output is closed; name a file with --output")
        result_files.check_path(Path("-"), inputs=inputs)
        return
    result_files.check_path(args.output, force=args.force, inputs=inputs)
    if args.on_error == "skip" and not result_files.is_device(args.output):
        result_files.check_path(_errors_file(args.output), force=args.force, inputs=inputs)


def _errors_file(output: Path) -> Path:
    """Where rows that were skipped are listed: ``labels.errors.jsonl`` beside ``labels.csv.gz``."""
    return output.with_name(output.name.removesuffix(".gz").rpartition(".")[0] + ".errors.jsonl")


def _open_model(args: argparse.Namespace) -> LLM:
    from jaxpool.llm import LLM

    pooler = None if args.candidate_labels else {"task": "classify"}
    return LLM(args.model, pooler_config=pooler, **model_arguments(args, MODEL))


def _given_texts(texts: Sequence[str]) -> Iterator[Item]:
    return iter([Item(text, where=f"text {number}") for number, text in enumerate(texts, 1)])


def _open_input(args: argparse.Namespace) -> TextFile:
    columns = (args.text_column or "text", *([args.pair_column] if args.pair_column else []))
    return TextFile(
        None if args.input in (None, Path("-")) else args.input,
        columns,
        file_format=args.format or ("csv" if args.delimiter else None),
        encoding=args.encoding,
        delimiter=args.delimiter,
        named=bool(args.text_column),
        keep=args.keep_columns,
        tolerant=args.on_error == "skip",
    )


def _read(file: TextFile) -> Iterator[Item]:
    for row in file:
        try:
            yield _item(file, row)
        except InputFileError as error:
            if not file.tolerant:
                raise InputFileError(f"{file.place(row)}: {error}") from error
            yield Item("", where=file.place(row), end=file.position, problem=str(error))


def _item(file: TextFile, row: Row) -> Item:
    if row.problem:
        raise InputFileError(row.problem)
    text, *pair = [as_text(value, repr(column)) for value, column in zip(row.values, file.columns)]
    others = {_kept_as(name): value for name, value in row.others.items()}
    return Item(text, pair[0] if pair else None, file.place(row), file.position, others)


def _kept_as(name: str) -> str:
    """A column's name in results."""
    return f"input_{name}" if name in RESULT_FIELDS or name.startswith(("probs_", "logits_")) else name


def _not_empty(items: Iterator[Item], name: str) -> Iterator[Item]:
    first = next(items, None)
    if first is None:
        raise InputFileError(f"{name} holds no texts")
    yield first
    yield from items


def _lead(items: Iterator[Item]) -> list[Item]:
    """The first items, up to one that was read well: a wrong file or column shows before a model is loaded for it."""
    lead = []
    for item in items:
        lead.append(item)
        if not item.problem:
            break
    return lead


@contextlib.contextmanager
def _skipping(args: argparse.Namespace) -> Iterator[tuple[Callable[[Item], object] | None, list[int]]]:
    """What to do with a row that cannot be classified (None: raise), and the numbers of such rows."""
    skipped: list[int] = []
    if args.on_error == "stop":
        yield None, skipped
        return
    with contextlib.ExitStack() as stack:
        note: Write = _tell
        if args.output is not None and not result_files.is_device(args.output):
            note = stack.enter_context(result_files.open_file(_errors_file(args.output), []))

        def skip(item: Item) -> None:
            skipped.append(len(skipped))
            note({"where": item.where, "problem": item.problem, "text": item.text})

        yield skip, skipped


def _tell(problem: writers.Result) -> None:
    print(f"jaxpool: skipped {problem['where']}: {problem['problem']}", file=sys.stderr)


@contextlib.contextmanager
def _sink(args: argparse.Namespace, llm: LLM, kind: str, first: Item, lost: set[str]) -> Iterator[Write]:
    """Where results go: ``--output``, a table on a terminal, or JSON lines.

    A table has the columns of ``first``; names of later ones come into ``lost``.
    """
    if args.output is not None:
        pair, several = (
            ["pair"] * bool(args.pair_column),
            ["labels"] * (args.multi_label or llm.engine.spec.problem == "multi"),
        )
        scores = [f"{kind}_{label}" for label in args.candidate_labels or llm.labels]
        columns = ["index", "text", *pair, *first.others, "label", *several, *scores]
        written_as, fixed = formats.of_path(args.output), {*columns, kind}
        with result_files.open_file(args.output, columns) as write:

            def write_and_watch(result: writers.Result) -> None:
                lost.update(result.keys() - fixed)
                write(result)

            yield write_and_watch if written_as is not None and written_as.header else write
    elif sys.stdout.isatty():
        from tqdm import tqdm

        from jaxpool.files import terminal

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that cannot draw bars still gets its numbers
        most = args.top_k or min(len(args.candidate_labels or llm.labels), TABLE_LABELS)
        rows: list[writers.Result] = []

        def show() -> None:
            with tqdm.external_write_mode(file=sys.stdout):
                terminal.print_table(rows, kind, most)
            rows.clear()

        def collect(result: writers.Result) -> None:
            rows.append(result)
            if len(rows) == stream.CHUNK:
                show()

        yield collect
        if rows:
            show()
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(
                encoding="utf-8", errors="backslashreplace"
            )  # JSON is UTF-8, whatever the locale says
        yield lambda result: print(writers.as_json(result))


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
            bar.update(min(read, file.size - bar.n) if file.size else read)  # else time is left, less than none

        yield advance
