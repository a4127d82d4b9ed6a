"""The command line of a frontend: `dyno frontend` and `python -m dynamometer.frontend`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dynamometer import arguments, logs, names, settings
from dynamometer.frontend.app import FrontendOptions, serve, serve_member
from dynamometer.frontend.member import Membership
from dynamometer.frontend.process_group import clear_leftovers, serve_group
from dynamometer.frontend.routing import RouterMode
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.metrics.page_limit import DEFAULT_MAX_PAGE_BYTES
from dynamometer.process import cpus, event_loop
from dynamometer.variables import DEFAULT_HTTP_PORT, DEFAULT_OPS_PORT, LOOPBACK

# More processes take memory, and each one polls the workers; four fill 40,000 chunks/s.
_MOST_AUTOMATIC = 16

_DESCRIPTION = """\
Serve all workers of this machine at one OpenAI-compatible address: /v1/chat/completions,
/v1/completions, /v1/models and the engine's other inference routes; /metrics, /health, /live and
/v1/health/ready.
Workers may start and end at any time.
"""

_EPILOG = f"""\
examples:
  dyno frontend
  dyno frontend --http-port 9000 --router-mode least-loaded
  dyno frontend --processes 4

With --processes, one address, one /metrics and one /health stand for all processes; a process that
ends is started again.

DYN_HTTP_SVC_HEALTH_PATH, _LIVE_PATH, _READY_PATH and _METRICS_PATH move /health, /live,
/v1/health/ready and /metrics.
DYN_METRICS_PREFIX replaces dynamo_frontend in the names of metrics.
DYN_METRICS_REQUEST_DURATION_MIN, _MAX and _COUNT set the bucket bounds of request durations; the
same variables with TTFT, ITL, INPUT_SEQUENCE or OUTPUT_SEQUENCE set those of other histograms.
{arguments.EPILOG}"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the frontend's flags.

    Args:
        program: the name of the command, for its help.
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
        "--ops-host",
        help="address of the ops listener, which has the routes for Prometheus and for operators: "
        f"/sd, /metrics_endpoints, /engine_metrics and /loads (DYN_OPS_HOST; default: {LOOPBACK})",
    )
    result.add_argument(
        "--ops-port",
        type=arguments.checked(settings.system_port),
        help=f"port of the ops listener; -1: do not serve it (DYN_OPS_PORT; default: "
        f"{DEFAULT_OPS_PORT}, or any free port if that one is in use)",
    )
    result.add_argument(
        "--processes",
        type=arguments.checked(settings.processes),
        metavar="N",
        help="number of processes that serve the port, for more than one CPU; auto: one per CPU "
        f"of the affinity and the cgroup's quota, at most {_MOST_AUTOMATIC} "
        "(DYN_FRONTEND_PROCESSES; default: 1)",
    )
    result.add_argument(
        "--namespace",
        type=arguments.checked(settings.name),
        help="serve only workers of this namespace (DYN_NAMESPACE; default: all namespaces)",
    )
    result.add_argument(
        "--router-mode",
        type=str,
        choices=[str(mode) for mode in RouterMode],
        default=str(RouterMode.ROUND_ROBIN),
        help="way to choose the worker for a request. least-loaded chooses the worker with the "
        "fewest requests; the count includes requests from other clients of its engine, which "
        "the engine reports each second (default: round-robin)",
    )
    arguments.add_drain_delay(result, "new requests are still accepted")
    arguments.add_drain_timeout(result)
    arguments.add_max_body_size(result)
    arguments.add_max_page_bytes(result, DEFAULT_MAX_PAGE_BYTES)
    arguments.add_allow_origin(result)
    result.add_argument(
        "--forward-custom-labels",
        action="store_true",
        help="forward the header by which requests set labels of their engine's metrics: "
        "x-custom-labels, or the one that a worker's --tokenizer-metrics-custom-labels-header "
        "names. Only behind a gateway that replaces the header: a client could use the name of any "
        "tenant (DYN_FORWARD_CUSTOM_LABELS; default: the header is removed)",
    )
    arguments.add_discovery(result)
    return result


def main(argv: Sequence[str], program: str = "dyno frontend") -> int:
    """Run a frontend until a signal ends it, and return the exit code.

    Raises:
        DynamometerError: The frontend cannot run; the message is for the user.
    """
    own = parser(program).parse_args(list(argv))
    environment = settings.read()
    membership = Membership.read()
    name = f"frontend {membership.number}" if membership else "frontend"
    logs.set_up(name, level=environment.log_level, as_json=environment.log_json)
    options = FrontendOptions(
        host=own.http_host or environment.http_host,
        port=environment.http_port if own.http_port is None else own.http_port,
        ops_host=own.ops_host or environment.ops_host,
        ops_port=environment.ops_port if own.ops_port is None else own.ops_port,
        namespace=own.namespace or environment.namespace,
        router_mode=RouterMode(own.router_mode),
        max_body_size=own.max_body_size,
        max_page_bytes=own.max_page_bytes,
        allowed_origins=own.allow_origin,
        forward_custom_labels=own.forward_custom_labels or environment.forward_custom_labels,
        drain_delay=own.drain_delay,
        drain_timeout=own.drain_timeout,
        discovery_directory=own.discovery or environment.discovery_directory,
        metrics_prefix=environment.metrics_prefix or names.name_prefix.FRONTEND,
        buckets=FrontendBuckets.of(environment.bucket_ranges),
        paths=environment.frontend_paths,
    )
    if membership:
        event_loop.run(serve_member(options, membership))
        return 0
    count = environment.processes if own.processes is None else own.processes
    if count == 0:
        count = min(cpus.available(), _MOST_AUTOMATIC)
    if count == 1:
        clear_leftovers()
        event_loop.run(serve(options))
    else:
        event_loop.run(serve_group(options, count, argv), use_uvloop=False)
    return 0
