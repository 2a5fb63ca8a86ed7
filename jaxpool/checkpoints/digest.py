"""A checkpoint's identity: one digest of everything in it that can change a result."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxpool.checkpoints.location import locate


def model_digest(model: str | None, revision: str | None = None) -> str:
    """SHA-256 over every file of a checkpoint that can change a result: weights, config, tokenizer.

    A file of the hub's cache is known by the digest in its name and not read again.
    """
    folder = locate(model, revision=revision)
    wanted = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _beside(path.relative_to(folder))]
    with ThreadPoolExecutor(8) as threads:
        digests = list(threads.map(_digest, wanted))
    whole = hashlib.sha256()
    for path, digest in zip(wanted, digests):
        whole.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return whole.hexdigest()


def _beside(path: Path) -> bool:
    """Whether a file is no part of the model: documentation, caches, code."""
    return path.suffix.lower() in (".md", ".py", ".pyc", ".lock") or any(part.startswith(".") for part in path.parts)


def _digest(path: Path) -> str:
    name = path.resolve().name
    if path.is_symlink() and len(name) == 64 and path.resolve().parent.name == "blobs":
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
