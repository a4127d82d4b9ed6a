"""`dyno sglang`, `python -m dynamometer.sglang`: a worker's command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from dynamometer import arguments, logs, settings
from dynamometer.engines.interface import Engine
from dynamometer.engines.mocker import Mocker
from dynamometer.engines.sglang import SGLang
from dynamometer.multiprocess.directory import DEFAULT_MAX_SERIES
from dynamometer.process import event_loop
from dynamometer.worker.app import WorkerOptions, serve

ENGINES: Mapping[str, Engine] = {SGLang.name: SGLang(), Mocker.name: Mocker()}

_DESCRIPTION = """\
Start SGLang and serve it: requests at its own OpenAI-compatible address and through the
frontend; /metrics, /health and /live at the system port.

Every flag that is not listed here goes to SGLang as it is; `python -m sglang.launch_server
--help` lists those. --model, --served-model-name and --enable-metrics are SGLang's too:
without --enable-metrics the page has no sglang: families.
"""

_EPILOG = """\
examples:
  dyno sglang --model ./tiny --enable-metrics
  DYN_SYSTEM_PORT=9090 dyno sglang --model Qwen/Qwen3-8B --enable-metrics --tp-size 2
  dyno sglang --engine-python /opt/sglang/bin/python --model ./tiny --port 30000

DYN_SYSTEM_HEALTH_PATH and its like say how /health answers: docs/configuration.md.
DYN_LOG=debug says more, DYN_LOGGING_JSONL=1 says it in JSON lines.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The worker's own flags.

    Args:
        program: how the command was called, for its help.
    """
    result = arguments.parser(program, _DESCRIPTION, _EPILOG, usage="%(prog)s --model MODEL ...")
    engine = result.add_argument_group("the engine")
    engine.add_argument(
        "--engine",
        choices=sorted(ENGINES),
        default=SGLang.name,
        help="what to start: the real one, or a simulation of it (default: sglang)",
    )
    arguments.add_engine_python(engine)
    engine.add_argument(
        "--drain-timeout",
        type=arguments.checked(settings.seconds),
        default=30.0,
        metavar="SECONDS",
        help="how long requests in flight may go on after Ctrl-C or SIGTERM (default: 30)",
    )
    own = result.add_argument_group("the worker's own OpenAI-compatible address")
    own.add_argument("--host", default=settings.LOOPBACK, help="default: 127.0.0.1")
    own.add_argument(
        "--port",
        type=arguments.checked(settings.port),
        default=0,
        help="default: any free one; the engine itself gets a loopback port of its own",
    )
    arguments.add_max_body_size(own)
    page = result.add_argument_group("the page")
    arguments.add_system_address(page)
    page.add_argument(
        "--no-runtime-labels",
        action="store_true",
        help="leave dynamo_namespace, dynamo_component, dynamo_endpoint, model and worker_id "
        "off the engine's series",
    )
    arguments.add_max_series(page, DEFAULT_MAX_SERIES)
    place = result.add_argument_group("its place")
    arguments.add_place(place, component="backend; with --disaggregation-mode prefill: prefill")
    arguments.add_discovery(place)
    return result


def main(argv: Sequence[str], program: str = "dyno sglang") -> int:
    """Run a worker until it is asked to end; the exit code.

    Raises:
        DynamometerError: with the message for the user.
    """
    own, rest = parser(program).parse_known_args(list(argv))
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
        namespace=own.namespace or environment.namespace or "dynamo",
        component=own.component or "",
        endpoint=own.endpoint,
        runtime_labels=not own.no_runtime_labels,
        drain_timeout=own.drain_timeout,
        max_body_size=own.max_body_size,
        max_series=own.max_series,
        discovery_directory=own.discovery or environment.discovery_directory,
    )
    event_loop.run(serve(options, ENGINES[own.engine]))
    return 0
