"""The command ``jaxpool``. Nothing heavy is imported until a command runs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from jaxpool.errors import JaxpoolError

DESCRIPTION = """\
Classify text with any Hugging Face checkpoint, in JAX, on TPU, GPU or CPU.

  jaxpool classify "Loved the new café." "This update broke everything."
  jaxpool classify --input reviews.csv --text-column body --output labels.jsonl
  jaxpool fit reviews.csv my-model --text-column body --label-column stars
  jaxpool convert my-model my-model-store
  jaxpool serve --model my-model-store --port 8000
  jaxpool bench serve --model my-model-store
"""
COMMANDS = {
    "classify": ("jaxpool.classify", "label texts from the command line, a pipe or a file"),
    "fit": ("jaxpool.fit", "train a classifier on labelled texts"),
    "convert": ("jaxpool.convert", "write a checkpoint as a store that opens faster"),
    "serve": ("jaxpool_serving.command", "answer POST /classify over HTTP"),
    "bench": ("jaxpool_serving.bench.command", "measure a server under load"),
}
"""Command -> (module with ``add_arguments`` and ``main``, imported by name when needed; what it does)."""
EPILOG = "Without --model, the English sentiment model inside jaxpool is used."
INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended
PIPE_CLOSED = 141


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
    try:
        args = parser(words).parse_args(words or ["--help"])
        _quieten(debug)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The interpreter flushes standard output once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print("\njaxpool: interrupted", file=sys.stderr, flush=True)
        if argv is None:
            os._exit(INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"jaxpool: {_sentence(error)}", file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str:
    if isinstance(error, JaxpoolError | NotImplementedError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"unexpected {type(error).__name__}: {error} (--debug shows where; please report it)"


def _quieten(debug: bool) -> None:
    """Libraries' warnings and logs are for developers; ours go to standard error, results alone to output."""
    if debug:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="jaxpool: %(message)s")
    logging.getLogger("jaxpool").setLevel(logging.WARNING)


def parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line's grammar; only the command that ``argv`` names has its options declared."""
    from jaxpool import __version__

    top = argparse.ArgumentParser(
        "jaxpool", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"jaxpool {__version__}")
    commands = top.add_subparsers(
        title="commands (jaxpool COMMAND --help tells more)", metavar="COMMAND", required=True
    )
    named = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, formatter_class=_Formatter)
        command.description = f"{about[0].upper()}{about[1:]}."
        if name == named:
            room = _room(module)
            room.add_arguments(command)
            command.set_defaults(run=room.main)
        command.add_argument("--debug", action="store_true", help="show logs, and tracebacks of errors")
        command.set_defaults(usage=command.error)
    return top


def _room(module: str) -> Any:
    """The module that declares and runs a command."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("jaxpool"):
            raise
        raise JaxpoolError(
            f"the package {package!r} is not installed; get it with: pip install 'jaxpool[serve]'"
        ) from error


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Options in a column wide enough for most of ours."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)
