"""Which engines run on this machine: by their command lines, ports and files."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final, NamedTuple

import psutil

from dynamometer.engines import kinds
from dynamometer.engines.interface import Engine
from dynamometer.errors import SettingsError
from dynamometer.exporter import procfs
from dynamometer.exporter.procfs import FileId
from dynamometer.process.children import alive
from dynamometer.runtime.identity import WORKER_MARK

logger = logging.getLogger(__name__)

# "::" means all addresses, and mostly IPv4 too.
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "": "127.0.0.1"}

# How long a process may have a command line and no environment: less than a moment, between two
# steps of the kernel's.
_BEGINS_SECONDS: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """An engine's first process, and what is known of it without asking it.

    Attributes:
        process: it.
        what: its number, and how it calls itself.
        user: whose it is.
        engine: its kind, or empty for anything else.
        model: the name that it serves; empty where its command line has none.
        port: on which it listens, if it is known to.
        url: where it answers; None where it listens nowhere, or in another network namespace.
        page_has_more: whether families are on its own page alone; None where that is not known.
    """

    process: psutil.Process
    what: str
    user: str
    engine: str = ""
    model: str = ""
    port: int | None = None
    url: str | None = None
    page_has_more: bool | None = None

    @property
    def name(self) -> str:
        """What to call it: its kind and its port, which stay when it is started again."""
        words = [
            self.engine or "engine",
            str(self.port) if self.port else f"pid-{self.process.pid}",
        ]
        return "-".join(words if self.url or not self.port else [*words, "elsewhere"])


@dataclass(frozen=True, kw_only=True)
class Files:
    """The multiprocess files of an engine's processes.

    Attributes:
        directories: where they are, as seen from here.
        denied: processes whose files cannot be seen, for want of permission.
    """

    directories: tuple[str, ...] = ()
    denied: tuple[psutil.Process, ...] = ()


class Launched(NamedTuple):
    """The command line of an engine's first process."""

    engine: Engine
    arguments: Sequence[str]


class Search(NamedTuple):
    """Result of a search.

    Attributes:
        running: engines of this user, for root of all users, without those of our own workers: each
            worker has its engine's page already.
        other_users: users whose engines were seen, and cannot be looked at.
        own_user: the user of this process.
    """

    running: tuple[Running, ...] = ()
    other_users: frozenset[str] = frozenset()
    own_user: str = ""


def find(known: Set[psutil.Process] = frozenset()) -> Search:
    """Search the processes of this machine for engines; may block.

    Args:
        known: first processes of engines, which are skipped.

    Raises:
        OSError: The processes cannot be listed.
    """
    ours, others = [], set()
    for process, launched in _launched().items():
        if process in known:
            continue
        try:
            may_look = os.geteuid() in (0, process.uids().effective)
            environment = process.environ() if may_look else {}
            begun = process.create_time()
        except procfs.ERRORS:
            continue
        if not may_look:
            others.add(procfs.user(process))
        elif not environment and time.time() - begun < _BEGINS_SECONDS:
            continue  # what it is to know is not in its memory yet; the next look finds it
        elif WORKER_MARK in environment:
            logger.debug("process %d is a worker's engine, which has its page", process.pid)
        else:
            ours.append(_running(process, launched, environment))
    return Search(running=tuple(ours), other_users=frozenset(others), own_user=procfs.own_user())


def look_at(pid: int) -> Running:
    """Return the engine that has the process `pid`, or that process itself; may block.

    Raises:
        SettingsError: No process has this number, or it cannot be looked at.
    """
    try:
        process = psutil.Process(pid)
        if not alive(process):
            raise psutil.NoSuchProcess(pid)
        launched = _launched()
        for candidate in (process, *process.parents()):
            if candidate in launched:
                return _running(candidate, launched[candidate], _environment(candidate))
    except OSError as error:
        raise SettingsError(f"--pid {pid}: cannot be looked at: {error.strerror}") from None
    except psutil.Error:
        raise SettingsError(
            f"--pid {pid}: no process has this number here; `dyno exporter` without --pid looks "
            "for engines itself"
        ) from None
    url = next((_url(host, port) for host, port in procfs.listening(process)), None)
    return Running(
        process=process,
        what=procfs.describe(process),
        user=procfs.user(process),
        url=url,
        page_has_more=False,
    )


def ends_as_a_whole(process: psutil.Process) -> bool:
    """Whether this is one of an engine's processes, of which none goes on without the others."""
    try:
        command = process.cmdline()
    except procfs.ERRORS:
        return False
    return any(engine.is_process(command) for engine in kinds.ENGINES.values())


def files_of(members: Iterable[psutil.Process]) -> Files:
    """Where processes have their multiprocess files, by what they map and hold open."""
    directories: dict[FileId, str] = {}
    views: dict[str, str] = {}  # the first process's, which lives longest, where they share one
    denied = []
    for process in members:
        view = views.setdefault(procfs.mounts(process), procfs.view_of(process))
        try:
            found = {**procfs.held(process), **procfs.mapped(process)}
        except PermissionError:
            denied.append(process)
            continue
        except OSError:  # it has just ended
            continue
        for path in {view + str(PurePath(path).parent) for path in found.values()}:
            with suppress(OSError):
                directories.setdefault(procfs.file_id(path), path)
    return Files(directories=tuple(sorted(directories.values())), denied=tuple(denied))


def _launched() -> Mapping[psutil.Process, Launched]:
    """Return the first process of each engine, with its flags.

    What starts an engine (sudo, a container's first process) may have its command line in its
    own: the engine is the innermost process that has it, its own forks left out.
    """
    commands: dict[psutil.Process, list[str]] = {}
    launched: dict[psutil.Process, Launched] = {}
    for process in psutil.process_iter():
        with suppress(*procfs.ERRORS):
            command = process.cmdline()
            for engine in kinds.ENGINES.values():
                arguments = engine.launch_arguments(command)
                if arguments is not None:
                    commands[process], launched[process] = command, Launched(engine, arguments)
                    break
    for process, command in commands.items():
        with suppress(*procfs.ERRORS):
            parents = process.parents()
            if parents and commands.get(parents[0]) == command:
                launched.pop(process, None)
            else:
                for outer in parents:
                    launched.pop(outer, None)
    return launched


def _running(
    process: psutil.Process, launched: Launched, environment: Mapping[str, str]
) -> Running:
    engine = launched.engine
    facts = engine.command_facts(
        launched.arguments, environment=environment, directory=Path(f"/proc/{process.pid}/cwd")
    )
    port = facts.port
    ports = [port for _, port in procfs.listening(process)]
    if ports and port not in ports:  # set by a file, or a default of the engine's own
        port = ports[0]
    reachable = procfs.shares_network(process)
    return Running(
        process=process,
        what=f"{process.pid} ({engine.title})",
        user=procfs.user(process),
        engine=engine.name,
        model=facts.model,
        port=port,
        url=_url(facts.host, port) if reachable else None,
        page_has_more=facts.page_has_more,
    )


def _url(host: str, port: int) -> str:
    host = _ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except procfs.ERRORS:
        return {}
