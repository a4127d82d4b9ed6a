"""`dyno drain INSTANCE`: take a worker out of traffic, and put it back."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

import aiohttp

from dynamometer import arguments, logs, settings
from dynamometer.errors import DrainError
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.identity import hexadecimal, parse_id
from dynamometer.runtime.record import Record, Role, State
from dynamometer.worker.control import ROUTE, DrainStatus, socket_path

# A shorter text is more likely the number of a worker that has ended.
_SHORTEST_BEGINNING: Final = 4
_MOST_LISTED: Final = 10
_POLL_SECONDS: Final = 0.3
_PROGRESS_SECONDS: Final = 10.0
# The worker answers in milliseconds, but writes its record before that.
_ANSWER_SECONDS: Final = 10.0

_DESCRIPTION = """\
Take one worker out of traffic: frontends send no new requests there, its /health returns 503, and
its engine keeps running. Then wait until its running requests have finished. The worker stays out
of traffic until --undo, or until it is restarted.
"""

_EPILOG = """\
INSTANCE is the number of a worker, as the label worker_id and the log show it, or its first four or
more digits, or the value of the worker's --worker-id.

examples:
  dyno drain 3f2a                   # wait until all running requests have finished
  dyno drain 3f2a --timeout 60      # for a minute at most
  dyno drain worker-0 --timeout 0   # do not wait
  dyno drain 3f2a --undo            # put the worker back into traffic

Run the command on the machine of the worker, in its container, as the user of the worker: no other
machine or user can drain a worker. With the worker's --drain-delay, the worker accepts new requests
for that time.

exit codes: 0, the worker is out of traffic and no request runs, or is back in traffic; 1, the
worker is unknown or does not answer, or requests still run at the timeout; 2, a wrong argument.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the command's flags.

    Args:
        program: the name of the command in its help.
    """
    result = arguments.parser(program, _DESCRIPTION, _EPILOG)
    result.add_argument("instance", metavar="INSTANCE", help="number of the worker")
    result.add_argument("--undo", action="store_true", help="put the worker back into traffic")
    result.add_argument(
        "--timeout",
        type=arguments.checked(settings.seconds),
        metavar="SECONDS",
        help="longest time to wait for running requests, after the worker has answered (within "
        f"{_ANSWER_SECONDS:g} s, or the command fails); 0: do not wait (default: no limit)",
    )
    arguments.add_discovery(result)
    return result


def main(argv: Sequence[str], program: str = "dyno drain") -> int:
    """Drain a worker or undo that, and return the exit code.

    Raises:
        DrainError: The worker is unknown or does not answer, or requests still run.
        DynamometerError: The command cannot run; the message is for the user.
    """
    flags = parser(program).parse_args(list(argv))
    environment = settings.read()
    logs.set_up("drain", level=environment.log_level, as_json=environment.log_json)
    directory = flags.discovery or environment.discovery_directory
    asyncio.run(_run(flags.instance, directory, undo=flags.undo, timeout=flags.timeout))
    return 0


async def _run(instance: str, directory: Path | None, *, undo: bool, timeout: float | None) -> None:
    discovery = await connect(directory)
    worker = find(await discovery.records(), instance, directory)
    async with _Control(worker) as control:
        if undo:
            await _undo(control)
        else:
            await _drain(control, timeout)


def find(records: Collection[Record], instance: str, directory: Path | None = None) -> Record:
    """Return the worker that a user names by its number, its beginning, or its `--worker-id`.

    Args:
        records: the processes that discovery shows.
        instance: the user's text.
        directory: the directory of discovery, for messages; None for this user's default.

    Raises:
        DrainError: No worker or several workers have this name, or the worker is of another node
            than the first.
    """
    workers = sorted(
        (record for record in records if record.role is Role.WORKER), key=lambda one: one.id
    )
    try:
        number = parse_id(instance)
    except ValueError:
        number = 0
    exact = [worker for worker in workers if worker.id == number]
    beginning = instance.strip().lower().removeprefix("0x")
    named = len(beginning) >= _SHORTEST_BEGINNING
    found = exact or [
        worker for worker in workers if named and hexadecimal(worker.id).startswith(beginning)
    ]
    if len(found) == 1:
        _check_first_node(found[0], workers)
        return found[0]
    if found:
        raise DrainError(f"{instance!r} is the beginning of several workers: {_list(found)}")
    others = [record for record in records if record.id == number]
    if others:
        raise DrainError(
            f"{instance!r} is not a worker (role: {others[0].role}): only workers can be taken out "
            "of traffic"
        )
    place = "this user's directory" if directory is None else directory
    known = (
        f"the workers are {_list(workers)}"
        if workers
        else f"discovery shows no workers in {place} (--discovery-directory, DYN_FILE_KV)"
    )
    raise DrainError(f"no worker has the number or name {instance!r}: {known}")


def _check_first_node(worker: Record, workers: Sequence[Record]) -> None:
    """Raise `DrainError` for a worker to which no requests are sent, because of its node."""
    if not worker.node_rank:
        return
    first = [one for one in workers if one.shares_engine(worker) and not one.node_rank]
    known = f": drain that one, {_list(first)}" if first else ""
    raise DrainError(
        f"worker {hexadecimal(worker.id)} is node {worker.node_rank} of {worker.nodes} of an "
        f"engine; only the worker of node 0 gets requests{known}"
    )


def _list(workers: Sequence[Record]) -> str:
    shown = [
        f"{hexadecimal(worker.id)} ({', '.join([str(worker.state), *worker.models])})"
        for worker in workers[:_MOST_LISTED]
    ]
    more = len(workers) - len(shown)
    return ", ".join([*shown, f"and {more} more"] if more else shown)


class _Control:
    """The control socket of a worker, for requests; an asynchronous context manager."""

    def __init__(self, worker: Record) -> None:
        self.name = f"worker {hexadecimal(worker.id)}"
        self.undo_command = f"dyno drain {hexadecimal(worker.id)} --undo"
        self._path = socket_path(worker.id)

    async def __aenter__(self) -> _Control:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self._path)),
            timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def request(self, method: str) -> DrainStatus:
        """Send a request, and return the state of the worker afterwards.

        Raises:
            DrainError: The worker does not answer, or is of another version.
        """
        try:
            async with self._session.request(method, f"http://worker{ROUTE}") as response:
                content = json.loads(await response.read())
                return DrainStatus(
                    **{field.name: content[field.name] for field in fields(DrainStatus)}
                )
        except (ValueError, TypeError, KeyError):
            raise DrainError(f"{self.name} is of another version of dyno") from None
        except TimeoutError:
            raise DrainError(
                f"{self.name} has not answered within {_ANSWER_SECONDS:g} s: it is stopped or "
                "hangs; try again, or end the worker"
            ) from None
        except (aiohttp.ClientError, OSError):
            raise DrainError(
                f"{self.name} cannot be reached at {self._path}: run this command on the machine "
                "of the worker, in its container, and as its user"
            ) from None


async def _undo(control: _Control) -> None:
    before = await control.request("GET")
    after = await control.request("DELETE")
    if after.ending:
        raise DrainError(f"{control.name} is ending: it cannot be put back into traffic")
    if not before.drained:
        _print(f"{control.name} was not out of traffic; its state is {after.state}")
    elif after.state == State.READY:
        _print(f"{control.name} is ready, and receives requests again")
    else:
        reason = f" ({after.reason})" if after.reason else ""
        _print(f"{control.name} is {after.state}{reason}: it receives requests when it is ready")


async def _drain(control: _Control, timeout: float | None) -> None:
    before = await control.request("GET")
    status = await control.request("POST")
    running = f"running requests: {status.running}"
    if status.ending:
        _print(f"{control.name} is ending, and does not return into traffic; {running}")
    elif before.drained:
        _print(f"{control.name} was out of traffic already; {running}")
    else:
        _print(f"{control.name} is out of traffic; {running}")
    started = shown = time.monotonic()
    while status.running or status.accepts:
        now = time.monotonic()
        if timeout is not None and now - started >= timeout:
            break
        await asyncio.sleep(_POLL_SECONDS)
        last, status = status, await _follow(control, status)
        if status.running != last.running or now - shown >= _PROGRESS_SECONDS:
            shown = now
            _print(f"running requests: {status.running}, after {now - started:.0f} s")
    if timeout == 0:
        return
    if status.running or status.accepts:
        unfinished = f"its running requests have not finished after {timeout:g} s: {status.running}"
        if status.ending:
            raise DrainError(f"{control.name} is ending, and {unfinished}")
        raise DrainError(
            f"{control.name} stays out of traffic, and {unfinished}; put it back with "
            f"{control.undo_command}"
        )
    undo = f"put the worker back with: {control.undo_command}"
    _print(f"no request runs; {'the worker is ending' if status.ending else undo}")


async def _follow(control: _Control, before: DrainStatus) -> DrainStatus:
    """Return the state of a worker that was drained.

    Raises:
        DrainError: The worker ended, or was put back into traffic.
    """
    try:
        status = await control.request("GET")
    except DrainError:
        raise DrainError(
            f"{control.name} no longer answers; it ended, or was killed, with running requests: "
            f"{before.running}"
        ) from None
    if not status.drained:
        raise DrainError(f"{control.name} was put back into traffic meanwhile")
    return status


def _print(line: str) -> None:
    print(line, flush=True)
