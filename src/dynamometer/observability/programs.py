"""Prometheus and Grafana as child processes: found, started, watched and ended.

Each leads a session of its own, so that Ctrl-C reaches `dyno observe` only, which ends them in
order. The kernel kills them when `dyno observe` is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from dynamometer.errors import ObserveError
from dynamometer.observability.configuration import (
    DASHBOARDS,
    GRAFANA_DATA,
    GRAFANA_FILE,
    GRAFANA_LOG,
    HOME_DASHBOARD,
    PROMETHEUS_DATA,
    PROMETHEUS_FILE,
    PROMETHEUS_LOG,
    PROVISIONING,
)
from dynamometer.process import tasks
from dynamometer.process.parent_death import die_with_parent
from dynamometer.variables import LOOPBACK

DEFAULT_PROMETHEUS_PORT: Final = 9090
DEFAULT_GRAFANA_PORT: Final = 3000
DEFAULT_RETENTION_DAYS: Final = 7.0
DEFAULT_RETENTION_BYTES: Final = 2 * 10**9
# By default, any web page in a browser may read the answers; an origin never has this value.
NO_FOREIGN_PAGES: Final = "--web.cors.origin=none"
# Prometheus writes its newest samples to disk after SIGTERM.
END_SECONDS: Final = 20.0
_LOG_LINES: Final = 10
_LOG_BYTES: Final = 32768
# Debian's package has grafana-server there, and the PATH of a user may omit the directories.
_SYSTEM_DIRECTORIES: Final = ("/usr/sbin", "/usr/local/sbin")
_APT: Final = Path("/usr/bin/apt-get")
_GRAFANA_HOME: Final = Path("/usr/share/grafana")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program to start.

    Attributes:
        title: the name for messages.
        command: the command line.
        log: the file for the output, replaced at each start.
        url: the address at which the program answers.
        health_path: the route that returns 200 once the program is ready.
        variables: changes of the environment; None removes a variable.
    """

    title: str
    command: Sequence[str]
    log: Path
    url: str
    health_path: str
    variables: Mapping[str, str | None] = field(default_factory=dict)


def find_prometheus(
    directory: Path,
    port: int,
    *,
    retention_days: float = DEFAULT_RETENTION_DAYS,
    retention_size: int = DEFAULT_RETENTION_BYTES,
) -> Program:
    """Return Prometheus with its configuration and its data in `directory`.

    Args:
        directory: the absolute path of the written files.
        port: the port.
        retention_days: the age at which data is removed.
        retention_size: the size in bytes from which the oldest data is removed.

    Raises:
        ObserveError: Prometheus is not installed; the message says what to install.
    """
    executable = shutil.which("prometheus")
    if executable is None:
        how = "run apt-get install prometheus" if _APT.exists() else "see prometheus.io/download"
        raise ObserveError(f"prometheus is not installed (or not in PATH): {how}")
    return Program(
        title="Prometheus",
        command=(
            executable,
            f"--config.file={directory / PROMETHEUS_FILE}",
            f"--storage.tsdb.path={directory / PROMETHEUS_DATA}",
            # Prometheus takes 0 s as no limit.
            f"--storage.tsdb.retention.time={math.ceil(retention_days * 86400)}s",
            f"--storage.tsdb.retention.size={retention_size}B",
            f"--web.listen-address={LOOPBACK}:{port}",
            NO_FOREIGN_PAGES,
        ),
        log=directory / PROMETHEUS_LOG,
        url=f"http://{LOOPBACK}:{port}",
        health_path="/-/ready",
    )


def find_grafana(directory: Path, port: int, *, home: Path | None) -> Program:
    """Return Grafana with its configuration and its data in `directory`.

    Args:
        directory: the absolute path of the written files.
        port: the port.
        home: Grafana's own directory, with `conf/defaults.ini`; None to look for it.

    Raises:
        ObserveError: Grafana is not installed; the message says what to install.
    """
    command = _find_executable()
    if command is None:
        raise ObserveError(
            "grafana-server is not installed (or not in PATH): install the package grafana from "
            "Grafana's own repository, https://grafana.com/docs/grafana/latest/setup-grafana"
        )
    home = home or _find_home(Path(command[0]))
    data = directory / GRAFANA_DATA
    settings = {
        "paths_data": data,
        "paths_logs": data / "log",
        "paths_plugins": data / "plugins",
        "paths_provisioning": directory / PROVISIONING,
        "server_http_addr": LOOPBACK,
        "server_http_port": port,
        "dashboards_default_home_dashboard_path": directory / DASHBOARDS / f"{HOME_DASHBOARD}.json",
    }
    # The variables of a user must not change what is written: an address, a password.
    of_user = (name for name in os.environ if name.startswith("GF_"))
    return Program(
        title="Grafana",
        command=(
            *command,
            *((f"--homepath={home}",) if home else ()),
            f"--config={directory / GRAFANA_FILE}",
        ),
        log=directory / GRAFANA_LOG,
        url=f"http://{LOOPBACK}:{port}",
        health_path="/api/health",
        variables=dict.fromkeys(of_user)
        | {f"GF_{name.upper()}": str(value) for name, value in settings.items()},
    )


def _find_executable() -> Sequence[str] | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_DIRECTORIES])
    # Later releases of Grafana have the second form only.
    for name, *words in (("grafana-server",), ("grafana", "server")):
        if executable := shutil.which(name, path=path):
            return (executable, *words)
    return None


def _find_home(executable: Path) -> Path | None:
    """Return Grafana's own directory: the package's, or that of an unpacked archive."""
    for home in (executable.resolve().parent.parent, _GRAFANA_HOME):
        if (home / "conf/defaults.ini").exists():
            return home
    return None


@asynccontextmanager
async def started(
    program: Program, *, immediate: asyncio.Event
) -> AsyncIterator[asyncio.Task[None]]:
    """Run `program` while the context is open.

    Args:
        program: the program.
        immediate: set to kill the program at the end, without waiting for its own end.

    Yields:
        A task that raises `ObserveError`, with the end of the log, if the program ends.

    Raises:
        ObserveError: The log cannot be written, or the program cannot be executed.
    """
    variables = {**os.environ, **program.variables}
    with _new_log(program.log) as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *program.command,
                env={name: value for name, value in variables.items() if value is not None},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            raise ObserveError(f"cannot run {program.command[0]}: {error.strerror}") from None
    ended = asyncio.create_task(_report_end(program, process), name=program.title)
    try:
        yield ended
    finally:
        await tasks.end(ended)
        await _end(process, immediate)


def _new_log(path: Path) -> BinaryIO:
    """Replace the log, without following a symbolic link.

    Raises:
        ObserveError: The file cannot be replaced; the message names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path.open("xb")
    except OSError as error:
        raise ObserveError(f"cannot write {path}: {error.strerror}") from None


async def _report_end(program: Program, process: asyncio.subprocess.Process) -> None:
    code = await process.wait()
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = await asyncio.to_thread(_last_lines, program.log)
    raise ObserveError(
        "\n  ".join([f"{program.title} ended with {how}; the end of {program.log}:", *lines])
    )


def _last_lines(log: Path) -> list[str]:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES:] or ["(empty)"]
    return ["(not readable)"]


async def _end(process: asyncio.subprocess.Process, immediate: asyncio.Event) -> None:
    """End the process with SIGTERM, then its whole session with SIGKILL."""
    ended = asyncio.create_task(process.wait())
    try:
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            process.terminate()
            async with asyncio.timeout(END_SECONDS):
                await tasks.first_of(immediate, ended)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await ended
