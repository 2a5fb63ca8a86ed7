"""Writing a folder all at once or not at all, and the small files that go with a checkpoint's weights."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpool.errors import CheckpointError

# Tokenizer, chat template, sentence-transformers settings. Weights, their index and code stay behind.
_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*/config.json")


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
        if isinstance(error, OSError) or _is_io_error(error):
            raise CheckpointError(f"{destination} cannot be written: {error}; nothing was left behind") from error
        raise


def copy_companions(source: Path, destination: Path) -> None:
    """Copy the small files of a checkpoint that are not there yet, contents and not links."""
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            target = destination / path.relative_to(source)
            if path.is_file() and not path.name.endswith(".index.json") and not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_io_error(error: BaseException) -> bool:
    """Libraries that write files report the operating system's errors as text."""
    return isinstance(error, Exception) and any(
        words in str(error) for words in ("No space left", "File too large", "os error", "OS error")
    )
