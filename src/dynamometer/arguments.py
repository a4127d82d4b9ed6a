"""Flags that several commands share, and the parser that all commands use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dynamometer import __version__, settings
from dynamometer.variables import DEFAULT_NAMESPACE, DEFAULT_SYSTEM_PORT, LOOPBACK

Value = TypeVar("Value")

# The end of the help of each command that runs until a signal.
EPILOG = """\
Ctrl-C or SIGTERM ends the process with exit code 0; a second signal ends it without waiting.
DYN_LOG=debug logs more; DYN_LOGGING_JSONL=1 logs JSON lines.
"""


def parser(
    program: str, description: str, epilog: str, *, usage: str | None = None
) -> argparse.ArgumentParser:
    """Create a parser whose help keeps line breaks, and which rejects abbreviated flags."""
    result = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=epilog,
        usage=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=f"dynamometer {__version__}")
    return result


def checked(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return a parser of `settings` as an argparse `type`, whose errors contain the wrong value."""

    def convert(value: str) -> Value:
        try:
            return parse(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{value!r} {error}") from None

    return convert


def add_drain_timeout(group: argparse._ActionsContainer) -> None:
    """Add `--drain-timeout`."""
    group.add_argument(
        "--drain-timeout",
        type=checked(settings.seconds),
        default=30.0,
        metavar="SECONDS",
        help="time that requests in flight have to finish after Ctrl-C or SIGTERM (default: 30)",
    )


def add_drain_delay(group: argparse._ActionsContainer, served: str) -> None:
    """Add `--drain-delay`.

    Args:
        group: the parser, or a group of its help.
        served: the kind of requests that the process answers during the delay.
    """
    group.add_argument(
        "--drain-delay",
        type=checked(settings.seconds),
        default=0.0,
        metavar="SECONDS",
        help=f"time for which {served} after Ctrl-C or SIGTERM, while /health already returns 503, "
        "so that load balancers notice; 5 in Kubernetes (default: 0)",
    )


def add_discovery(group: argparse._ActionsContainer) -> None:
    """Add `--discovery-directory`."""
    group.add_argument(
        "--discovery-directory",
        dest="discovery",
        type=Path,
        metavar="DIR",
        help="directory in which processes register themselves (DYN_FILE_KV; default: a directory "
        "in the user's runtime directory)",
    )


def add_max_body_size(group: argparse._ActionsContainer) -> None:
    """Add `--max-body-size`."""
    group.add_argument(
        "--max-body-size",
        type=checked(settings.size),
        default=settings.size("64MiB"),
        metavar="BYTES",
        help="largest accepted request body (default: 64MiB); a larger one is answered with 413",
    )


def add_allow_origin(group: argparse._ActionsContainer) -> None:
    """Add `--allow-origin`."""
    group.add_argument(
        "--allow-origin",
        type=checked(settings.origin),
        nargs="+",
        action="extend",
        default=[],
        metavar="ORIGIN",
        help="origins of web pages that may read the responses of all routes of this address, such "
        "as https://chat.example, separated by spaces; *: all origins (default: none)",
    )


def add_engine_python(group: argparse._ActionsContainer, engine: str) -> None:
    """Add `--engine-python`.

    Args:
        group: the parser, or a group of its help.
        engine: the engine's name for users.
    """
    group.add_argument(
        "--engine-python",
        default=sys.executable,
        metavar="PATH",
        help=f"interpreter that has {engine} installed (default: this one)",
    )


def add_max_series(group: argparse._ActionsContainer, default: int) -> None:
    """Add `--max-series`.

    Args:
        group: the parser, or a group of its help.
        default: the limit if the flag is missing.
    """
    group.add_argument(
        "--max-series",
        type=checked(settings.bound),
        default=default,
        metavar="N",
        help="largest number of series of an engine's files on the page; omitted series are "
        f"counted and logged (at least 1; default: {default})",
    )


def add_label_limits(group: argparse._ActionsContainer, *, values: int, value_bytes: int) -> None:
    """Add `--max-label-values` and `--max-label-bytes`.

    Args:
        group: the parser, or a group of its help.
        values: the number of values if the flag is missing.
        value_bytes: the length of a value if the flag is missing.
    """
    group.add_argument(
        "--max-label-values",
        type=checked(settings.bound),
        default=values,
        metavar="N",
        help="number of values of each label that clients choose, such as the path of a request, "
        f'that keep their series; all later ones count in one series with "other" '
        f"(at least 1; default: {values})",
    )
    group.add_argument(
        "--max-label-bytes",
        type=checked(settings.bound),
        default=value_bytes,
        metavar="BYTES",
        help='length of a label value of the engine; longer ones of clients count in "other", '
        f"other series are omitted, counted and logged (at least 1; default: {value_bytes})",
    )


def add_max_page_bytes(group: argparse._ActionsContainer, default: int) -> None:
    """Add `--max-page-bytes`.

    Args:
        group: the parser, or a group of its help.
        default: the limit if the flag is missing.
    """
    group.add_argument(
        "--max-page-bytes",
        type=checked(settings.bound),
        default=default,
        metavar="BYTES",
        help="size of the page, not compressed; the largest families that do not fit are omitted, "
        f"counted and logged (at least 1; default: {default})",
    )


def add_system_address(group: argparse._ActionsContainer) -> None:
    """Add `--system-host` and `--system-port`."""
    group.add_argument(
        "--system-host",
        help=f"address of /metrics and /health (DYN_SYSTEM_HOST; default: {LOOPBACK})",
    )
    group.add_argument(
        "--system-port",
        type=checked(settings.system_port),
        help=f"port of /metrics and /health; -1: do not serve them (DYN_SYSTEM_PORT; default: "
        f"{DEFAULT_SYSTEM_PORT}, or any free port if that one is in use)",
    )


def add_runtime_labels(group: argparse._ActionsContainer, *, component: str) -> None:
    """Add `--namespace`, `--component` and `--endpoint`.

    Args:
        group: the parser, or a group of its help.
        component: the default of `--component`, for the help.
    """
    group.add_argument(
        "--namespace",
        type=checked(settings.name),
        help=f"value of the label dynamo_namespace (DYN_NAMESPACE; default: {DEFAULT_NAMESPACE})",
    )
    group.add_argument(
        "--component",
        type=checked(settings.name),
        help=f"value of the label dynamo_component (default: {component})",
    )
    group.add_argument(
        "--endpoint",
        type=checked(settings.name),
        default="generate",
        help="value of the label dynamo_endpoint (default: generate)",
    )
