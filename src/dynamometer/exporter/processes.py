"""Other processes of this machine, as /proc shows them: read, never touched."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from dynamometer.multiprocess.filename import SUFFIX


class FileId(NamedTuple):
    """A file, whatever it is called."""

    device: int
    inode: int


def file_id(path: str) -> FileId:
    """What a path leads to.

    Raises:
        OSError: nothing.
    """
    status = os.stat(path)  # noqa: PTH116  # as it is, links followed
    return FileId(status.st_dev, status.st_ino)


def describe(process: psutil.Process) -> str:
    """Its number, and how it calls itself."""
    try:
        words = process.cmdline()
        name = words[0] if len(words) == 1 else process.name()
    except psutil.Error:
        return str(process.pid)
    return f"{process.pid} ({name.strip()})"


def user(process: psutil.Process) -> str:
    """Whose it is."""
    try:
        return process.username()
    except (psutil.Error, KeyError):
        return "an unknown user"


def own_user() -> str:
    """Who runs this process; a container's user may have a number alone."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.geteuid()}"


def mapped(process: psutil.Process) -> Mapping[FileId, str]:
    """The multiprocess files that it maps, removed ones left out; their paths as it sees them.

    Raises:
        OSError: it has ended, or is another user's.
    """
    found: dict[FileId, str] = {}
    with Path(f"/proc/{process.pid}/maps").open(encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            # proc(5): address, permissions, offset, device, inode, path
            if line.rstrip("\n").endswith(SUFFIX):
                _, _, _, device, inode, path = line.rstrip("\n").split(maxsplit=5)
                major, minor = device.split(":")
                found[FileId(os.makedev(int(major, 16), int(minor, 16)), int(inode))] = path
    return found


def held(process: psutil.Process) -> Mapping[FileId, str]:
    """The multiprocess files that it holds open; as `mapped`."""
    found: dict[FileId, str] = {}
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):
            path = os.readlink(link)  # noqa: PTH115  # pathlib's Path would take "a (deleted)" apart
            if path.endswith(SUFFIX) and path.startswith("/"):
                found[file_id(os.fspath(link))] = path
    return found


def mounts(process: psutil.Process) -> str:
    """What its mounts are called; processes of one container share them. Empty: not to be seen."""
    with suppress(OSError):
        return os.readlink(f"/proc/{process.pid}/ns/mnt")  # noqa: PTH115
    return ""


def view_of(process: psutil.Process) -> str:
    """What its paths begin with from here: empty, unless it has mounts of its own (a container)."""
    own = mounts(process)
    if own and own != os.readlink("/proc/self/ns/mnt"):  # noqa: PTH115
        return f"/proc/{process.pid}/root"
    return ""


def shares_network(process: psutil.Process) -> bool:
    """Whether its loopback is ours; so taken where that cannot be seen."""
    with suppress(OSError):
        return os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net")  # noqa: PTH115
    return True


def own_number(process: psutil.Process) -> str:
    """The pid that it knows itself by: another one in a pid namespace of its own."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1]
    return str(process.pid)


def listening(process: psutil.Process) -> Iterator[tuple[str, int]]:
    """Addresses and ports on which it takes TCP connections; none where that cannot be seen."""
    with suppress(psutil.Error, OSError):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                yield connection.laddr.ip, connection.laddr.port
