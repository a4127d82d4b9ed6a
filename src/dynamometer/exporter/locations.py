"""The directories of an engine's multiprocess files, and the permission to read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dynamometer.exporter import finder, procfs
from dynamometer.exporter.finder import FoundEngine
from dynamometer.exporter.targets import Target
from dynamometer.process.children import alive, descendants


@dataclass(frozen=True, kw_only=True)
class FileLocations:
    """The directories of one engine's files, as one search found them.

    Attributes:
        first: the engine's first process at the time of the search, if known.
        directories: the directories to read from now on; empty to keep the previous ones.
        readable: those of `directories` that this process may read.
        missing_reason: the reason to report while no value has been read from the files.
        warnings: faults that the user can correct.
    """

    first: FoundEngine | None = None
    directories: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    missing_reason: str = "the search for its files has not finished yet"
    warnings: tuple[str, ...] = ()


def locate(target: Target, first: FoundEngine | None) -> FileLocations:
    """Search for the directories of an engine's files; may block.

    Args:
        target: the engine.
        first: the engine's first process; None if only directories are known.

    Raises:
        OSError: The engine's processes cannot be listed.
    """
    has_url = bool(target.url or (first is not None and first.url))
    directories, warnings = target.directories, []
    if first is not None:
        found = finder.files_of(members(first))
        if found.denied:
            denied = found.denied[0]
            user = procfs.user_of(denied)
            warnings.append(_permission_fault(f"process {denied.pid}", user, has_url=has_url))
        directories = directories or found.directories
        if not directories:
            reason = (
                f"process {first.description} and the processes that it started have no "
                "multiprocess files"
            )
            if first.url is None:
                reason += ", and do not listen on a port"
            return FileLocations(
                first=first,
                missing_reason=warnings[0] if warnings else reason,
                warnings=tuple(warnings),
            )
    readable = tuple([path for path in directories if os.access(path, os.R_OK | os.X_OK)])
    for path in directories:
        if not os.path.exists(path):  # noqa: PTH110  # Path.exists may raise an error
            warnings.append(f"{path} does not exist")
        elif path not in readable:
            warnings.append(_permission_fault(path, _owner(path), has_url=has_url))
    if readable:
        reason = f"{', '.join(readable)}: the engine has not written multiprocess files (*.db) yet"
    else:
        reason = f"{', '.join(directories)}: does not exist, or cannot be read"
    return FileLocations(
        first=first,
        directories=readable or directories,
        readable=readable,
        missing_reason=reason,
        warnings=tuple(warnings),
    )


def members(first: FoundEngine | None) -> Sequence[psutil.Process]:
    """Return the processes of an engine, or an empty sequence if it has ended; may block.

    Raises:
        OSError: The processes cannot be listed.
    """
    if first is None or not alive(first.process):
        return ()
    return [first.process, *descendants(first.process)]


def _permission_fault(subject: str, user: str, *, has_url: bool) -> str:
    advice = "" if os.geteuid() == 0 else f": run the exporter as {user}, or as root"
    meanwhile = "; meanwhile the engine's own page is fetched" if has_url else ""
    return f"no permission to read {subject}{advice}{meanwhile}"


def _owner(path: str) -> str:
    try:
        return Path(path).owner()
    except (KeyError, OSError):
        return "its owner"
