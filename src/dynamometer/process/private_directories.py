"""Directories that only this user can write to: mode 0700, and not a symbolic link."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from dynamometer.errors import DirectoryError


def create(path: Path) -> Path:
    """Create the directory `path` if it is missing, and return `path`.

    Raises:
        DirectoryError: `path` cannot be created, is not a directory, is a symbolic link, belongs to
            another user, or other users may write to it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except FileExistsError:
        raise DirectoryError(
            f"{path} is not a directory: remove it, or choose another path"
        ) from None
    except OSError as error:
        raise DirectoryError(f"cannot create the directory {path}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryError(f"{path} is a symbolic link: give the path of the directory itself")
    if status.st_uid != os.geteuid():
        raise DirectoryError(f"{path} belongs to user {status.st_uid}: choose another directory")
    if status.st_mode & 0o022:
        raise DirectoryError(
            f"other users may write to {path}: run chmod 700, or choose another directory"
        )
    return path


def create_runtime() -> Path:
    """Create this user's directory for locks and records, and return its path."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_dir() and os.access(base, os.W_OK):
        return create(Path(base) / "dynamometer")
    return create(Path(f"/tmp/dynamometer-{os.geteuid()}"))  # noqa: S108  # checked by create()


def create_memory() -> Path:
    """Create this user's directory on tmpfs, where an engine writes its metrics at each token."""
    shared = Path("/dev/shm")  # noqa: S108  # checked by create()
    if shared.is_dir() and os.access(shared, os.W_OK):
        # Another user may own a directory with this name.
        with contextlib.suppress(DirectoryError):
            return create(shared / f"dynamometer-{os.geteuid()}")
    return create(create_runtime() / "memory")


def create_temporary(prefix: str) -> Path:
    """Create a directory for temporary files; the caller removes it.

    Raises:
        DirectoryError: No directory for temporary files can be written to.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except FileNotFoundError as error:  # a full file system raises this error, too
        raise DirectoryError(
            f"{error.strerror}: free some space, or set TMPDIR to a writable directory"
        ) from None
    except OSError as error:
        raise DirectoryError(
            f"cannot create a directory in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR "
            "to another directory"
        ) from None


def require_current() -> None:
    """Check that the current directory exists; otherwise child processes cannot start.

    Raises:
        DirectoryError: The current directory was removed.
    """
    try:
        os.getcwd()  # noqa: PTH109  # raises if the directory is missing
    except OSError as error:
        raise DirectoryError(
            f"the current directory cannot be used: {error.strerror}; change to another directory"
        ) from None
