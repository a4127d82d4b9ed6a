"""A command imports only the modules that it needs: imports are most of the time of its start."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from processes import PYTHON, running

# The most modules that a command may import until it serves, Python's own included. A command
# that needs a few more gets a higher number here; a new library, or another room, gets a reason.
MOST_OF_HELP, MOST_OF_PROCESS = 150, 650
# The libraries of a server of pages, with the libraries that they import.
SERVER = {
    "aiohappyeyeballs", "aiohttp", "aiosignal", "attr", "attrs", "brotli", "frozenlist", "idna",
    "isal", "multidict", "numpy", "orjson", "prometheus_client", "propcache", "typing_extensions",
    "yarl",
}  # fmt: skip
RELAY = SERVER | {"httptools", "msgspec", "uvloop"}
MOCKER = ("--engine", "mocker", "--model", "mock", "--enable-metrics")
SERVERS = [
    ("frontend", ("frontend", "--http-port", "0"), "OpenAI-compatible at", RELAY),
    (
        "worker",
        ("sglang", *MOCKER, "--system-port", "0"),
        "metrics and health:",
        RELAY | {"psutil"},
    ),
    ("exporter", ("exporter", "--system-port", "0"), "/metrics, /health", SERVER | {"psutil"}),
]
# The rooms that each process never needs.
OTHER_ROOMS = {
    "frontend": {"worker", "exporter", "mocker", "observability", "demo", "tiny_model"},
    "worker": {"frontend", "exporter", "mocker", "observability", "demo", "tiny_model"},
    "exporter": {"frontend", "worker", "mocker", "observability", "demo", "tiny_model"},
}


def imported(log: str) -> list[str]:
    """Return the names of the modules that `python -X importtime` has reported."""
    return re.findall(r"^import time:[ \d]+\|[ \d]+\| *([\w.]+)$", log, re.MULTILINE)


def libraries(modules: list[str]) -> set[str]:
    """Return the installed libraries among modules; Python also reports imports that failed.

    Modules with an underscore are parts of other libraries, or hooks of an installation.
    """
    names = {module.split(".")[0] for module in modules}
    own = {*sys.stdlib_module_names, "dynamometer", "sitecustomize", "usercustomize"}
    return {name for name in names - own if not name.startswith("_") and find_spec(name)}


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("nonsense",)], ids=str)
def test_dyno_without_a_command_imports_no_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [PYTHON, "-X", "importtime", "-m", "dynamometer", *words]
    with running(command, tmp_path / "log", {}) as process:
        process.wait(within=30)
        modules = imported(process.log)
    assert "dynamometer.cli" in modules
    assert libraries(modules) == set()
    assert "asyncio" not in modules
    assert len(modules) <= MOST_OF_HELP


@pytest.mark.parametrize(("name", "words", "text", "needed"), SERVERS, ids=[s[0] for s in SERVERS])
def test_a_process_imports_what_it_needs_until_it_serves(
    tmp_path: Path, name: str, words: tuple[str, ...], text: str, needed: set[str]
) -> None:
    command = [PYTHON, "-X", "importtime", "-m", "dynamometer", *words]
    with running(command, tmp_path / "log", {"DYN_FILE_KV": str(tmp_path / "kv")}) as process:
        log = process.wait_for(f"(?s).*{re.escape(text)}", within=30)[0]
    modules = imported(log)
    assert libraries(modules) - needed == set()
    rooms = {module.split(".")[1] for module in modules if module.startswith("dynamometer.")}
    assert not rooms & OTHER_ROOMS[name]
    assert len(modules) <= MOST_OF_PROCESS


# Runs a module as `python -m` does; Ctrl-C comes during the import of another module.
INTERRUPTED = """
import runpy, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == sys.argv[2]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder)
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("entry", "interrupted"),
    [
        ("dynamometer", "dynamometer.settings"),
        ("dynamometer.cli", "dynamometer.logs"),
        ("dynamometer.frontend", "dynamometer.settings"),
        ("dynamometer.mocker", "dynamometer.errors"),
        ("dynamometer.sglang", "dynamometer.settings"),
        ("dynamometer.sglang", "dynamometer.worker"),
    ],
)
def test_ctrl_c_during_the_imports_ends_a_command_without_a_traceback(
    entry: str, interrupted: str
) -> None:
    done = subprocess.run(
        [PYTHON, "-c", INTERRUPTED, entry, interrupted],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_imports_and_libraries_are_found() -> None:
    log = (
        "import time:       274 |        274 |   posix\n"
        "[frontend] a line of the log\n"
        "import time:     39 |   39 |       numpy._core._multiarray_umath\n"
        "import time: self [us] | cumulative | imported package\n"
        "import time:       974 |       2675 | dynamometer.cli\n"
    )
    modules = imported(log)
    assert modules == ["posix", "numpy._core._multiarray_umath", "dynamometer.cli"]
    assert libraries(modules) == {"numpy"}
