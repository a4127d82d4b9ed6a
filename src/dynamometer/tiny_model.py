"""`dyno tiny-model DIR`: create a tiny random Llama and its tokenizer, locally in a second."""

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
from dynamometer.process import private_directories

_DESCRIPTION = """\
Create a tiny, randomly initialised Llama (2 layers, 4 MB, context 2,048) and its tokenizer, for
demos and tests without a model hub. Its answers are random text; its metrics are real. Needs an
interpreter that has SGLang installed, but neither an accelerator nor a network.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the command's flags.

    Args:
        program: the name of the command in its help.
    """
    result = arguments.parser(program, _DESCRIPTION, "example:\n  dyno tiny-model ./tiny\n")
    result.add_argument("directory", type=Path, metavar="DIR", help="created if it is missing")
    arguments.add_engine_python(result, "SGLang")
    return result


def main(argv: Sequence[str], program: str = "dyno tiny-model") -> int:
    """Create the model, and return the exit code.

    Raises:
        DynamometerError: The model cannot be created; the message is for the user.
    """
    flags = parser(program).parse_args(list(argv))
    create(flags.directory, engine_python=flags.engine_python)
    name = flags.directory if flags.directory.is_absolute() else f"./{flags.directory}"
    print(f"created {name}; to serve it: dyno sglang --model {name} --enable-metrics")
    return 0


def create(directory: Path, *, engine_python: str = sys.executable) -> None:
    """Write the model into `directory`, which must be empty or missing.

    Raises:
        DirectoryError: The directory is not empty, or cannot be written.
        EngineError: The interpreter cannot create the model; the message has its reason.
    """
    if not directory.is_absolute():
        private_directories.require_current()
    try:
        if directory.exists() and any(directory.iterdir()):
            raise DirectoryError(f"{directory} is not empty: choose a new directory")
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryError(f"cannot create {directory}: {error.strerror}") from None
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
        reason = done.stderr.strip().splitlines() or ["the interpreter printed no error"]
        raise EngineError(
            f"{engine_python} cannot create the model: {reason[-1]} (SGLang must be installed for "
            "this interpreter: choose another one with --engine-python)"
        )
