"""Facts about other processes of this machine, read from /proc."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from dynamometer.multiprocess.file_format import SUFFIX

# The errors that reading a process's facts may raise. Their causes: the process has ended, it
# belongs to another user, or this machine is short of descriptors or memory.
ERRORS: Final = (psutil.Error, OSError)
_LONGEST_NAME: Final = 80


class FileId(NamedTuple):
    """The identity of a file, independent of its path."""

    device: int
    inode: int


def file_id(path: str) -> FileId:
    """Return the identity of the file at `path`; links are followed.

    Raises:
        OSError: The file does not exist, or cannot be read.
    """
    status = os.stat(path)  # noqa: PTH116  # pathlib would normalise the path
    return FileId(status.st_dev, status.st_ino)


def describe(process: psutil.Process) -> str:
    """Return a process's pid and name, printable."""
    try:
        command = process.cmdline()
        name = command[0] if len(command) == 1 else process.name()
    except ERRORS:
        return str(process.pid)
    return f"{process.pid} ({printable(name.strip()[:_LONGEST_NAME])})"


def printable(text: str) -> str:
    """Return `text` with escapes for characters that a log or JSON cannot show.

    The name of a process may contain line ends, and bytes that are not UTF-8.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def start_time(process: psutil.Process) -> float | None:
    """Return the Unix time when a process started; None if the process has just ended."""
    try:
        return process.create_time()
    except ERRORS:
        return None


def user_of(process: psutil.Process) -> str:
    """Return the name of a process's user; a name service may block."""
    try:
        return process.username()
    except (*ERRORS, KeyError):
        return "an unknown user"


def own_user() -> str:
    """Return the name, or else the number, of this process's user; a name service may block."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.geteuid()}"


def mapped_files(process: psutil.Process) -> Mapping[FileId, str]:
    """Return the multiprocess files that a process maps, with the paths that the process sees.

    Removed files are not included.

    Raises:
        OSError: The process has ended, or belongs to another user.
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


def open_files(process: psutil.Process) -> Mapping[FileId, str]:
    """Return the multiprocess files that a process has open; see `mapped_files`."""
    found: dict[FileId, str] = {}
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):
            path = os.readlink(link)  # noqa: PTH115  # pathlib would split "a (deleted)"
            if path.endswith(SUFFIX) and path.startswith("/"):
                found[file_id(os.fspath(link))] = path
    return found


def mount_namespace(process: psutil.Process) -> str:
    """Return the identifier of a process's mounts; empty without permission to read it.

    The processes of one container have the same mounts.
    """
    with suppress(OSError):
        return os.readlink(f"/proc/{process.pid}/ns/mnt")  # noqa: PTH115
    return ""


def root_prefix(process: psutil.Process) -> str:
    """Return the prefix with which this process opens a path of `process`.

    The prefix is empty if both processes have the same mounts.
    """
    namespace = mount_namespace(process)
    if namespace and namespace != os.readlink("/proc/self/ns/mnt"):  # noqa: PTH115
        return f"/proc/{process.pid}/root"
    return ""


def shares_network(process: psutil.Process) -> bool:
    """Return whether a process shares this process's loopback addresses; True if unknown."""
    with suppress(OSError):
        return os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net")  # noqa: PTH115
    return True


def own_pid(process: psutil.Process) -> str:
    """Return the pid that a process has in its own pid namespace."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1]
    return str(process.pid)


def listening_addresses(process: psutil.Process) -> Iterator[tuple[str, int]]:
    """Return the TCP addresses and ports on which a process listens, as far as they can be read."""
    with suppress(*ERRORS):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                yield connection.laddr.ip, connection.laddr.port
