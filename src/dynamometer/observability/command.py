"""The command line of `dyno observe`."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from dynamometer import arguments, logs, settings
from dynamometer.errors import DirectoryError, ObserveError
from dynamometer.http import addresses
from dynamometer.observability import configuration, written_files
from dynamometer.observability.app import Programs, serve
from dynamometer.observability.configuration import ADDRESSES_FILE, MARK, Targets
from dynamometer.observability.programs import (
    DEFAULT_GRAFANA_PORT,
    DEFAULT_PROMETHEUS_PORT,
    DEFAULT_RETENTION_BYTES,
    DEFAULT_RETENTION_DAYS,
    Program,
    find_grafana,
    find_prometheus,
)
from dynamometer.process import event_loop, private_directories
from dynamometer.process.locked_directories import is_locked, locked
from dynamometer.variables import DEFAULT_OPS_PORT, LOOPBACK

logger = logging.getLogger(__name__)

_DIRECTORY: Final = Path(".observe")
_SD_URL: Final = f"http://{LOOPBACK}:{DEFAULT_OPS_PORT}/sd"
# In seconds. A rate over a minute needs two scrapes.
_LONGEST_INTERVAL: Final = 30
_LEAST_RETENTION_BYTES: Final = 100 * 10**6

_DESCRIPTION = """\
Start Prometheus and Grafana for the frontend and the workers of this machine: with their targets,
rules, alerts and dashboards. A frontend lists the targets, so workers may start and end at any
time. Both listen on 127.0.0.1 only; Grafana needs no login, and its dashboards are read-only.
"""

_EPILOG = f"""\
examples:
  dyno observe                                     # beside dyno frontend
  dyno observe --exporter 127.0.0.1:8081           # beside dyno exporter, without a frontend
  dyno observe --sd-url http://127.0.0.1:9002/sd   # the frontend has another --ops-port
  dyno observe --write ./monitoring                # for a Prometheus or Grafana that you have

Prometheus and Grafana must be installed; without one of them, the other runs alone. The
configuration, the logs and the data are in {_DIRECTORY} of the current directory (--directory);
remove that directory to start without history. From a laptop:
  ssh -L 9090:127.0.0.1:9090 -L 3000:127.0.0.1:3000 HOST
docs/observability.md has the rest.

{arguments.EPILOG}"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the command's flags.

    Args:
        program: the name of the command in its help.
    """
    result = arguments.parser(program, _DESCRIPTION, _EPILOG)
    place = result.add_mutually_exclusive_group()
    place.add_argument(
        "--directory",
        type=Path,
        default=_DIRECTORY,
        metavar="DIR",
        help="directory of the configuration, the logs and the data; one dyno observe at a time "
        f"(default: {_DIRECTORY})",
    )
    place.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="only write the configuration, rules and dashboards into this directory, and start "
        "nothing. Files that dyno observe wrote there before are replaced; others never",
    )
    targets = result.add_argument_group("targets")
    targets.add_argument(
        "--sd-url",
        type=arguments.checked(settings.http_url),
        metavar="URL",
        help=f"the frontend's list of all pages (default: {_SD_URL}; with --exporter: none)",
    )
    targets.add_argument(
        "--exporter",
        type=arguments.checked(settings.address),
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="the page of a dyno exporter that no frontend lists; repeat the flag for several",
    )
    targets.add_argument(
        "--gpu-exporter",
        type=arguments.checked(settings.address),
        metavar="HOST:PORT",
        help="NVIDIA's dcgm-exporter, for the GPU dashboard (default: none)",
    )
    targets.add_argument(
        "--scrape-interval",
        type=arguments.checked(_interval),
        default=5,
        metavar="SECONDS",
        help=f"time between two scrapes of a page, at most {_LONGEST_INTERVAL} (default: 5)",
    )
    result.add_argument(
        "--prometheus-port",
        type=arguments.checked(settings.port),
        metavar="PORT",
        help=f"port of Prometheus (default: {DEFAULT_PROMETHEUS_PORT}, or any free port if that "
        "one is in use)",
    )
    result.add_argument(
        "--grafana-port",
        type=arguments.checked(settings.port),
        metavar="PORT",
        help=f"port of Grafana (default: {DEFAULT_GRAFANA_PORT}, or any free port if that one is "
        "in use)",
    )
    result.add_argument(
        "--grafana-home",
        type=Path,
        metavar="DIR",
        help="Grafana's own directory, with conf/defaults.ini (default: /usr/share/grafana, or the "
        "directory of an unpacked archive)",
    )
    result.add_argument(
        "--prometheus-url",
        type=arguments.checked(settings.http_url),
        metavar="URL",
        help="with --write: address of Prometheus in Grafana's data source "
        f"(default: http://{LOOPBACK}:{DEFAULT_PROMETHEUS_PORT})",
    )
    result.add_argument(
        "--retention-days",
        type=arguments.checked(settings.rate),
        default=DEFAULT_RETENTION_DAYS,
        metavar="DAYS",
        help="age at which Prometheus removes data (default: 7)",
    )
    result.add_argument(
        "--retention-size",
        type=arguments.checked(_retention_size),
        default=DEFAULT_RETENTION_BYTES,
        metavar="BYTES",
        help="size from which Prometheus removes its oldest data, such as 500MB; at least 100MB "
        "(default: 2GB)",
    )
    return result


def _interval(value: str) -> int:
    number = settings.count(value)
    if not 1 <= number <= _LONGEST_INTERVAL:
        raise ValueError(f"must be 1 to {_LONGEST_INTERVAL}: rules need two scrapes in a minute")
    return number


def _retention_size(value: str) -> int:
    number = settings.size(value)
    if number < _LEAST_RETENTION_BYTES:
        raise ValueError("must be at least 100MB: Prometheus' newest data alone needs that much")
    return number


def main(argv: Sequence[str], program: str = "dyno observe") -> int:
    """Run Prometheus and Grafana until a signal ends them, and return the exit code.

    Raises:
        DynamometerError: The message is for the user.
    """
    own_parser = parser(program)
    own = own_parser.parse_args(list(argv))
    if own.prometheus_url and not own.write:
        own_parser.error("--prometheus-url is for --write: without it, this command's own is used")
    environment = settings.read()
    logs.set_up("observe", level=environment.log_level, as_json=environment.log_json)
    targets = Targets(
        sd_url=own.sd_url or ("" if own.exporter else _SD_URL),
        exporters=own.exporter,
        gpu_exporter=own.gpu_exporter or "",
        interval=f"{own.scrape_interval}s",
    )
    private_directories.require_current()
    if own.write:
        port = own.prometheus_port or DEFAULT_PROMETHEUS_PORT
        url = own.prometheus_url or f"http://{LOOPBACK}:{port}"
        directory = own.write.absolute()
        if is_locked(directory):
            raise _in_use(directory)
        _write(directory, targets, url)
        return 0
    directory = own.directory.absolute()
    try:
        with locked(directory, wait=False):
            _run(own, directory, targets)
    except BlockingIOError:
        raise _in_use(directory) from None
    return 0


def _in_use(directory: Path) -> DirectoryError:
    """Return the error for a directory that a running dyno observe uses, with its addresses."""
    lines: Sequence[str] = ()
    with contextlib.suppress(OSError):
        content = (directory / ADDRESSES_FILE).read_text(encoding="utf-8", errors="replace")
        lines = content.removeprefix(MARK).splitlines()
    where = f" ({', '.join(lines)})" if lines else ""
    return DirectoryError(
        f"another dyno observe uses {directory}{where}: end it first, or choose another directory"
    )


def _run(own: argparse.Namespace, directory: Path, targets: Targets) -> None:
    """Write the files, and run what is installed."""
    written_files.check_data(directory)
    prometheus_port = _choose_port("Prometheus", own.prometheus_port, DEFAULT_PROMETHEUS_PORT)
    grafana_port = _choose_port("Grafana", own.grafana_port, DEFAULT_GRAFANA_PORT)
    _write(directory, targets, f"http://{LOOPBACK}:{prometheus_port}")
    missing: list[ObserveError] = []
    programs = Programs(
        prometheus=_if_installed(
            missing,
            lambda: find_prometheus(
                directory,
                prometheus_port,
                retention_days=own.retention_days,
                retention_size=own.retention_size,
            ),
        ),
        grafana=_if_installed(
            missing, lambda: find_grafana(directory, grafana_port, home=own.grafana_home)
        ),
        targets=targets,
    )
    if len(missing) == 2:
        raise ObserveError("; ".join(map(str, missing)))
    for error in missing:
        logger.warning("%s", error)
    found = "".join(
        f"{program.title} at {program.url}\n"
        for program in filter(None, (programs.prometheus, programs.grafana))
    )
    written_files.write(directory, {ADDRESSES_FILE: (MARK + found).encode()})
    event_loop.run(serve(programs), use_uvloop=False)


def _write(directory: Path, targets: Targets, prometheus_url: str) -> None:
    files = configuration.files(directory, targets, prometheus_url=prometheus_url)
    written_files.write(directory, files)
    logger.info("wrote configuration, rules and dashboards into %s", directory)


def _choose_port(title: str, port: int | None, default: int) -> int:
    """Return a port that is free now: the requested one, or else the default if it is free.

    Raises:
        AddressError: The requested port is in use.
    """
    listener = addresses.listen_optionally(
        LOOPBACK,
        port,
        default=default,
        served=f"the pages of {title}",
        settings=("", f"--{title.lower()}-port"),
    )
    assert listener is not None, "no port is negative"
    with listener:
        number: int = listener.getsockname()[1]
        return number


def _if_installed(missing: list[ObserveError], program: Callable[[], Program]) -> Program | None:
    try:
        return program()
    except ObserveError as error:
        missing.append(error)
        return None
