"""`dyno tiny-model DIR`: a tiny random Llama and its tokenizer, made locally in a second."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dynamometer import arguments
from dynamometer.engines import sglang_cpu
from dynamometer.errors import DirectoryError, EngineError
from dynamometer.process import directories

_DESCRIPTION = """\
Make a tiny randomly initialised Llama (2 layers, 4 MB, context 2,048) with a tokenizer of its
own, for demos and tests where no model hub is reached. Its answers are nonsense; its metrics
are real. Needs an interpreter that has SGLang, but no accelerator and no network.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The command's flags.

    Args:
        program: how the command was called, for its help.
    """
    result = arguments.parser(program, _DESCRIPTION, "example:\n  dyno tiny-model ./tiny\n")
    result.add_argument("directory", type=Path, metavar="DIR", help="made where it is missing")
    arguments.add_engine_python(result, "SGLang")
    return result


def main(argv: Sequence[str], program: str = "dyno tiny-model") -> int:
    """Make the model; the exit code.

    Raises:
        DynamometerError: with the message for the user.
    """
    own = parser(program).parse_args(list(argv))
    make(own.directory, engine_python=own.engine_python)
    name = own.directory if own.directory.is_absolute() else f"./{own.directory}"
    print(f"made {name}; serve it: dyno sglang --model {name} --enable-metrics")
    return 0


def make(directory: Path, *, engine_python: str = sys.executable) -> None:
    """Write the model into `directory`; nothing that is there is overwritten.

    Raises:
        DirectoryError: something is there already, or it cannot be written.
        EngineError: the interpreter cannot make it; says why.
    """
    if not directory.is_absolute():
        directories.require_current()
    try:
        if directory.exists() and any(directory.iterdir()):
            raise DirectoryError(f"{directory} is not empty: name a new directory")
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryError(f"cannot make {directory}: {error.strerror}") from None
    script = Path(sglang_cpu.__file__).parent / "checkpoint.py"
    try:
        done = subprocess.run(
            [engine_python, str(script), str(directory)],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        directory.rmdir()
        raise EngineError(f"cannot run {engine_python}: {error.strerror}") from None
    if done.returncode:
        shutil.rmtree(directory, ignore_errors=True)
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise EngineError(
            f"{engine_python} cannot make the model: {said[-1]} (it needs the packages that "
            "SGLang brings; --engine-python names another interpreter)"
        )
