"""The cgroups of this process, as the kernel and a container's mounts show them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

ROOT: Final = Path("/")


class Cgroup(NamedTuple):
    """The directory of a cgroup, and the version of its hierarchy: 1 or 2."""

    directory: Path
    version: int


def own(controller: str, root: Path = ROOT) -> Iterator[Cgroup]:
    """Yield the cgroups of this process that may have a controller, each before those above it.

    Args:
        controller: the name of the controller, such as `cpu`.
        root: the directory that contains `proc` and `sys`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for directory in _upwards(mounts, path):
                yield Cgroup(directory, 2)
        elif controller in controllers.split(","):
            for mount in dict.fromkeys((controllers, controller)):
                for directory in _upwards(mounts / mount, path):
                    yield Cgroup(directory, 1)


def text(file: Path) -> str:
    """Return the content of a file of a cgroup; empty if the file cannot be read."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the directory of a cgroup, and those above it up to the mount point.

    In a container, the path may be of the machine's tree and missing here: then the mount point
    itself is the container's cgroup.
    """
    relative = PurePosixPath(path.lstrip("/"))
    if ".." in relative.parts:  # a cgroup outside this cgroup namespace
        relative = PurePosixPath()
    for part in (relative, *relative.parents):
        yield mount / part
