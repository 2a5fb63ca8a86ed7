"""Result files, which appear under their name only when complete."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TextIO

from jaxpool.errors import ValidationError
from jaxpool.files import destinations, formats
from jaxpool.files.destinations import in_words, is_device
from jaxpool.files.writers import Result, Write

__all__ = ["check_path", "is_device", "open_file"]

LOST = "no results were kept"


def check_path(path: Path, *, force: bool = False, inputs: Sequence[os.stat_result] = ()) -> None:
    """Refuses a path that `open_file` could not or should not write; call it before a model is loaded for nothing.

    Args:
        path: of the results.
        force: an existing file may be replaced.
        inputs: files that are being read; these are never replaced.

    Raises:
        ValidationError: a folder, in a folder that does not exist, of no format that is written, an input, or an
            existing file without ``force``.
    """
    destinations.check_file(path, force=force, inputs=inputs)
    known = formats.of_path(path)
    if (known is None or known.write is None) and not is_device(path):
        raise ValidationError(
            f"cannot write {path}: results are written as {formats.listed(formats.WRITTEN)} (also .gz)"
        )


@contextlib.contextmanager
def open_file(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    """Gives a function that writes one result; ``path`` appears, complete, when the block ends without error.

    Until then the results are in a hidden file beside it, which is removed when the block fails for whatever
    reason, Ctrl-C included. An existing file is replaced; a device or pipe is written directly, ``-`` is standard
    output.

    Args:
        path: its name tells the format; a device without one gets JSON lines.
        columns: header of a table; nested results are found under ``key_subkey``.

    Raises:
        JaxpoolError: the file cannot be written (disk full, no permission).
    """
    with contextlib.ExitStack() as stack:
        number = destinations.descriptor(path)
        if number is not None:
            with in_words(path, LOST):
                raw: IO[bytes] = os.fdopen(os.dup(number), "wb")
        else:
            part = path if is_device(path) else stack.enter_context(destinations.whole_file(path, LOST))
            with in_words(path, LOST):
                raw = part.open("wb")
        write = stack.enter_context(_writing(raw, path, columns))

        def write_in_words(result: Result) -> None:
            with in_words(path, LOST):
                write(result)

        yield write_in_words


@contextlib.contextmanager
def _writing(raw: IO[bytes], path: Path, columns: Sequence[str]) -> Iterator[Write]:
    """Encodes into ``raw`` and closes it, in words; after an error it is only closed."""
    known = formats.of_path(path)
    make = (known and known.write) or formats.FORMATS["jsonl"].write
    assert make is not None
    # no name and no time in it: equal results make equal files
    packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if formats.packed(path) else None
    # half of a surrogate pair, kept from the input, has no other form in UTF-8 than JSON's escape
    file: TextIO = io.TextIOWrapper(
        packed or raw,
        encoding="utf-8",
        errors="backslashreplace",
        newline="",
    )
    ends = contextlib.ExitStack()
    try:
        with in_words(path, LOST):
            write = ends.enter_context(make(file, columns))
        yield write
        with in_words(path, LOST):
            ends.close()
            file.close()
            raw.close()
    except BaseException:
        for one in (file, raw):
            with contextlib.suppress(OSError):  # the error that brought us here is the one to report
                one.close()
        raise
