"""Where results go: what may be replaced and what may not, and what the system says when it refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxpool.errors import JaxpoolError, ValidationError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STANDARD = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


def reason(error: BaseException) -> str:
    """What the system said, in words; libraries in other languages pass its words on as text."""
    said = next((code for code in (*_FULL, errno.EFBIG) if os.strerror(code) in str(error)), None)
    code = error.errno if isinstance(error, OSError) else said
    if code in _FULL:
        return "the disk is full"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextlib.contextmanager
def in_words(path: Path, lost: str = "") -> Iterator[None]:
    """Turns the system's errors into JaxpoolErrors that name ``path``; a reader that has left stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise JaxpoolError(f"cannot write {path}: {reason(error)}{lost and f'; {lost}'}") from error


def descriptor(path: Path) -> int | None:
    """The open file that a path stands for: ``-``, ``/dev/stdout``, ``/dev/fd/3``; None for any other path."""
    found = _DESCRIPTOR.fullmatch(str(path))
    return int(found[1]) if found else _STANDARD.get(str(path))


def is_device(path: Path) -> bool:
    """Whether ``path`` is written as it is: a device, a pipe, an open file."""
    return descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def status(target: Path | int) -> os.stat_result | None:
    """What the system knows of a path (through links) or of an open file; None if there is none."""
    try:
        return os.fstat(target) if isinstance(target, int) else target.stat()
    except OSError:
        return None


def check_file(path: Path, *, force: bool, inputs: Sequence[os.stat_result] = ()) -> None:
    """Refuses a file that must not be written, before anything slow begins.

    Args:
        path: a file, through links, or a device.
        force: an existing file may be replaced.
        inputs: files that are being read; these are never replaced.

    Raises:
        ValidationError: a folder, in no folder, an input, or an existing file without ``force``.
    """
    number = descriptor(path)
    if number is not None:
        closed = {1: sys.__stdout__, 2: sys.__stderr__}.get(number, path) is None
        if closed or status(number) is None:
            raise ValidationError(f"cannot write to {path}: it is closed; name a file with --output")
    known = status(path if number is None else number)
    if any(known is not None and os.path.samestat(known, one) for one in inputs if not _is_device_node(one)):
        raise ValidationError(f"cannot write to {path}: it is the input; name another file")
    if number is not None:
        return
    if path.is_dir():
        raise ValidationError(f"cannot write to {path}: it is a folder; name a file in it")
    if not path.resolve().parent.is_dir():
        raise ValidationError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_file() and not force:
        raise ValidationError(f"{path} exists already; name another file, or replace it with --force")


def _is_device_node(known: os.stat_result) -> bool:
    """Devices may be read and written at once; only files and pipes are lost by it."""
    return stat.S_ISCHR(known.st_mode)


@contextlib.contextmanager
def whole_file(path: Path, lost: str = "") -> Iterator[Path]:
    """A hidden name beside ``path`` to write under; takes its place when the block ends well, else vanishes.

    A link stays a link, and a file that is replaced passes its permissions on.
    """
    target = path.resolve()
    part = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
    try:
        yield part
        with in_words(path, lost):
            if target.exists():
                _pass_on(target, part)
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _pass_on(old: Path, new: Path) -> None:
    """Permissions, and where we may the owner."""
    known = old.stat()
    with contextlib.suppress(OSError):
        os.chown(new, known.st_uid, known.st_gid)
    shutil.copymode(old, new)


def probe(folder: Path, size: int = 0) -> None:
    """Tries whether ``folder``, which need not exist, can be written into, and has room for ``size`` bytes.

    Raises:
        JaxpoolError: it cannot, and why.
    """
    folder = folder.absolute()
    there = next(one for one in (folder, *folder.parents) if one.exists())
    with in_words(folder), tempfile.TemporaryDirectory(dir=there, prefix=".jaxpool.") as name:
        (Path(name) / "probe").write_bytes(b"\0" * 4096)
        free = shutil.disk_usage(name).free
    if free < size:
        needed = f"{size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are left"
        raise JaxpoolError(f"cannot write {folder}: the disk is too full; {needed}")


def check_folder(target: Path, sources: Sequence[Path] = ()) -> None:
    """Refuses a folder that must never be replaced, whatever it holds.

    Raises:
        ValidationError: a link, a file, the working directory, one of ``sources``, or a folder that holds these.
    """
    if target.is_symlink():
        raise ValidationError(f"{target} is a link; name the folder that it leads to, or another one")
    if target.exists() and not target.is_dir():
        raise ValidationError(f"{target} exists already and is a file; name another folder")
    where = target.resolve()
    for source in sources:
        if where in (source.resolve(), *source.resolve().parents):
            raise ValidationError(f"{target} is the source {source}, or holds it; name another folder")
    if where in (Path.cwd(), *Path.cwd().parents):
        raise ValidationError(f"{target} is the working directory, or holds it; name another folder")
