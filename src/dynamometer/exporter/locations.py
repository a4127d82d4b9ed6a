"""Where an engine's files are: given, or found by its processes; and what is in the way."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dynamometer.exporter import finder, procfs
from dynamometer.exporter.finder import Running
from dynamometer.exporter.targets import Target
from dynamometer.process.children import alive, descendants

logger = logging.getLogger(__name__)


class Words:
    """What is said of an engine, each thing once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[str] = set()
        self._last = ""

    def once(self, text: str) -> None:
        """Warn, unless it was said before."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s: %s", self._name, text)

    def changed(self, text: str) -> None:
        """Warn, unless it is what was said last."""
        if text != self._last:
            self._last = text
            logger.warning("%s: %s", self._name, text)


@dataclass(frozen=True, kw_only=True)
class FileLocations:
    """The directories of one engine, as one look found them.

    Attributes:
        running: the engine's first process, where that was looked at.
        directories: to read from now on; empty: the former ones.
        readable: those that can be read.
        lack: why there is nothing to read.
        warnings: for the user, each once.
    """

    running: Running | None = None
    directories: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    lack: str = "its files were not looked for yet"
    warnings: tuple[str, ...] = ()


def look(target: Target, running: Running | None) -> FileLocations:
    """Look for the files of an engine; may block.

    Args:
        target: which engine.
        running: its first process; None where only its directories are known.

    Raises:
        OSError: Its processes cannot be looked at.
    """
    has_url = bool(target.url or (running.url if running is not None else None))
    directories, warnings = target.directories, []
    if running is not None:
        found = finder.files_of(members(running))
        if found.denied:
            first = found.denied[0]
            user = procfs.user(first)
            warnings.append(_denied(f"process {first.pid}", user, has_url=has_url))
        directories = directories or found.directories
        if not directories:
            lack = f"process {running.what} and what it started have no multiprocess files"
            if running.url is None:
                lack += ", and listen nowhere"
            return FileLocations(running=running, lack=lack, warnings=(*warnings, lack))
    readable = tuple([path for path in directories if os.access(path, os.R_OK | os.X_OK)])
    for path in directories:
        if not os.path.exists(path):  # noqa: PTH110  # never raises
            warnings.append(f"{path} is not there yet")
        elif path not in readable:
            warnings.append(_denied(path, _owner(path), has_url=has_url))
    if readable:
        lack = f"there are no multiprocess files (*.db) in {', '.join(readable)} yet"
    else:
        lack = f"{', '.join(directories)}: not there yet, or not to be read"
    return FileLocations(
        running=running,
        directories=readable or directories,
        readable=readable,
        lack=lack,
        warnings=tuple(warnings),
    )


def members(running: Running | None) -> Sequence[psutil.Process]:
    """Return the processes of an engine; empty where it has ended. May block.

    Raises:
        OSError: They cannot be looked at.
    """
    if running is None or not alive(running.process):
        return ()
    return [running.process, *descendants(running.process)]


def _denied(what: str, user: str, *, has_url: bool) -> str:
    advice = "" if os.geteuid() == 0 else f": run the exporter as {user}, or as root"
    page = "; meanwhile its own page is fetched" if has_url else ""
    return f"no permission to read {what}{advice}{page}"


def _owner(path: str) -> str:
    try:
        return Path(path).owner()
    except (KeyError, OSError):
        return "its owner"
