"""`dyno mocker`, `python -m dynamometer.mocker`: a simulated engine's command line."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack

from dynamometer import arguments, logs, settings
from dynamometer.engines import sglang_flags
from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.mocker.app import Options, SimulatedEngine
from dynamometer.mocker.simulated_processes import SimulatedSeries, writing
from dynamometer.process import event_loop, private_directories
from dynamometer.process.signals import Stop
from dynamometer.variables import LOOPBACK

logger = logging.getLogger(__name__)
_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_DESCRIPTION = """\
Run a simulated engine: it answers chats and completions with dummy text at a given rate, and
writes multiprocess files of a given size and rate of change, as SGLang's processes do. Use the
simulated engine to test at scale or to work on dashboards. All its output is marked as simulated.
"""

_WITHOUT_EFFECT = (
    "--nnodes",
    "--dist-init-addr",
    "--disaggregation-bootstrap-port",
    "--disaggregation-transfer-backend",
)

_EPILOG = """\
examples:
  dyno mocker --port 30000
  dyno mocker --processes 8 --series 16000 --change 0.1 --interval 0.1
  dyno sglang --engine mocker --model mock --enable-metrics     # a worker around a simulated engine
"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the mocker's flags.

    Args:
        program: the name of the command in its help.
    """
    result = arguments.parser(program, _DESCRIPTION, _EPILOG)
    result.add_argument("--host", default=LOOPBACK, help=f"default: {LOOPBACK}")
    result.add_argument(
        "--port", type=arguments.checked(settings.port), default=30000, help="default: 30000"
    )
    result.add_argument("--model", "--model-path", default="mock", help="default: mock")
    result.add_argument("--served-model-name", help="default: the value of --model")
    result.add_argument(
        "--tokens-per-second",
        type=arguments.checked(settings.rate),
        default=100.0,
        metavar="RATE",
        help="rate of each stream (default: 100)",
    )
    result.add_argument(
        "--first-token-seconds",
        type=arguments.checked(settings.seconds),
        default=0.05,
        metavar="SECONDS",
        help="time before the first token of each answer (default: 0.05)",
    )
    result.add_argument(
        "--processes",
        type=arguments.checked(settings.count),
        default=1,
        help="number of processes that write metrics, in addition to the server (default: 1)",
    )
    result.add_argument(
        "--series",
        type=arguments.checked(settings.count),
        default=300,
        help="number of sample lines that all these processes write together (default: 300)",
    )
    result.add_argument(
        "--change",
        type=arguments.checked(settings.fraction),
        default=0.1,
        metavar="FRACTION",
        help="fraction of the series that changes at each interval, 0 to 1 (default: 0.1)",
    )
    result.add_argument(
        "--interval",
        type=arguments.checked(settings.seconds),
        default=1.0,
        metavar="SECONDS",
        help="time between two changes (default: 1)",
    )
    result.add_argument(
        "--enable-metrics",
        action="store_true",
        help="accepted for SGLang's command lines; metrics are always written",
    )
    result.add_argument(
        "--disaggregation-mode",
        choices=["null", "prefill", "decode"],
        default="null",
        help="prefill: answer with one token; with both phases, a request needs a bootstrap room",
    )
    result.add_argument(
        "--node-rank",
        type=arguments.checked(settings.count),
        default=0,
        metavar="RANK",
        help="number of the node; only node 0 answers requests (default: 0)",
    )
    for flag in _WITHOUT_EFFECT:
        result.add_argument(flag, help="accepted for SGLang's command lines; has no effect here")
    result.add_argument(
        "--stream-response-default-include-usage",
        action="store_true",
        help="end every stream with its usage, as SGLang does with this flag",
    )
    return result


def main(argv: Sequence[str], program: str = "dyno mocker") -> int:
    """Run a simulated engine until a signal ends it, and return the exit code.

    Raises:
        DynamometerError: The engine cannot start; the message is for the user.
    """
    flags = parser(program).parse_args(list(argv))
    environment = settings.read()
    logs.set_up("simulated engine", level=environment.log_level, as_json=environment.log_json)
    options = Options(
        model=flags.served_model_name or flags.model,
        tokens_per_second=flags.tokens_per_second,
        first_token_seconds=flags.first_token_seconds,
        stream_usage=flags.stream_response_default_include_usage,
        mode=sglang_flags.mode(flags),
        node_rank=flags.node_rank,
    )
    series = SimulatedSeries(
        model=options.model,
        processes=flags.processes,
        lines=flags.series,
        change=flags.change,
        interval=flags.interval,
    )
    private_directories.require_current()
    with ExitStack() as stack:
        if _DIRECTORY_VARIABLE not in os.environ:
            directory = private_directories.create_temporary("mocker-")
            os.environ[_DIRECTORY_VARIABLE] = str(directory)
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.enter_context(writing(series))
        event_loop.run(_serve(options, series, host=flags.host, port=flags.port))
    return 0


async def _serve(options: Options, series: SimulatedSeries, *, host: str, port: int) -> None:
    from dynamometer.mocker.simulated_metrics import SimulatedMetrics

    stop = Stop()
    listener = addresses.listen(host, port, setting="--port", host_setting="--host")
    metrics = SimulatedMetrics(
        options.model, kv_tokens=options.kv_tokens, page_size=options.page_size
    )
    app = SimulatedEngine(options, metrics).application()
    async with serving(app, listener):
        logger.info(
            "serving %s at %s; series: %d, processes that write the series: %d, directory: %s",
            options.model,
            addresses.url(listener),
            series.lines,
            series.processes,
            os.environ[_DIRECTORY_VARIABLE],
        )
        await stop.requested.wait()
