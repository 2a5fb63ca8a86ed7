"""The command ``jaxpool``. Nothing heavy is imported until a command runs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxpool.commands.vllm_options import spelled, with_file
from jaxpool.errors import JaxpoolError

DESCRIPTION = """\
Classify text with any Hugging Face checkpoint, in JAX, on TPU, GPU or CPU.

  jaxpool classify "Loved the new café." "This update broke everything."
  jaxpool classify --input reviews.csv --text-column body --output labels.jsonl
  jaxpool batch reviews/ --output labelled/ --text-column body
  jaxpool run-batch -i requests.jsonl -o answers.jsonl
  jaxpool fit reviews.csv my-model --text-column body --label-column stars
  jaxpool convert my-model my-model-store
  jaxpool serve --model my-model-store --port 8000
  jaxpool bench --model my-model-store
  jaxpool compile --topology v5e:2x2 my-model
  jaxpool recipes | less
  jaxpool completion bash > ~/.local/share/bash-completion/completions/jaxpool
"""
COMMANDS = {
    "classify": ("jaxpool.commands.classify", "label texts from the command line, a pipe or a file"),
    "batch": ("jaxpool.commands.batch", "label files of any size, in parts, resumably"),
    "run-batch": ("jaxpool_serving.batch_command", "answer a file of OpenAI batch requests"),
    "fit": ("jaxpool.commands.fit", "train a classifier on labelled texts"),
    "convert": ("jaxpool.commands.convert", "write a checkpoint as a store that opens faster"),
    "serve": ("jaxpool_serving.command", "answer POST /classify over HTTP"),
    "bench": ("jaxpool.commands.bench", "measure a model, or a server under load"),
    "compile": ("jaxpool.commands.compile", "what a model takes on TPUs that are not here"),
    "recipes": ("jaxpool.commands.recipes", "list the published models whose prompts and answers are known"),
    "completion": ("jaxpool.commands.completion", "write a script that completes commands in your shell"),
}
"""Command -> (module with ``add_arguments`` and ``main``, imported by name when needed; what it does)."""
EXTRAS = {"pyarrow": "batch", "fsspec": "batch", "ray": "ray"}
"""Package -> the extra that brings it, where that is not ``serve``."""
EPILOG = "Without --model, the English sentiment model inside jaxpool is used."
INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended
PIPE_CLOSED = 141
CLEANED_UP = {"classify", "fit", "convert"}
"""Commands that SIGTERM and SIGHUP end as Ctrl-C does, so that nothing half written stays; the server has its ways."""


class Terminated(BaseException):
    """A signal asks us to end; what is under way cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments; None takes the process's own, and then Ctrl-C ends the process here and now, since
            a thread may be deep in a compiler or blocked on a read.

    Returns:
        0 for success, 1 for an error told in one sentence on standard error, 130 after Ctrl-C, 141 when whoever
        read our output has gone. Wrong usage exits with 2 (argparse).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in words
    _reserve_streams()
    try:
        args = _parse(words)
        _configure_logging(debug)
        if argv is None and _command_name(words) in CLEANED_UP:
            _end_cleanly()
        code: int = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_output()
        return PIPE_CLOSED
    except Terminated as ended:
        os._exit(ended.code)
    except KeyboardInterrupt:
        print("\njaxpool: interrupted", file=sys.stderr, flush=True)
        if argv is None:
            os._exit(INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"jaxpool: {_printable_error(error)}", file=sys.stderr)
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            _abandon_output()
        return 1


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; a wrong one ends the process with the usage of the command that was meant."""
    top = parser(words)
    if _command_name(words) == "serve":
        words = with_file(words, _commands(top)["serve"])
    words = spelled(words)
    args, unknown = top.parse_known_args(words or ["--help"])
    if unknown:
        flags = [option for action in args.command._actions for option in action.option_strings]
        hint = _suggestion(unknown[0].partition("=")[0], flags)
        args.command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args


def _suggestion(word: str, known: Sequence[str]) -> str:
    """What ``word`` was probably meant to be, as the end of a message."""
    # --topk is --top-k; letters alone decide
    alike = [one for one in known if one.replace("-", "") == word.replace("-", "").replace("_", "")]
    found = alike or difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""


def _reserve_streams() -> None:
    """Gives closed standard streams somewhere to go: else a file that is opened takes their number, and their output.

    ``sys.stdout`` stays None where it was: results are not thrown away in silence.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - an open file has no path


def _end_cleanly() -> None:
    """SIGTERM and SIGHUP raise `Terminated` where the program is, once; the next one ends it at once."""

    def end(number: int, _frame: object) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_DFL)
        raise Terminated(number)

    named = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = [one for one in named if signal.getsignal(one) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    for one in signals:
        signal.signal(one, end)


def _abandon_output() -> None:
    """The interpreter flushes standard output once more at exit; gives it somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable_error(error: Exception) -> str:
    from jaxpool.files.terminal import printable

    return "\n".join(map(printable, _reason(error).split("\n")))


def _reason(error: Exception) -> str:
    if isinstance(error, JaxpoolError | NotImplementedError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"unexpected {type(error).__name__}: {error} (--debug shows where; please report it)"


def _configure_logging(debug: bool) -> None:
    """Libraries' warnings and logs are for developers; ours go to standard error, results alone to output."""
    if debug:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="jaxpool: %(message)s")
    logging.getLogger("jaxpool").setLevel(logging.WARNING)


def parser(argv: Sequence[str] = (), *, everything: bool = False) -> argparse.ArgumentParser:
    """The command line's grammar.

    Only the command that ``argv`` names has its options declared; with ``everything`` all that are installed have.
    """
    from jaxpool.version import __version__

    top = _Parser("jaxpool", description=DESCRIPTION, epilog=EPILOG, formatter_class=_Formatter)
    top.add_argument("--version", action="version", version=f"jaxpool {__version__}")
    commands = top.add_subparsers(
        title="commands (jaxpool COMMAND --help tells more)", metavar="COMMAND", required=True
    )
    named = _command_name(argv)
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, formatter_class=_Formatter)
        command.description = f"{about[0].upper()}{about[1:]}."
        if name == named or everything:
            with contextlib.suppress(*[NotInstalledError] * everything):
                room = _command_module(module)
                room.add_arguments(command)
                command.set_defaults(run=room.main)
        command.add_argument("--debug", action="store_true", help="show logs, and tracebacks of errors")
        command.set_defaults(usage=command.error, command=command)
    return top


def _commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands' own grammars."""
    [found] = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def _command_name(words: Sequence[str]) -> str | None:
    """The command among the arguments."""
    return next((word for word in words if not word.startswith("-")), None)


def _command_module(module: str) -> Any:
    """The module that declares and runs a command."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("jaxpool"):
            raise
        extra = EXTRAS.get(package, "serve")
        raise NotInstalledError(
            f"the package {package!r} is not installed; get it with: pip install 'jaxpool[{extra}]'"
        ) from error


class NotInstalledError(JaxpoolError):
    """A command needs a package that is not there."""


class _Parser(argparse.ArgumentParser):
    """Says which command was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Usage, message, exit code 2."""
        wrong = re.search(r"argument COMMAND: invalid choice: '(.*?)' ", message)
        if wrong:
            message = f"there is no command {wrong[1]!r} ({', '.join(COMMANDS)}){_suggestion(wrong[1], list(COMMANDS))}"
        super().error(message)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Options in a column wide enough for most of ours."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)
