"""Where an engine's files are: given, or found by its processes; and what is in the way."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from dynamometer.exporter import finder, processes
from dynamometer.exporter.finder import Running
from dynamometer.exporter.source import FilesSource
from dynamometer.exporter.targets import Target
from dynamometer.process.children import alive, descendants

logger = logging.getLogger(__name__)

Members = Callable[[], Sequence[psutil.Process]]


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


class Places:
    """The directories of one engine.

    Attributes:
        files: what is in them, once there is a place to look.
        readable: whether any of them can be read.
        lack: why there is nothing to read.
        searched: whether the processes of the engine of now were looked through.
    """

    def __init__(
        self, target: Target, new_files: Callable[[Members], FilesSource], words: Words
    ) -> None:
        """No place is known yet."""
        self.files: FilesSource | None = None
        self.readable = False
        self.lack = "its files were not looked for yet"
        self.searched = False
        self._target = target
        self._new_files = new_files
        self._words = words
        self._running: Running | None = None

    def find(self, running: Running) -> None:
        """Look for them among the processes of an engine.

        Args:
            running: its first process.
        """
        self._running = running
        found = finder.files_of(self._members())
        self.searched = True
        if found.denied:
            self._tell_denied(f"process {found.denied[0].pid}", processes.user(found.denied[0]))
        directories = self._target.directories or found.directories
        if directories:
            self.follow(directories)
        else:
            self.lack = f"process {running.what} and what it started have no multiprocess files"
            if running.url is None:
                self.lack += ", and listen nowhere"
            self._words.once(self.lack)

    def follow(self, directories: Sequence[str]) -> None:
        """Read these from now on.

        Args:
            directories: at least one.
        """
        readable = [path for path in directories if os.access(path, os.R_OK | os.X_OK)]
        self.readable = bool(readable)
        for path in directories:
            if not os.path.exists(path):  # noqa: PTH110  # never raises
                self._words.once(f"{path} is not there yet")
            elif path not in readable:
                self._tell_denied(path, _owner(path))
        if not readable:
            self.lack = f"{', '.join(directories)}: not there yet, or not to be read"
        else:
            self.lack = f"there are no multiprocess files (*.db) in {', '.join(readable)} yet"
        if self.files is None:
            self.files = self._new_files(self._members)
        wanted = tuple(readable) or tuple(directories)
        if wanted != tuple(self.files.paths):
            for path in readable:
                logger.info("%s: reading its files in %s", self._target.name, path)
            self.files.follow(wanted)

    def _members(self) -> Sequence[psutil.Process]:
        if self._running is None or not alive(self._running.process):
            return ()
        first = self._running.process
        return [first, *descendants(first)]

    def _tell_denied(self, what: str, user: str) -> None:
        advice = "" if os.geteuid() == 0 else f": run the exporter as {user}, or as root"
        page = "; meanwhile its own page is fetched" if self._has_url else ""
        self._words.once(f"no permission to read {what}{advice}{page}")

    @property
    def _has_url(self) -> bool:
        running = self._running.url if self._running is not None else None
        return bool(self._target.url or running)


def _owner(path: str) -> str:
    try:
        return Path(path).owner()
    except (KeyError, OSError):
        return "its owner"
