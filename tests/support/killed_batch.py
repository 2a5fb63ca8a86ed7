"""Runs a batch job again and again in forks of this process; each is killed at a counted moment, without warning.

Standard input has lines of JSON: ``{"inputs", "output", "model", "settings", "after"}``. ``after`` counts the lines of
``jaxpool.batch`` that are run, in any thread, before SIGKILL; null lets the job end. The answer is one line:
``killed``, ``done`` and the number of lines run, or ``failed`` and why. Importing once and forking before JAX starts
any thread is what makes fifty processes cheap.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from typing import Any

import jaxpool.batch.local
import jaxpool.batch.manifest
import jaxpool.engine.opening
import jaxpool.llm

ROOM = os.path.dirname(jaxpool.batch.local.__file__)  # noqa: PTH120 - as file names of code objects are


def count_lines(after: int | None) -> Any:
    """Traces every line of the room from now on; returns the counter, whose next value is what it counted."""
    counter = itertools.count(1)

    def line(_frame: Any, event: str, _argument: Any) -> Any:
        if event == "line" and next(counter) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: Any, _event: str, _argument: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(ROOM) else None

    threading.settrace(call)
    sys.settrace(call)
    return counter


def job(order: dict[str, Any], pipe: int) -> None:
    counter = count_lines(order["after"])
    try:
        jaxpool.batch.local.run(order["inputs"], order["output"], model=order["model"], **order["settings"])
    except BaseException as error:
        os.write(pipe, f"failed {type(error).__name__} {error}".replace("\n", " ").encode())
        os._exit(1)
    sys.settrace(None)
    os.write(pipe, f"done {next(counter) - 1}".encode())
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            job(json.loads(line), write)
        os.close(write)
        with os.fdopen(read) as answer:
            said = answer.read()
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else said or f"failed with status {status}", flush=True)


if __name__ == "__main__":
    main()
