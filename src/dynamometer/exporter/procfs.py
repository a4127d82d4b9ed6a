"""Other processes of this machine, as /proc shows them: read, never touched."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from dynamometer.multiprocess.file_format import SUFFIX

# What a look at a process may raise: it has ended, is another user's, or the machine is short of
# descriptors or memory.
ERRORS: Final = (psutil.Error, OSError)
_LONGEST_NAME: Final = 80


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
    """Return the process's number and the name that it gives itself, printable."""
    try:
        words = process.cmdline()
        name = words[0] if len(words) == 1 else process.name()
    except ERRORS:
        return str(process.pid)
    return f"{process.pid} ({printable(name.strip()[:_LONGEST_NAME])})"


def printable(text: str) -> str:
    """Return `text` with escapes for what a log or a JSON body cannot show.

    A process may call itself anything: with line ends, or with bytes that are not UTF-8.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def user(process: psutil.Process) -> str:
    """Return the name of the user whose process this is; a name service may block."""
    try:
        return process.username()
    except (*ERRORS, KeyError):
        return "an unknown user"


def own_user() -> str:
    """Return the user of this process, by number where it has no name; may block, as `user`."""
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
    with suppress(*ERRORS):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                yield connection.laddr.ip, connection.laddr.port
