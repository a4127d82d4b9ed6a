"""The command line of `dyno exporter`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dynamometer import arguments, logs, settings
from dynamometer.engines import kinds
from dynamometer.exporter import engine_headers, targets
from dynamometer.exporter.app import ExporterOptions, serve
from dynamometer.exposition.label_bounds import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_VALUES,
    LabelLimits,
)
from dynamometer.metrics.http_source import FETCH_DEADLINE_SECONDS
from dynamometer.metrics.page_limit import DEFAULT_MAX_PAGE_BYTES
from dynamometer.multiprocess.directory import DEFAULT_MAX_SERIES
from dynamometer.names import label_value
from dynamometer.process import event_loop
from dynamometer.variables import DEFAULT_NAMESPACE

_ENGINE = kinds.DEFAULT
_DESCRIPTION = f"""\
Serve /metrics, /health and /live beside engines that are already running. /metrics contains the
engines' own families with the runtime's labels. The exporter changes neither an engine nor its
files.

Without a flag that selects engines, the exporter finds the {_ENGINE.title} engines of this user
(for root: of all users) by their processes, ports and files, also after a restart.
"""

_EPILOG = f"""\
examples:
  dyno exporter
  dyno exporter --engine-url http://127.0.0.1:30000
  dyno exporter --multiproc-dir /metrics --engine-url http://127.0.0.1:30000   # a sidecar
  dyno exporter --engine-url https://10.0.0.7/metrics --engine-header-file key  # needs a key
  dyno exporter --multiproc-dir a=/run/a --multiproc-dir b=/run/b              # two engines
  dyno exporter --pid 4711 --prefix vllm: --prefix lmcache:

/health returns 200 when all engines are ready, else 503 with the reasons. The exporter reads an
engine's files, without any work for the engine. If it may not read the files, or if the engine's
own page has more families, it fetches that page in the background.
DYN_SYSTEM_HEALTH_PATH and similar variables configure /health: docs/configuration.md.
{arguments.EPILOG}"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the exporter's flags.

    Args:
        program: the name of the command in its help.
    """
    result = arguments.parser(program, _DESCRIPTION, _EPILOG)
    engine = result.add_argument_group(
        "selection of engines (repeat a flag for several engines, each with a NAME)"
    )
    engine.add_argument(
        "--multiproc-dir",
        action="append",
        default=[],
        type=targets.split_name,
        metavar="[NAME=]DIR",
        help="directory in which an engine's processes write prometheus_client's multiprocess "
        "files",
    )
    engine.add_argument(
        "--engine-url",
        action="append",
        default=[],
        type=targets.split_name,
        metavar="[NAME=]URL",
        help="address of an engine, for its health and its own /metrics; with a path: the URL of "
        "the metrics page itself",
    )
    engine.add_argument(
        "--pid",
        action="append",
        default=[],
        type=targets.split_name,
        metavar="[NAME=]PID",
        help=f"process of an engine, or the process that started the engine. If {_ENGINE.title} is "
        "not among these, the files of the process and of all processes that it started are read",
    )
    engine.add_argument(
        "--health-path",
        type=arguments.checked(settings.engine_route),
        default=_ENGINE.probe_path,
        metavar="PATH",
        help=f"route that shows an engine's health (default: {_ENGINE.probe_path}; '' checks only "
        "the port)",
    )
    engine.add_argument(
        "--health-interval",
        type=arguments.checked(settings.seconds),
        default=10.0,
        metavar="SECONDS",
        help="time between two requests to this route; 0 stops them when the engine is ready. "
        "Processes and ports are always checked every second (default: 10)",
    )
    engine.add_argument(
        "--health-deadline",
        type=arguments.checked(settings.rate),
        default=10.0,
        metavar="SECONDS",
        help="deadline of such a request (default: 10)",
    )
    engine.add_argument(
        "--engine-timeout",
        type=arguments.checked(settings.rate),
        default=FETCH_DEADLINE_SECONDS,
        metavar="SECONDS",
        help="deadline of a fetch of an engine's own page, in the background "
        f"(default: {FETCH_DEADLINE_SECONDS:g})",
    )
    engine.add_argument(
        engine_headers.FLAG,
        action="append",
        default=[],
        metavar="'[NAME=]HEADER: VALUE'",
        help="header of each request to the engines of --engine-url, or to the engine with this "
        "NAME, such as 'Authorization: Bearer KEY'. Never logged, but visible in the list of "
        f"processes: put keys in a file, or in {engine_headers.VARIABLE} (one header per line)",
    )
    engine.add_argument(
        engine_headers.FILE_FLAG,
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="file of such headers, one per line, read at the start",
    )
    engine.add_argument(
        "--forget-after",
        type=arguments.checked(settings.seconds),
        default=3600.0,
        metavar="SECONDS",
        help="time after which an engine that the exporter found, and that has ended, disappears "
        "from /health and, with its totals, from the page; an engine that was never ready "
        "disappears at once (default: 3600)",
    )
    page = result.add_argument_group("the page")
    page.add_argument(
        "--prefix",
        action="append",
        metavar="PREFIX",
        help="show the families whose name begins with PREFIX; repeat the flag for several "
        f"prefixes; '' shows all (default: {', '.join(_ENGINE.metric_prefixes)})",
    )
    arguments.add_max_series(page, DEFAULT_MAX_SERIES)
    arguments.add_label_limits(page, values=DEFAULT_MAX_VALUES, value_bytes=DEFAULT_MAX_BYTES)
    arguments.add_max_page_bytes(page, DEFAULT_MAX_PAGE_BYTES)
    arguments.add_system_address(page)
    arguments.add_drain_delay(page, "the page still answers")
    labels = result.add_argument_group("labels of the engines' series")
    labels.add_argument(
        "--model",
        default="",
        help="value of the label model (default: the name that the engine serves)",
    )
    arguments.add_runtime_labels(labels, component="backend")
    labels.add_argument(
        "--no-runtime-labels",
        action="store_true",
        help="omit dynamo_namespace, dynamo_component, dynamo_endpoint and model; with only one "
        "engine, selected without a NAME, also worker_id",
    )
    arguments.add_discovery(labels)
    return result


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags; an error shows no text that may be a part of a header."""
    own, unknown = parser.parse_known_args(list(argv))
    flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
    if flags or (unknown and not own.engine_header):
        parser.error(f"unrecognized arguments: {' '.join(flags or unknown)}")
    if unknown:
        parser.error(f"{engine_headers.FLAG}: quote the header, as in 'Name: value'")
    return own


def main(argv: Sequence[str], program: str = "dyno exporter") -> int:
    """Run an exporter until a signal asks the process to end; return the exit code.

    Raises:
        DynamometerError: The message is for the user.
    """
    own = _parse(parser(program), argv)
    environment = settings.read()
    logs.set_up("exporter", level=environment.log_level, as_json=environment.log_json)
    options = ExporterOptions(
        selection=targets.TargetFlags(
            pids=own.pid, directories=own.multiproc_dir, urls=own.engine_url
        ),
        engine=targets.EngineOptions(
            model=label_value(own.model),
            prefixes=tuple(own.prefix or _ENGINE.metric_prefixes),
            max_series=own.max_series,
            label_limits=LabelLimits(
                max_values=own.max_label_values, max_bytes=own.max_label_bytes
            ),
            health_path=own.health_path,
            health_interval=own.health_interval,
            health_deadline=own.health_deadline,
            page_deadline=own.engine_timeout,
        ),
        headers=engine_headers.read(
            environment.engine_headers, own.engine_header_file, own.engine_header
        ),
        system_host=own.system_host or environment.system_host,
        system_port=environment.system_port if own.system_port is None else own.system_port,
        health=environment.health,
        namespace=own.namespace or environment.namespace or DEFAULT_NAMESPACE,
        component=own.component or "backend",
        endpoint=own.endpoint,
        runtime_labels=not own.no_runtime_labels,
        max_page_bytes=own.max_page_bytes,
        forget_after=own.forget_after,
        drain_delay=own.drain_delay,
        discovery_directory=own.discovery or environment.discovery_directory,
    )
    event_loop.run(serve(options), use_uvloop=False)
    return 0
