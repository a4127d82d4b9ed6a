"""`dyno frontend`, `python -m dynamometer.frontend`: a frontend's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dynamometer import arguments, logs, names, settings
from dynamometer.frontend.app import FrontendOptions, serve
from dynamometer.frontend.routing import RouterMode
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.process import event_loop
from dynamometer.variables import DEFAULT_HTTP_PORT, LOOPBACK

_DESCRIPTION = """\
Serve all workers of this machine at one OpenAI-compatible address: /v1/chat/completions,
/v1/completions, /v1/models and the engine's other inference routes; /metrics and /health.
Workers may come before it or after it, and go.
"""

_EPILOG = """\
examples:
  dyno frontend
  dyno frontend --http-port 9000 --router-mode least-loaded

DYN_LOG=debug says more, DYN_LOGGING_JSONL=1 says it in JSON lines.
DYN_METRICS_PREFIX replaces dynamo_frontend in the names of its metrics. Where the buckets of its
histograms lie (seconds, tokens): DYN_METRICS_REQUEST_DURATION_MIN, _MAX and _COUNT, and the same
with TTFT, ITL, INPUT_SEQUENCE and OUTPUT_SEQUENCE in place of REQUEST_DURATION.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The frontend's flags.

    Args:
        program: how the command was called, for its help.
    """
    result = arguments.parser(program, _DESCRIPTION, _EPILOG)
    result.add_argument(
        "--http-host", help=f"address to listen on (DYN_HTTP_HOST; default: {LOOPBACK})"
    )
    result.add_argument(
        "--http-port",
        type=arguments.checked(settings.port),
        help=f"port to listen on; 0: any free port (DYN_HTTP_PORT; default: {DEFAULT_HTTP_PORT})",
    )
    result.add_argument(
        "--namespace",
        type=arguments.checked(settings.name),
        help="serve the workers of this namespace alone (DYN_NAMESPACE; all)",
    )
    result.add_argument(
        "--router-mode",
        type=str,
        choices=[str(mode) for mode in RouterMode],
        default=str(RouterMode.ROUND_ROBIN),
        help="how a request's worker is chosen; least-loaded: fewest requests, those in flight "
        "from here, and others' that its engine reports each second (default: round-robin)",
    )
    result.add_argument(
        "--drain-timeout",
        type=arguments.checked(settings.seconds),
        default=30.0,
        metavar="SECONDS",
        help="how long requests in flight may go on after Ctrl-C or SIGTERM (default: 30)",
    )
    arguments.add_max_body_size(result)
    arguments.add_discovery(result)
    return result


def main(argv: Sequence[str], program: str = "dyno frontend") -> int:
    """Run a frontend until it is asked to end; the exit code.

    Raises:
        DynamometerError: with the message for the user.
    """
    own = parser(program).parse_args(list(argv))
    environment = settings.read()
    logs.set_up("frontend", level=environment.log_level, as_json=environment.log_json)
    options = FrontendOptions(
        host=own.http_host or environment.http_host,
        port=environment.http_port if own.http_port is None else own.http_port,
        namespace=own.namespace or environment.namespace,
        router_mode=RouterMode(own.router_mode),
        max_body_size=own.max_body_size,
        drain_timeout=own.drain_timeout,
        discovery_directory=own.discovery or environment.discovery_directory,
        metrics_prefix=environment.metrics_prefix or names.name_prefix.FRONTEND,
        buckets=FrontendBuckets.of(environment.bucket_ranges),
    )
    event_loop.run(serve(options))
    return 0
