"""The command line of a worker."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dynamometer import arguments, logs, settings
from dynamometer.engines.interface import StartableEngine
from dynamometer.exposition.label_bounds import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_VALUES,
    LabelLimits,
)
from dynamometer.metrics.page_limit import DEFAULT_MAX_PAGE_BYTES
from dynamometer.multiprocess.directory import DEFAULT_MAX_SERIES
from dynamometer.process import event_loop
from dynamometer.runtime import identity
from dynamometer.runtime.lifecycle import DEFAULT_POLICY
from dynamometer.variables import DEFAULT_NAMESPACE, LOOPBACK
from dynamometer.worker.app import serve
from dynamometer.worker.options import WorkerOptions

_EPILOG = """\
examples:
{examples}
Variables configure /health, for example DYN_SYSTEM_HEALTH_PATH: see docs/configuration.md.
{end}"""


def parser(program: str, engines: Sequence[StartableEngine]) -> argparse.ArgumentParser:
    """Return the parser of the worker's own flags; the worker gives all other flags to its engine.

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
    engine.add_argument(
        "--transfer-host",
        help="address of this machine at which the engine transfers KV caches, with "
        "--disaggregation-mode prefill or decode; a prefill engine listens for requests there, too "
        f"(DYN_TRANSFER_HOST; default: {LOOPBACK}, which only engines on this machine reach)",
    )
    arguments.add_drain_delay(engine, "new requests are still accepted")
    arguments.add_drain_timeout(engine)
    engine.add_argument(
        "--hang-timeout",
        type=arguments.checked(settings.positive_seconds),
        default=60.0,
        metavar="SECONDS",
        help="time after which an engine that was asked and does not answer is unresponsive "
        "(at least 4; default: 60)",
    )
    engine.add_argument(
        "--restart-limit",
        type=arguments.checked(settings.count),
        default=DEFAULT_POLICY.limit,
        metavar="COUNT",
        help="number of restarts of an engine that is never ready for ten minutes between two of "
        f"them; 0: the worker ends with its engine (default: {DEFAULT_POLICY.limit})",
    )
    engine.add_argument(
        "--hang-restart",
        type=arguments.checked(settings.seconds),
        default=0.0,
        metavar="SECONDS",
        help="end and restart an engine that has been unresponsive for so long (default: 0: never)",
    )
    address = result.add_argument_group("the worker's own OpenAI-compatible address")
    address.add_argument("--host", default=LOOPBACK, help=f"default: {LOOPBACK}")
    address.add_argument(
        "--port",
        type=arguments.checked(settings.port),
        default=0,
        help="default: any free port; the engine listens on another port, on loopback only",
    )
    arguments.add_max_body_size(address)
    arguments.add_allow_origin(address)
    page = result.add_argument_group("the page /metrics")
    arguments.add_system_address(page)
    page.add_argument(
        "--no-runtime-labels",
        action="store_true",
        help="do not add the labels dynamo_namespace, dynamo_component, dynamo_endpoint, model and "
        "worker_id to the engine's series",
    )
    arguments.add_max_series(page, DEFAULT_MAX_SERIES)
    arguments.add_label_limits(page, values=DEFAULT_MAX_VALUES, value_bytes=DEFAULT_MAX_BYTES)
    arguments.add_max_page_bytes(page, DEFAULT_MAX_PAGE_BYTES)
    discovery = result.add_argument_group("labels and discovery")
    arguments.add_runtime_labels(discovery, component=default.help.component)
    discovery.add_argument(
        "--worker-id",
        type=arguments.checked(identity.parse_id),
        metavar="ID",
        help="stable number of this worker, so that its series keep their label worker_id after a "
        "restart: a number from 1 to 2^64-1 (decimal, or hexadecimal with 0x or 16 digits), or a "
        "name such as a pod's, which is hashed (default: a random number)",
    )
    arguments.add_discovery(discovery)
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
    flags, engine_flags = parser(program, engines).parse_known_args(list(argv))
    environment = settings.read()
    logs.set_up("worker", level=environment.log_level, as_json=environment.log_json)
    options = WorkerOptions(
        arguments=engine_flags,
        engine_python=flags.engine_python,
        transfer_host=flags.transfer_host or environment.transfer_host,
        host=flags.host,
        port=flags.port,
        system_host=flags.system_host or environment.system_host,
        system_port=environment.system_port if flags.system_port is None else flags.system_port,
        health=environment.health,
        health_check=environment.health_check,
        hang_timeout=flags.hang_timeout,
        namespace=flags.namespace or environment.namespace or DEFAULT_NAMESPACE,
        component=flags.component or "",
        endpoint=flags.endpoint,
        runtime_labels=not flags.no_runtime_labels,
        worker_id=flags.worker_id,
        drain_delay=flags.drain_delay,
        drain_timeout=flags.drain_timeout,
        restart_limit=flags.restart_limit,
        hang_restart=flags.hang_restart,
        max_body_size=flags.max_body_size,
        allowed_origins=flags.allow_origin,
        max_series=flags.max_series,
        label_limits=LabelLimits(
            max_values=flags.max_label_values, max_bytes=flags.max_label_bytes
        ),
        max_page_bytes=flags.max_page_bytes,
        discovery_directory=flags.discovery or environment.discovery_directory,
    )
    chosen = next(engine for engine in engines if engine.name == flags.engine)
    event_loop.run(serve(options, chosen), adopts=True)
    return 0
