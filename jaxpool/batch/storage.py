"""Where files are: this machine's disks, object stores through pyarrow, everything else through fsspec.

One kind of filesystem for all, pyarrow's. A file that is written appears whole or not at all: on a disk it is renamed
into place, to an object store it is sent in one upload when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from jaxpool.errors import InputFileError, JaxpoolError

NATIVE = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
"""Schemes that pyarrow speaks itself."""
TEMPORARY = ".tmp"
_COPY = 8 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder.

    Attributes:
        filesystem: a ``pyarrow.fs.FileSystem``.
        path: its name there.
        root: what a path there lacks of a URL ("s3://", "hf://"); empty for this machine's disks.
    """

    filesystem: Any
    path: str
    root: str = ""

    def __str__(self) -> str:
        return self.root + self.path

    def __truediv__(self, name: str) -> Place:
        return Place(self.filesystem, f"{self.path.rstrip('/')}/{name}", self.root)

    @property
    def local(self) -> bool:
        """Whether it is on a disk of this machine (or mounted here)."""
        return not self.root

    def info(self) -> Any:
        """Its ``pyarrow.fs.FileInfo``; its type is ``NotFound`` where there is nothing."""
        with in_words(self):
            return self.filesystem.get_file_info(self.path)

    def listing(self, recursive: bool = False) -> list[Any]:
        """Files of a folder, sorted by name; none where there is no such folder."""
        with in_words(self):
            selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
            found = self.filesystem.get_file_info(selector)
        return sorted((one for one in found if one.type == fs.FileType.File), key=lambda one: one.path)

    def read(self) -> bytes | None:
        """Its content, or None where there is no such file."""
        if self.info().type != fs.FileType.File:
            return None
        with in_words(self), self.filesystem.open_input_stream(self.path) as file:
            return bytes(file.read())

    def write(self, content: bytes) -> None:
        """Makes it hold ``content``, at once."""
        with self.appearing() as path:
            path.write_bytes(content)

    @contextlib.contextmanager
    def appearing(self, scratch: Path | None = None) -> Iterator[Path]:
        """A file to be written; when the block ends without error it appears here, whole.

        Args:
            scratch: folder of this machine for what goes to an object store later; None is the system's.

        Raises:
            JaxpoolError: disk full, no permission and the like, in a sentence.
        """
        name = f".{Path(self.path).name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}"
        if self.local:
            part = Path(self.path).with_name(name)
        else:
            import tempfile

            part = Path(scratch or tempfile.gettempdir()) / name
        try:
            with in_words(self):
                if self.local:
                    part.parent.mkdir(parents=True, exist_ok=True)
                yield part
                if self.local:
                    with part.open("rb") as file:
                        os.fsync(file.fileno())  # a name must never outlive a power cut that its content did not
                    part.replace(self.path)
                else:
                    self._upload(part)
        finally:
            part.unlink(missing_ok=True)

    def _upload(self, part: Path) -> None:
        with part.open("rb") as file:
            target = self.filesystem.open_output_stream(self.path)
            while block := file.read(_COPY):
                target.write(block)
            target.close()  # the object appears now; an upload that fails before is never closed


def place(name: str | os.PathLike[str]) -> Place:
    """Where a path or URL leads.

    Raises:
        JaxpoolError: the URL's scheme is unknown, or its package is not installed.
    """
    word = os.fspath(name)
    scheme, mark, rest = word.partition("://")
    if not mark or scheme == "file":
        return Place(fs.LocalFileSystem(), str(Path(rest if mark else word).expanduser().absolute()))
    bucket, _, inside = rest.partition("/")
    if scheme in NATIVE:
        with in_words(word):
            filesystem, base = fs.FileSystem.from_uri(f"{scheme}://{bucket}")
        return Place(filesystem, f"{base}/{inside}".rstrip("/"), f"{scheme}://")
    import fsspec

    try:
        filesystem = fsspec.filesystem(scheme)
        path = filesystem._strip_protocol(word)
    except ImportError as error:
        raise JaxpoolError(f"{word}: {error}") from error
    except ValueError as error:
        raise JaxpoolError(f"{word}: nothing here reads {scheme}:// ({error})") from error
    return Place(fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path, f"{scheme}://")


@contextlib.contextmanager
def in_words(where: object, error_type: type[JaxpoolError] = JaxpoolError) -> Iterator[None]:
    """Errors of filesystems and formats as one sentence that names ``where``."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputFileError(f"{where} does not exist") from error
    except (OSError, pa.ArrowException) as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = "the disk is full, or a limit on sizes is reached"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "it may not be read or written by this user"
        else:
            reason = str(error).split(". Detail:")[0].strip().rstrip(".")
        raise error_type(f"{where}: {reason}") from error


def sweep(folder: Place) -> None:
    """Removes what dead processes of this machine left half-written in a local folder."""
    if not folder.local:
        return
    for path in Path(folder.path).glob(f".*{TEMPORARY}"):
        host, pid = path.name.removesuffix(TEMPORARY).split(".")[-3:-1]
        if host == socket.gethostname().split(".")[-1] and pid.isdigit() and not _alive(int(pid)):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
