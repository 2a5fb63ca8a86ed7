"""Batch jobs: files in, parts out, each row exactly once, however often the job is killed and begun again.

``units`` cuts inputs into units, ``local`` does them in this process, ``share`` says which are whose among several
processes; a unit leaves a part and a receipt (``parts``), and ``manifest`` checks them all. Needs ``jaxpool[batch]``.
The room imports the library below it (``llm``, ``text``, ``files``, what a checkpoint says) and no command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpool.batch.local import Summary, run
    from jaxpool.batch.share import Share

__all__ = ["Share", "Summary", "run"]


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    if name == "Share":
        from jaxpool.batch.share import Share

        return Share
    if name in __all__:
        from jaxpool.batch import local

        return getattr(local, name)
    raise AttributeError(f"module 'jaxpool.batch' has no attribute {name!r}")
