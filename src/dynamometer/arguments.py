"""What the command lines have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dynamometer import __version__, settings

Value = TypeVar("Value")


def parser(
    program: str, description: str, epilog: str, *, usage: str | None = None
) -> argparse.ArgumentParser:
    """A parser whose help keeps its line breaks, and which guesses no flag."""
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
    """A parser of `settings` as argparse's `type`: its message names value and allowed ones."""

    def convert(value: str) -> Value:
        try:
            return parse(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{value!r} {error}") from None

    return convert


def add_discovery(group: argparse._ActionsContainer) -> None:
    """`--discovery-directory`."""
    group.add_argument(
        "--discovery-directory",
        dest="discovery",
        type=Path,
        metavar="DIR",
        help="where instances are registered (DYN_FILE_KV; a directory of this user's own)",
    )


def add_max_body_size(group: argparse._ActionsContainer) -> None:
    """`--max-body-size`."""
    group.add_argument(
        "--max-body-size",
        type=checked(settings.size),
        default=settings.size("64MiB"),
        metavar="BYTES",
        help="largest request body that is taken, such as 64MiB (default); above it: 413",
    )


def add_engine_python(group: argparse._ActionsContainer, engine: str) -> None:
    """Add `--engine-python`.

    Args:
        group: where it is listed.
        engine: the engine's name for users.
    """
    group.add_argument(
        "--engine-python",
        default=sys.executable,
        metavar="PATH",
        help=f"the interpreter that has {engine} (default: this one)",
    )


def add_max_series(group: argparse._ActionsContainer, default: int) -> None:
    """`--max-series`.

    Args:
        group: where it is listed.
        default: what it is without the flag.
    """
    group.add_argument(
        "--max-series",
        type=checked(settings.count),
        default=default,
        metavar="N",
        help="how many series of an engine's files the page shows at most; what is left out is "
        f"counted and said (default: {default})",
    )


def add_system_address(group: argparse._ActionsContainer) -> None:
    """`--system-host` and `--system-port`."""
    group.add_argument(
        "--system-host", help="address of /metrics and /health (DYN_SYSTEM_HOST; 127.0.0.1)"
    )
    group.add_argument(
        "--system-port",
        type=checked(settings.system_port),
        help="their port (DYN_SYSTEM_PORT; 8081, or any free one if that is taken; -1: off)",
    )


def add_place(group: argparse._ActionsContainer, *, component: str) -> None:
    """`--namespace`, `--component` and `--endpoint`.

    Args:
        group: where they are listed.
        component: what the component is without the flag, for the help.
    """
    group.add_argument(
        "--namespace",
        type=checked(settings.name),
        help="the label dynamo_namespace (DYN_NAMESPACE; dynamo)",
    )
    group.add_argument("--component", type=checked(settings.name), help=component)
    group.add_argument(
        "--endpoint", type=checked(settings.name), default="generate", help="generate"
    )
