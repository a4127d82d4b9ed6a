"""`dyno mocker`, `python -m dynamometer.mocker`: a simulated engine's command line."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack

from dynamometer import arguments, logs, settings
from dynamometer.http import addresses
from dynamometer.http.servers import serving
from dynamometer.mocker.app import Mocker
from dynamometer.mocker.options import MockerOptions
from dynamometer.mocker.writers import writing
from dynamometer.process import directories, event_loop
from dynamometer.process.signals import Stop

logger = logging.getLogger(__name__)
_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

_DESCRIPTION = """\
A simulated engine: it answers chats and completions with nonsense at a set rate, and writes
multiprocess files of a set size and rate of change, as SGLang's processes do. For tests of scale
and for work on dashboards. It says on every line that it is simulated.
"""

_EPILOG = """\
examples:
  dyno mocker --port 30000
  dyno mocker --processes 8 --series 16000 --change 0.1 --interval 0.1
  dyno sglang --engine mocker --model mock --enable-metrics     # a worker around one
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The mocker's flags.

    Args:
        program: how the command was called, for its help.
    """
    result = arguments.parser(program, _DESCRIPTION, _EPILOG)
    result.add_argument("--host", default=settings.LOOPBACK, help="default: 127.0.0.1")
    result.add_argument(
        "--port", type=arguments.checked(settings.port), default=30000, help="default: 30000"
    )
    result.add_argument("--model", "--model-path", default="mock", help="default: mock")
    result.add_argument("--served-model-name", help="default: the model's")
    result.add_argument(
        "--tokens-per-second",
        type=arguments.checked(settings.rate),
        default=100.0,
        metavar="RATE",
        help="of each stream (default: 100)",
    )
    result.add_argument(
        "--first-token-seconds",
        type=arguments.checked(settings.seconds),
        default=0.05,
        metavar="SECONDS",
        help="before each stream's first token (default: 0.05)",
    )
    result.add_argument(
        "--processes",
        type=arguments.checked(settings.count),
        default=1,
        help="that write metrics, besides the server (default: 1)",
    )
    result.add_argument(
        "--series",
        type=arguments.checked(settings.count),
        default=300,
        help="sample lines that those processes write in all (default: 300)",
    )
    result.add_argument(
        "--change",
        type=arguments.checked(settings.part),
        default=0.1,
        metavar="PART",
        help="part of the series that moves at each interval, 0 to 1 (default: 0.1)",
    )
    result.add_argument(
        "--interval",
        type=arguments.checked(settings.seconds),
        default=1.0,
        metavar="SECONDS",
        help="between two changes (default: 1)",
    )
    result.add_argument("--enable-metrics", action="store_true", help="taken as SGLang takes it")
    result.add_argument(
        "--disaggregation-mode",
        choices=["null", "prefill", "decode"],
        default="null",
        help="taken as SGLang takes it; nothing is different",
    )
    result.add_argument(
        "--stream-response-default-include-usage",
        action="store_true",
        help="taken as SGLang takes it: every stream ends with its usage",
    )
    return result


def main(argv: Sequence[str], program: str = "dyno mocker") -> int:
    """Run a simulated engine until it is asked to end; the exit code.

    Raises:
        DynamometerError: with the message for the user.
    """
    own = parser(program).parse_args(list(argv))
    environment = settings.read()
    logs.set_up("simulated engine", level=environment.log_level, as_json=environment.log_json)
    options = MockerOptions(
        host=own.host,
        port=own.port,
        model=own.served_model_name or own.model,
        tokens_per_second=own.tokens_per_second,
        first_token_seconds=own.first_token_seconds,
        processes=own.processes,
        series=own.series,
        change=own.change,
        interval=own.interval,
        stream_usage=own.stream_response_default_include_usage,
    )
    directories.require_current()
    with ExitStack() as stack:
        if _DIRECTORY not in os.environ:
            made = directories.temporary("mocker-")
            os.environ[_DIRECTORY] = str(made)
            stack.callback(shutil.rmtree, made, ignore_errors=True)
        stack.enter_context(writing(options))
        event_loop.run(_serve(options))
    return 0


async def _serve(options: MockerOptions) -> None:
    from dynamometer.mocker.instruments import ServerInstruments

    stop = Stop()
    listener = addresses.listen(options.host, options.port, setting="--port", host_setting="--host")
    instruments = ServerInstruments(
        options.model, kv_tokens=options.kv_tokens, page_size=options.page_size
    )
    app = Mocker(options, instruments).application()
    async with serving(app, listener):
        logger.info(
            "serving %s at %s; %d processes write %d series to %s",
            options.model,
            addresses.url(listener),
            options.processes,
            options.series,
            os.environ[_DIRECTORY],
        )
        await stop.asked.wait()
