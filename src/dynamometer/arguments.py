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


def add_engine_python(group: argparse._ActionsContainer) -> None:
    """`--engine-python`."""
    group.add_argument(
        "--engine-python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter that has SGLang (default: this one)",
    )
