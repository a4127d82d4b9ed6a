"""`dyno exporter`: its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dynamometer import arguments, logs, settings
from dynamometer.engines import kinds
from dynamometer.exporter import engine_headers, targets
from dynamometer.exporter.app import ExporterOptions, serve
from dynamometer.exporter.options import EngineOptions
from dynamometer.metrics.http_source import DEADLINE_SECONDS
from dynamometer.multiprocess.directory import DEFAULT_MAX_SERIES
from dynamometer.names import label_value
from dynamometer.process import event_loop
from dynamometer.variables import DEFAULT_NAMESPACE

_ENGINE = kinds.DEFAULT
_DESCRIPTION = f"""\
The page alone, beside engines that somebody else started: /metrics with the engine's own
families and the runtime's labels, /health and /live. Nothing of an engine is changed, and
nothing is written where it writes.

Without an option it finds the {_ENGINE.title} engines of this user (for root: of all users), by
their processes, ports and files, and finds them again when they are started again.
"""

_EPILOG = """\
examples:
  dyno exporter
  dyno exporter --engine-url http://127.0.0.1:30000
  dyno exporter --multiproc-dir /metrics --engine-url http://127.0.0.1:30000   # a sidecar
  dyno exporter --engine-url https://10.0.0.7/metrics --engine-header-file key  # needs a key
  dyno exporter --multiproc-dir a=/run/a --multiproc-dir b=/run/b              # two engines
  dyno exporter --pid 4711 --prefix vllm: --prefix lmcache:

/health is 200 when all engines are ready, else 503 with the reasons. Where the files of an
engine can be read they are, at no cost to it; its own page is fetched in the background where
they cannot, or where it has more.
DYN_SYSTEM_HEALTH_PATH and its like say how /health answers: docs/configuration.md.
DYN_LOG=debug says more, DYN_LOGGING_JSONL=1 says it in JSON lines.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The exporter's flags.

    Args:
        program: how the command was called, for its help.
    """
    result = arguments.parser(program, _DESCRIPTION, _EPILOG)
    engine = result.add_argument_group(
        "which engines (each flag may be given several times; NAME=... where there are several)"
    )
    engine.add_argument(
        "--multiproc-dir",
        action="append",
        default=[],
        type=targets.named,
        metavar="[NAME=]DIR",
        help="where an engine's processes write prometheus_client's multiprocess files",
    )
    engine.add_argument(
        "--engine-url",
        action="append",
        default=[],
        type=targets.named,
        metavar="[NAME=]URL",
        help="where an engine answers: for its health, and its own /metrics where it is needed; "
        "with a path: the URL of the page itself",
    )
    engine.add_argument(
        "--pid",
        action="append",
        default=[],
        type=targets.named,
        metavar="[NAME=]PID",
        help="a process of an engine: its files and its port are looked for",
    )
    engine.add_argument(
        "--health-path",
        default=_ENGINE.probe_path,
        metavar="PATH",
        help=f"what is asked for an engine's health (default: {_ENGINE.probe_path}; '': only its "
        "port is looked at)",
    )
    engine.add_argument(
        "--health-interval",
        type=arguments.checked(settings.seconds),
        default=10.0,
        metavar="SECONDS",
        help="how often; 0: only until it is ready. Processes and ports are looked at each second "
        "in any case (default: 10)",
    )
    engine.add_argument(
        "--health-deadline",
        type=arguments.checked(settings.rate),
        default=10.0,
        metavar="SECONDS",
        help="how long an answer may take (default: 10)",
    )
    engine.add_argument(
        "--engine-timeout",
        type=arguments.checked(settings.rate),
        default=DEADLINE_SECONDS,
        metavar="SECONDS",
        help="how long an engine's own page may take; it is fetched in the background "
        f"(default: {DEADLINE_SECONDS:g})",
    )
    engine.add_argument(
        engine_headers.FLAG,
        action="append",
        default=[],
        metavar="'[NAME=]HEADER: VALUE'",
        help="a header of each request to the engines that --engine-url names, or to the one of "
        "this name, such as 'Authorization: Bearer KEY'. Never logged, but visible among the "
        f"processes: keep keys in a file or in {engine_headers.VARIABLE} (one a line)",
    )
    engine.add_argument(
        engine_headers.FILE_FLAG,
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="such headers, one a line; read at the start",
    )
    engine.add_argument(
        "--forget-after",
        type=arguments.checked(settings.seconds),
        default=3600.0,
        metavar="SECONDS",
        help="an engine that was found without being named, and has ended so long ago, leaves "
        "/health and the page with its totals; one that never served, at once (default: 3600)",
    )
    page = result.add_argument_group("the page")
    page.add_argument(
        "--prefix",
        action="append",
        metavar="PREFIX",
        help="families whose name begins so are shown; may be given several times, '': all "
        f"(default: {', '.join(_ENGINE.metric_prefixes)})",
    )
    arguments.add_max_series(page, DEFAULT_MAX_SERIES)
    arguments.add_system_address(page)
    labels = result.add_argument_group("labels of the engines' series")
    labels.add_argument(
        "--model", default="", help="the label model (default: the name that the engine serves)"
    )
    arguments.add_runtime_labels(labels, component="backend")
    labels.add_argument(
        "--no-runtime-labels",
        action="store_true",
        help="leave dynamo_namespace, dynamo_component, dynamo_endpoint and model off, and "
        "worker_id where only one engine is named, without a NAME",
    )
    arguments.add_discovery(labels)
    return result


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags; an error shows no word that may be a part of a header."""
    own, unknown = parser.parse_known_args(list(argv))
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if flags or (unknown and not own.engine_header):
        parser.error(f"unrecognized arguments: {' '.join(flags or unknown)}")
    if unknown:
        parser.error(f"{engine_headers.FLAG}: quote the header, as in 'Name: value'")
    return own


def main(argv: Sequence[str], program: str = "dyno exporter") -> int:
    """Run an exporter until it is asked to end; the exit code.

    Raises:
        DynamometerError: with the message for the user.
    """
    own = _parsed(parser(program), argv)
    environment = settings.read()
    logs.set_up("exporter", level=environment.log_level, as_json=environment.log_json)
    options = ExporterOptions(
        given=targets.Given(pids=own.pid, directories=own.multiproc_dir, urls=own.engine_url),
        engine=EngineOptions(
            model=label_value(own.model),
            prefixes=tuple(own.prefix or _ENGINE.metric_prefixes),
            max_series=own.max_series,
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
        forget_after=own.forget_after,
        discovery_directory=own.discovery or environment.discovery_directory,
    )
    event_loop.run(serve(options), small=True)
    return 0
