"""The process that renders chat templates, one conversation after the other; it has neither JAX nor secrets.

A template is a program that nobody can interrupt from outside, so each conversation has a timer of the kernel's that
ends the process, and the process has little memory. `chat_rendering` starts it, and another one in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

from jaxpool.errors import ValidationError
from jaxpool.text.scoring import rendered

HEAD = struct.Struct("<dQ")
"""Before each question: the seconds that it may take, and the length of the JSON that follows."""

SIZE = struct.Struct("<Q")
"""Before each answer: the length of the JSON that follows."""

MEMORY = 512 << 20
"""Bytes of address space."""


LOOK = 1.0
"""Seconds between looks at whether the server is still there."""


def answered(question: bytes) -> bytes:
    """``{"texts": […]}``, or ``{"message": …, "parameter": …, "value": …}`` of a `ValidationError`."""
    answer: dict[str, Any]
    try:
        asked = json.loads(question)
        answer = {"texts": rendered(SimpleNamespace(**asked.pop("tokenizer")), **asked)}
    except ValidationError as error:
        value = None if error.value is None else str(error.value)
        answer = {"message": error.args[0], "parameter": error.parameter, "value": value}
    except (MemoryError, RecursionError) as error:
        answer = {"message": f"The conversation is too large ({type(error).__name__}).", "parameter": "messages"}
    return json.dumps(answer).encode()


def end_with(parent: int) -> None:
    """End this process soon after ``parent`` has ended, whatever a template is at: a server may be killed."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(0)


def main() -> None:
    """Answer what comes in, until nothing does."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(ValueError, OSError):  # some systems have no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(head := questions.read(HEAD.size)) == HEAD.size:
        seconds, size = HEAD.unpack(head)
        question = questions.read(size)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = answered(question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(SIZE.pack(len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    main()
