"""`dyno sglang` and `python -m dynamometer.sglang`: a worker for SGLang, or for the mocker."""

from __future__ import annotations

import sys

try:
    import argparse
    from collections.abc import Sequence
    from typing import Final

    from dynamometer.cli import run
    from dynamometer.engines.interface import StartableEngine
    from dynamometer.engines.mocker import Mocker
    from dynamometer.engines.sglang import SGLang
    from dynamometer.worker import command
except KeyboardInterrupt:  # Ctrl-C during the imports
    sys.exit(130)

_ENGINES: Final[Sequence[StartableEngine]] = (SGLang(), Mocker())


def parser(program: str) -> argparse.ArgumentParser:
    """Return the worker's flags; see `worker.command.parser`."""
    return command.parser(program, _ENGINES)


def main(argv: Sequence[str], program: str = "dyno sglang") -> int:
    """Run a worker until a signal ends it; see `worker.command.main`."""
    return command.main(argv, program, _ENGINES)


if __name__ == "__main__":
    run("sglang", program="python -m dynamometer.sglang")
