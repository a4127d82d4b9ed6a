"""Directories of ours: made with mode 0700, owned by us, never reached through a link."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from dynamometer.errors import DirectoryError


def create(path: Path) -> Path:
    """`path`, made where it was missing, and safe to keep files in.

    Raises:
        DirectoryError: it cannot be made, is a link, is someone else's, or others may write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except FileExistsError:
        raise DirectoryError(f"{path} is no directory: remove it, or name another one") from None
    except OSError as error:
        raise DirectoryError(f"cannot make the directory {path}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryError(f"{path} is a link: name the directory itself")
    if status.st_uid != os.geteuid():
        raise DirectoryError(f"{path} belongs to user {status.st_uid}: name another directory")
    if status.st_mode & 0o022:
        raise DirectoryError(f"others may write to {path}: chmod 700 it, or name another one")
    return path


def create_runtime() -> Path:
    """This user's directory for what lives as long as a login: sockets, locks, records."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_dir() and os.access(base, os.W_OK):
        return create(Path(base) / "dynamometer")
    return create(Path(f"/tmp/dynamometer-{os.geteuid()}"))  # noqa: S108  # checked by create()


def create_memory() -> Path:
    """This user's directory on tmpfs: an engine's metrics are written on its token path."""
    shared = Path("/dev/shm")  # noqa: S108  # checked by create()
    if shared.is_dir() and os.access(shared, os.W_OK):
        # Anybody may have made a directory of that name before us.
        with contextlib.suppress(DirectoryError):
            return create(shared / f"dynamometer-{os.geteuid()}")
    return create(create_runtime() / "memory")


def create_temporary(prefix: str) -> Path:
    """Make a directory for temporary files; its owner removes it.

    Raises:
        DirectoryError: No directory for temporary files can be written to.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except FileNotFoundError as error:  # also of a full file system
        raise DirectoryError(
            f"{error.strerror}: free some space, or set TMPDIR to a writable directory"
        ) from None
    except OSError as error:
        raise DirectoryError(
            f"cannot make a directory in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to "
            "another one"
        ) from None


def require_current() -> None:
    """Check that the current directory is there: child processes cannot start without it.

    Raises:
        DirectoryError: It was removed.
    """
    try:
        os.getcwd()  # noqa: PTH109  # the question is whether it is there
    except OSError as error:
        raise DirectoryError(
            f"the current directory cannot be used: {error.strerror}; change to another one"
        ) from None
