"""The command line of a worker."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dynamometer import arguments, logs, settings
from dynamometer.engines.interface import StartableEngine
from dynamometer.multiprocess.directory import DEFAULT_MAX_SERIES
from dynamometer.process import event_loop
from dynamometer.variables import DEFAULT_NAMESPACE, LOOPBACK
from dynamometer.worker.app import WorkerOptions, serve

_EPILOG = """\
examples:
{examples}
Variables configure /health, for example DYN_SYSTEM_HEALTH_PATH: see docs/configuration.md.
{end}"""


def parser(program: str, engines: Sequence[StartableEngine]) -> argparse.ArgumentParser:
    """Return the parser of the worker's own flags; other flags are the engine's.

    Args:
        program: the name of the command, for its help.
        engines: the values of `--engine`, the default first.
    """
    default = engines[0]
    epilog = _EPILOG.format(examples=default.help.examples, end=arguments.EPILOG)
    result = arguments.parser(
        program, default.help.description, epilog, usage="%(prog)s --model MODEL ..."
    )
    engine = result.add_argument_group("the engine")
    engine.add_argument(
        "--engine",
        choices=sorted(engine.name for engine in engines),
        default=default.name,
        help=f"the engine to start: the real one or a simulated one (default: {default.name})",
    )
    arguments.add_engine_python(engine, default.title)
    arguments.add_drain_timeout(engine)
    own = result.add_argument_group("the worker's own OpenAI-compatible address")
    own.add_argument("--host", default=LOOPBACK, help=f"default: {LOOPBACK}")
    own.add_argument(
        "--port",
        type=arguments.checked(settings.port),
        default=0,
        help="default: any free port; the engine itself listens on another loopback port",
    )
    arguments.add_max_body_size(own)
    page = result.add_argument_group("the page")
    arguments.add_system_address(page)
    page.add_argument(
        "--no-runtime-labels",
        action="store_true",
        help="do not add the labels dynamo_namespace, dynamo_component, dynamo_endpoint, model and "
        "worker_id to the engine's series",
    )
    arguments.add_max_series(page, DEFAULT_MAX_SERIES)
    place = result.add_argument_group("labels and discovery")
    arguments.add_runtime_labels(place, component=default.help.component)
    arguments.add_discovery(place)
    return result


def main(argv: Sequence[str], program: str, engines: Sequence[StartableEngine]) -> int:
    """Run a worker until a signal ends it, and return the exit code.

    Args:
        argv: the flags of the worker and of its engine.
        program: the name of the command, for its help.
        engines: the values of `--engine`, the default first.

    Raises:
        DynamometerError: The worker cannot run; the message is for the user.
    """
    own, rest = parser(program, engines).parse_known_args(list(argv))
    environment = settings.read()
    logs.set_up("worker", level=environment.log_level, as_json=environment.log_json)
    options = WorkerOptions(
        arguments=rest,
        engine_python=own.engine_python,
        host=own.host,
        port=own.port,
        system_host=own.system_host or environment.system_host,
        system_port=environment.system_port if own.system_port is None else own.system_port,
        health=environment.health,
        namespace=own.namespace or environment.namespace or DEFAULT_NAMESPACE,
        component=own.component or "",
        endpoint=own.endpoint,
        runtime_labels=not own.no_runtime_labels,
        drain_timeout=own.drain_timeout,
        max_body_size=own.max_body_size,
        max_series=own.max_series,
        discovery_directory=own.discovery or environment.discovery_directory,
    )
    chosen = next(engine for engine in engines if engine.name == own.engine)
    event_loop.run(serve(options, chosen))
    return 0
