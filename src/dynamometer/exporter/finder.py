"""The engines that run on this machine, found by their command lines, ports and files."""

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
from dynamometer.exposition.label_bounds import ClientLabels
from dynamometer.process.children import alive, descendants
from dynamometer.runtime.identity import WORKER_MARK

logger = logging.getLogger(__name__)

# "::" means all addresses, usually also those of IPv4.
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "": "127.0.0.1"}

# The kernel sets a new program's command line a moment before its environment. So a younger process
# with an empty environment is skipped until the next search.
_START_SECONDS: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class FoundEngine:
    """An engine that runs on this machine, as its first process shows it in /proc.

    Attributes:
        process: the first process.
        description: its pid and name.
        user: the name of its user.
        started_at: the Unix time when it started; None if unknown.
        kind: the kind of the engine; empty for any other program.
        model: the name of the served model; empty if the command line does not contain one.
        port: the port of the engine's HTTP server; None if unknown.
        url: the address of the HTTP server; None if the port is unknown, or in another network
            namespace.
        page_has_more: the engine's own page has families that its files do not have; None if
            unknown.
        client_labels: the labels of its series whose values come from clients; None if unknown.
    """

    process: psutil.Process
    description: str
    user: str
    started_at: float | None = None
    kind: str = ""
    model: str = ""
    port: int | None = None
    url: str | None = None
    page_has_more: bool | None = None
    client_labels: ClientLabels | None = None

    @property
    def name(self) -> str:
        """A name from the engine's kind and port, which a restart does not change."""
        port = str(self.port) if self.port else f"pid-{self.process.pid}"
        elsewhere = "-elsewhere" if self.port and not self.url else ""
        return f"{self.kind or 'engine'}-{port}{elsewhere}"


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """The multiprocess files of an engine's processes.

    Attributes:
        directories: the directories of the files, with paths that this process can open.
        denied: processes whose files this process may not list.
    """

    directories: tuple[str, ...] = ()
    denied: tuple[psutil.Process, ...] = ()


class _Launch(NamedTuple):
    """The kind of an engine, and the flags of its first process."""

    engine: Engine
    flags: Sequence[str]


class Search(NamedTuple):
    """The result of a search.

    Attributes:
        engines: the engines of this user (for root: of all users), except those of a `dyno worker`,
            which serves their metrics itself.
        other_users: the users whose engines this user may not inspect.
        own_user: the user of this process.
    """

    engines: tuple[FoundEngine, ...] = ()
    other_users: frozenset[str] = frozenset()
    own_user: str = ""


def find(known: Set[psutil.Process] = frozenset()) -> Search:
    """Search the processes of this machine for engines; may block.

    Args:
        known: the first processes of engines that are already known: the search skips them.

    Raises:
        OSError: The processes cannot be listed.
    """
    engines, others = [], set()
    for process, launch in _launches().items():
        if process in known:
            continue
        try:
            permitted = os.geteuid() in (0, process.uids().effective)
            environment = process.environ() if permitted else {}
            started = process.create_time()
        except procfs.ERRORS:
            continue
        if not permitted:
            others.add(procfs.user_of(process))
        elif not environment and time.time() - started < _START_SECONDS:
            continue  # the environment is not set yet
        elif WORKER_MARK in environment:
            logger.debug("process %d is the engine of a worker: skipped", process.pid)
        else:
            engines.append(_found_engine(process, launch, environment))
    return Search(engines=tuple(engines), other_users=frozenset(others), own_user=procfs.own_user())


def engine_of(pid: int) -> FoundEngine:
    """Return the engine to which the process `pid` belongs; may block.

    The process may be one of the engine's processes, or one that started an engine (a shell, a
    container's first process). Any other process is treated as an engine of an unknown kind.

    Raises:
        SettingsError: The process does not exist, cannot be inspected, or has started several
            engines.
    """
    try:
        process = psutil.Process(pid)
        if not alive(process):
            raise psutil.NoSuchProcess(pid)
        launches = _launches()
        parents = [one for one in (process, *process.parents()) if one in launches]
    except OSError as error:
        raise SettingsError(f"--pid {pid}: cannot be inspected: {error.strerror}") from None
    except psutil.Error:
        raise SettingsError(
            f"--pid {pid}: this process does not exist; `dyno exporter` without --pid finds "
            "engines itself"
        ) from None
    engines = parents[:1] or [one for one in descendants(process) if one in launches]
    if len(engines) > 1:
        found = ", ".join(f"{one.pid} ({launches[one].engine.title})" for one in engines)
        raise SettingsError(
            f"--pid {pid}: this process has started several engines. Give the pid of one of these: "
            f"{found}"
        )
    if engines:
        return _found_engine(engines[0], launches[engines[0]], _environment(engines[0]))
    addresses = procfs.listening_addresses(process)
    return FoundEngine(
        process=process,
        description=procfs.describe(process),
        user=procfs.user_of(process),
        started_at=procfs.start_time(process),
        url=next((_url(host, port) for host, port in addresses), None),
        page_has_more=False,
    )


def is_essential(process: psutil.Process) -> bool:
    """Return whether the engine of this process ends when this process ends."""
    try:
        command = process.cmdline()
    except procfs.ERRORS:
        return False
    return any(engine.is_process(command) for engine in kinds.ENGINES.values())


def files_of(members: Iterable[psutil.Process]) -> FoundFiles:
    """Return the multiprocess files that the processes of an engine map or have open."""
    directories: dict[FileId, str] = {}
    # For each mount namespace: the prefix of its first process, which lives longest.
    prefixes: dict[str, str] = {}
    denied = []
    for process in members:
        namespace = procfs.mount_namespace(process)
        prefix = prefixes.setdefault(namespace, procfs.root_prefix(process))
        try:
            found = {**procfs.open_files(process), **procfs.mapped_files(process)}
        except PermissionError:
            denied.append(process)
            continue
        except OSError:  # the process has just ended
            continue
        for path in {prefix + str(PurePath(path).parent) for path in found.values()}:
            with suppress(OSError):
                directories.setdefault(procfs.file_id(path), path)
    return FoundFiles(directories=tuple(sorted(directories.values())), denied=tuple(denied))


def _launches() -> Mapping[psutil.Process, _Launch]:
    """Return the first process of each engine.

    A process that starts an engine (sudo, a container's first process) may have the engine's
    command line as a part of its own. So an ancestor of a process that looks like an engine is not
    the engine, except when both have the same command line: then the child is a fork of the engine.
    """
    commands: dict[psutil.Process, list[str]] = {}
    launches: dict[psutil.Process, _Launch] = {}
    for process in psutil.process_iter():
        with suppress(*procfs.ERRORS):
            command = process.cmdline()
            for engine in kinds.ENGINES.values():
                flags = engine.launch_arguments(command)
                if flags is not None:
                    commands[process], launches[process] = command, _Launch(engine, flags)
                    break
    for process, command in commands.items():
        with suppress(*procfs.ERRORS):
            parents = process.parents()
            if parents and commands.get(parents[0]) == command:
                launches.pop(process, None)
            else:
                for outer in parents:
                    launches.pop(outer, None)
    return launches


def _found_engine(
    process: psutil.Process, launch: _Launch, environment: Mapping[str, str]
) -> FoundEngine:
    engine = launch.engine
    facts = engine.command_facts(
        launch.flags, environment=environment, directory=Path(f"/proc/{process.pid}/cwd")
    )
    port = facts.port
    ports = [port for _, port in procfs.listening_addresses(process)]
    if ports and port not in ports:  # a file or a default of the engine sets another port
        port = ports[0]
    reachable = procfs.shares_network(process)
    return FoundEngine(
        process=process,
        description=f"{process.pid} ({engine.title})",
        user=procfs.user_of(process),
        started_at=procfs.start_time(process),
        kind=engine.name,
        model=facts.model,
        port=port,
        url=_url(facts.host, port) if reachable else None,
        page_has_more=facts.page_has_more,
        client_labels=facts.client_labels,
    )


def _url(host: str, port: int) -> str:
    host = _ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except procfs.ERRORS:
        return {}
