"""Writing a folder all at once or not at all, and the small files that go with a checkpoint's weights."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpool.errors import CheckpointError

# Tokenizer, chat template, sentence-transformers settings. Weights, their index and code stay behind.
_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.codes", "*/config.json")


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder to write into; takes the name ``destination`` when the block ends well, and vanishes if not.

    Raises:
        CheckpointError: the destination exists and is not an empty folder, or cannot be written (disk full).
    """
    destination = destination.absolute()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} exists already; remove it or choose another name")
    partial = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent))
        yield partial
        mask = _umask()  # mkdtemp and safetensors let only the owner in
        partial.chmod(0o777 & ~mask)
        for path in partial.glob("*.safetensors"):
            path.chmod(0o666 & ~mask)
        partial.rename(destination)  # replaces an empty folder
    except BaseException as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        reason = _reason(error)
        if reason is not None:
            raise CheckpointError(f"{destination} cannot be written: {reason}; nothing was left behind") from error
        raise


def copy_companions(source: Path, destination: Path) -> None:
    """Copy the small files of a checkpoint that are not there yet, contents and not links."""
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            target = destination / path.relative_to(source)
            skipped = path.name.endswith(".index.json") or path.name == "jaxpool.json"  # of weights, of a store
            if path.is_file() and not skipped and not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)


def is_companion(path: Path) -> bool:
    """Whether a path within a checkpoint's folder is one of its small files."""
    return any(path.match(pattern) and len(path.parts) == pattern.count("/") + 1 for pattern in _COMPANIONS)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _reason(error: BaseException) -> str | None:
    """What the operating system said, or None if it said nothing; libraries pass its words on as text."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    words = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS))
    return next((said for said in words if said in str(error)), None)
