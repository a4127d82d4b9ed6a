"""`dyno`: one command, a subcommand a process."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from dynamometer import __version__, logs, settings
from dynamometer.errors import DynamometerError, SettingsError
from dynamometer.logs import printable

# Subcommand, the module whose `main(argv, program)` runs it (`parser(program)` has its flags), and
# what it is for.
COMMANDS = {
    "frontend": ("dynamometer.frontend.command", "OpenAI-compatible HTTP in front of all workers"),
    "sglang": ("dynamometer.sglang", "a worker: SGLang, its endpoint, its /metrics"),
    "exporter": ("dynamometer.exporter.command", "the page alone, beside an engine that runs"),
    "mocker": ("dynamometer.mocker.command", "a simulated engine, for tests and dashboards"),
    "tiny-model": ("dynamometer.tiny_model", "make a tiny random model, for trying things out"),
    "demo": ("dynamometer.demo", "all of it at once, on real input, with what the page says"),
}


def main() -> NoReturn:
    """The `dyno` command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("-V", "--version"):
        print(f"dynamometer {__version__}")
        sys.exit(0)
    run(arguments[0], arguments[1:])


def run(command: str, argv: Sequence[str] | None = None, *, program: str | None = None) -> NoReturn:
    """Run a subcommand and end the process: an error is one line, and its exit code.

    Args:
        command: a key of the list above.
        argv: its arguments; by default the process's.
        program: how it was called, for its help; by default `dyno COMMAND`.
    """
    _open_standard_streams()
    try:
        if command not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise SettingsError(f"{command!r} is no command of dyno; there are: {known}")
        if command != "mocker":
            # Set for an engine, perhaps in the whole shell: prometheus_client would read it when
            # it is imported, and keep our own counts in that engine's files.
            for variable in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
                os.environ.pop(variable, None)
        module = importlib.import_module(COMMANDS[command][0])
        for variable, meant in settings.unknown():
            print(f"{variable} means nothing here: is {meant} meant?", file=sys.stderr)
        arguments = sys.argv[1:] if argv is None else argv
        code = module.main(arguments, program or f"dyno {command}")
    except DynamometerError as error:
        code = _error(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        # A limit or a file system of this machine; only the debug log says in which call.
        logging.getLogger("dynamometer").debug("failed", exc_info=True)
        code = _error(_system_error(error), 1)
    logs.flush()
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open /dev/null as each standard stream that is closed.

    Otherwise a socket or a pipe gets its number, and libuv aborts a process that closes that.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest number that is free


def _error(message: str, exit_code: int) -> int:
    logs.flush()
    red, plain = ("\x1b[31m", "\x1b[0m") if _coloured() else ("", "")
    print(f"{red}error:{plain} {printable(message)}", file=sys.stderr)
    return exit_code


def _system_error(error: OSError) -> str:
    """Say which file or directory the system refused, and why; DYN_LOG=debug says where."""
    why = error.strerror or str(error)
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{why} (DYN_LOG=debug shows where)"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dyno COMMAND [options]",
            "",
            "Serve SGLang behind an OpenAI-compatible frontend, with everything that the engine",
            "and the runtime know about themselves on one /metrics page per worker.",
            "",
            "commands:",
            *lines,
            "",
            "dyno COMMAND --help says more of each. To begin with:",
            "  dyno frontend                                    # in one terminal",
            "  dyno sglang --model MODEL --enable-metrics       # in another",
            "  curl localhost:8081/metrics                      # everything, on one page",
            "or, beside an SGLang that runs already:",
            "  dyno exporter",
        ]
    )


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


if __name__ == "__main__":
    main()
