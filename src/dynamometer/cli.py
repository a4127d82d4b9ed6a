"""The command `dyno`, with one subcommand per kind of process."""

from __future__ import annotations

import sys

try:
    import importlib
    import logging
    import os
    import signal
    from collections.abc import Sequence
    from typing import NoReturn

    from dynamometer import __version__, logs, settings
    from dynamometer.errors import DynamometerError, SettingsError
    from dynamometer.logs import printable
    from dynamometer.variables import FRONTEND_MEMBER
except KeyboardInterrupt:  # Ctrl-C during the imports
    sys.exit(130)

# Each subcommand with its module and its description. A module has `main(argv, program)` and
# `parser(program)`.
COMMANDS = {
    "frontend": ("dynamometer.frontend.command", "OpenAI-compatible HTTP in front of all workers"),
    "sglang": ("dynamometer.sglang", "a worker: SGLang, with its endpoint and its /metrics"),
    "exporter": ("dynamometer.exporter.command", "only /metrics, for an engine that already runs"),
    "observe": (
        "dynamometer.observability.command",
        "Prometheus and Grafana, with targets, alerts and dashboards",
    ),
    "drain": ("dynamometer.drain", "take one worker out of traffic, and put it back"),
    "mocker": ("dynamometer.mocker.command", "a simulated engine, for tests and dashboards"),
    "tiny-model": ("dynamometer.tiny_model", "create a tiny random model, for demos and tests"),
    "demo": (
        "dynamometer.demo.command",
        "start frontend, worker and engine, and show a part of their pages",
    ),
}


def main() -> NoReturn:
    """Run the `dyno` command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("-V", "--version"):
        print(f"dynamometer {__version__}")
        sys.exit(0)
    run(arguments[0], arguments[1:])


def run(command: str, argv: Sequence[str] | None = None, *, program: str | None = None) -> NoReturn:
    """Run a subcommand, and exit; print an error as one line.

    Args:
        command: a key of `COMMANDS`.
        argv: the arguments; by default those of the process.
        program: the name of the command in its help; by default `dyno COMMAND`.
    """
    _open_standard_streams()
    _end_at_signal_as_first_process()
    try:
        if command not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise SettingsError(f"{command!r} is not a command of dyno: use one of {known}")
        if command != "mocker" and FRONTEND_MEMBER not in os.environ:
            # The variable is meant for an engine, but may be set in the whole shell. If
            # prometheus_client found it, this process's metrics would go into the engine's files.
            for variable in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
                os.environ.pop(variable, None)
        module = importlib.import_module(COMMANDS[command][0])
        for variable, suggestion in settings.misspelled():
            print(f"{variable} has no effect: did you mean {suggestion}?", file=sys.stderr)
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
        # The cause is a limit or a file system of this machine; the debug log shows the call.
        logging.getLogger("dynamometer").debug("failed", exc_info=True)
        code = _error(_system_error(error), 1)
    logs.flush()
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open /dev/null as each standard stream that is closed.

    Otherwise a socket or a pipe gets the stream's number, and libuv aborts the process when it
    closes that number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # returns the lowest free number


def _end_at_signal_as_first_process() -> None:
    """Handle SIGTERM in process 1 of a container until the event loop does.

    The kernel drops a signal to process 1 that has no handler: a container that is stopped while
    this process imports its modules would be killed at the end of its grace period.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _error(message: str, exit_code: int) -> int:
    logs.flush()
    red, plain = ("\x1b[31m", "\x1b[0m") if _coloured() else ("", "")
    print(f"{red}error:{plain} {printable(message)}", file=sys.stderr)
    return exit_code


def _system_error(error: OSError) -> str:
    """Return the operating system's message, after the name of the file if the error has one."""
    reason = error.strerror or str(error)
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{reason} (DYN_LOG=debug shows where)"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dyno COMMAND [options]",
            "",
            "Serve SGLang behind an OpenAI-compatible frontend, with all metrics of the engine and",
            "of the runtime on one /metrics page per worker.",
            "",
            "commands:",
            *lines,
            "",
            "dyno COMMAND --help describes each command. To start:",
            "  dyno frontend                                    # in one terminal",
            "  dyno sglang --model MODEL --enable-metrics       # in another",
            "  curl localhost:8081/metrics                      # all metrics on one page",
            "  dyno observe                                     # Prometheus and Grafana",
            "or, for an SGLang that already runs:",
            "  dyno exporter",
        ]
    )


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


if __name__ == "__main__":
    main()
