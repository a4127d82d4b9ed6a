"""Write the files of `dyno observe`, and touch no other file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dynamometer.errors import DirectoryError
from dynamometer.observability.configuration import (
    GRAFANA_DATA,
    GRAFANA_LOG,
    MARK,
    PROMETHEUS_DATA,
    PROMETHEUS_FILE,
    PROMETHEUS_LOG,
)

_ADVICE: Final = {
    errno.EACCES: "make the directory writable, or ",
    errno.EPERM: "make the directory writable, or ",
    errno.ENOSPC: "free some space, or ",
    errno.EDQUOT: "free some space, or ",
}


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write all `files`, each atomically; replace only files that an earlier call wrote.

    Args:
        directory: created if it is missing.
        files: the contents, by their paths in `directory`.

    Raises:
        DirectoryError: A file of another origin has the name of one of `files` (then no file is
            written), or a file cannot be written.
    """
    for name in files:
        _check_replaceable(directory / name)
    for name, content in files.items():
        path = directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, content)
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "")
            raise DirectoryError(
                f"cannot write {path}: {error.strerror}; {advice}choose another directory"
            ) from None


def check_data(directory: Path) -> None:
    """Check that no data and no log is of another origin: those have no configuration beside them.

    Raises:
        DirectoryError: Prometheus would remove old data there, or a log would be replaced.
    """
    if not os.path.lexists(directory / PROMETHEUS_FILE):  # `write` checks the file itself
        for name in (PROMETHEUS_DATA, PROMETHEUS_LOG, GRAFANA_DATA, GRAFANA_LOG):
            if os.path.lexists(directory / name):
                raise _foreign(directory / name)


def _check_replaceable(path: Path) -> None:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # such as a pipe, which blocks its reader
            raise _foreign(path)
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DirectoryError(f"cannot replace {path}: {error.strerror}") from None
    own_dashboard = f'"uid": "{path.stem}"'.encode()
    if not content.startswith(MARK.encode()) and not (
        path.suffix == ".json" and own_dashboard in content
    ):
        raise _foreign(path)


def _foreign(path: Path) -> DirectoryError:
    return DirectoryError(
        f"{path} exists and was not written by dyno observe: move it away, or choose another "
        "directory"
    )


def _replace(path: Path, content: bytes) -> None:
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new_file = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        # Prometheus and Grafana in containers are other users.
        new_file.chmod(0o644)
        new_file.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new_file.unlink()
        raise
