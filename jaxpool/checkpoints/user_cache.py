"""Where jaxpool keeps what it may read back in another process: compiled programs, what configs say.

What is read back is trusted (a compiled program is code). So every folder on the way to it is opened from the one
before, by descriptor, and must belong to this user or to root and be writable to nobody else; and an entry that is not
what was written is no entry.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import secrets
import stat
import weakref
from pathlib import Path, PurePath

logger = logging.getLogger(__name__)

DIGEST = hashlib.sha256
MOST_LINKS = 40
"""Symbolic links that a path may lead through, as in Linux."""


class Folder:
    """A folder that was found to be this user's alone, held by descriptor: later renames change nothing.

    Attributes:
        path: where it was found.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False

    def read(self, name: str) -> bytes | None:
        """What `write` wrote last; None where there is nothing, or something else."""
        try:
            with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._descriptor), "rb") as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode) or _others_write(about):
                    return None
                digest, _, content = file.read().partition(b"\n")
        except OSError:
            return None
        return content if digest == DIGEST(content).hexdigest().encode() else None

    def holds(self, name: str) -> bool:
        """Whether there is a file of this name; `read` says whether it is worth anything."""
        try:
            return stat.S_ISREG(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def write(self, name: str, content: bytes) -> None:
        """Keep ``content``, all of it or nothing; where that fails (a full disk), it only costs the speed."""
        part = f".{name[:100]}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(part, flags, 0o600, dir_fd=self._descriptor), "wb") as file:
                file.write(DIGEST(content).hexdigest().encode() + b"\n")
                file.write(content)
            os.replace(part, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError as error:
            logger.debug("%s is not kept: %s", name, error)
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=self._descriptor)


def private_folder(name: str) -> Folder | None:
    """``name`` in ``$JAXPOOL_CACHE_DIR`` or ``~/.cache/jaxpool``, made if need be.

    Returns:
        The folder, or None: ``JAXPOOL_CACHE_DIR=off``, others may write to it or to a folder above (a warning in the
        log says to which), or it cannot be made.
    """
    asked = os.environ.get("JAXPOOL_CACHE_DIR")
    if asked == "off" or not hasattr(os, "getuid"):  # the checks are Unix's
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    path = (Path(asked) if asked else Path(home) / "jaxpool").absolute() / name
    try:
        return Folder(path, _descend(path))
    except OSError as error:
        logger.warning("nothing is kept in %s: %s", path, error)
        return None


def _descend(path: Path) -> int:
    """A descriptor of the folder ``path``, which is absolute.

    Raises:
        PermissionError: others may write to it, or change where it is; names the folder.
        OSError: it cannot be made or opened.
    """
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
    rest, links = list(reversed(path.parts[1:])), 0
    here, descriptor = PurePath("/"), os.open("/", flags)
    try:
        _check(descriptor, here, last=not rest)
        while rest:
            part = rest.pop()
            try:
                child = os.open(part, flags, dir_fd=descriptor)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                child = os.open(part, flags, dir_fd=descriptor)
            except OSError as error:
                target = _link(part, descriptor, here, error)
                if (links := links + 1) > MOST_LINKS:
                    raise OSError(errno.ELOOP, f"{path} leads through too many symbolic links") from None
                rest += reversed(target.parts[target.is_absolute() :])
                if not target.is_absolute():
                    continue
                child, part = os.open("/", flags), "/"
            os.close(descriptor)
            descriptor, here = child, here / part
            _check(descriptor, here, last=not rest)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(descriptor: int, path: PurePath, *, last: bool) -> None:
    about = os.fstat(descriptor)
    foreign = about.st_uid != os.getuid() and (last or about.st_uid != 0)
    sticky = about.st_mode & stat.S_ISVTX and not last  # others may add to it, and change nothing of ours
    if foreign or (_others_write(about, parent=not last) and not sticky):
        raise PermissionError(f"others may write to {path}; give it to this user alone (chmod go-w)")


def _others_write(about: os.stat_result, *, parent: bool = False) -> bool:
    if about.st_uid not in (0, os.getuid()) or about.st_mode & stat.S_IWOTH:
        return True
    return bool(about.st_mode & stat.S_IWGRP) and not (parent and _is_ours_alone(about.st_gid))


@functools.cache
def _is_ours_alone(gid: int) -> bool:
    """Whether a group is root's, the user's own by its name, or nobody's that this system knows (in containers)."""
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return gid in (os.getegid(), *os.getgroups())
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}


def _link(name: str, descriptor: int, folder: PurePath, error: OSError) -> PurePath:
    """Where a symbolic link leads; ``error``, if it is none, or if somebody else made it."""
    try:
        target = os.readlink(name, dir_fd=descriptor)
    except OSError:
        raise error from None
    if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid not in (0, os.getuid()):
        raise PermissionError(f"somebody else has made the link {folder / name}")
    return PurePath(target)
