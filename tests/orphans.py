"""End the processes that a test run leaves behind: `orphans.py MARK SESSION`.

The test run holds the other end of standard input, which the kernel closes when the run ends, also
by SIGKILL. Processes of the run have MARK in their environment. A process that overwrites its
environment by its title, as SGLang's do, is found by its session, which a marked process shares.
The session of the test run itself, SESSION, may have other processes of the user.

`PR_SET_PDEATHSIG` is not enough: an engine that is killed while it starts leaves children that
have not called `prctl` yet.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

SECONDS = 10


def marked(mark: str, session: int) -> set[int]:
    """Return the pids of the processes of the run, this one excepted."""
    sessions: dict[int, int] = {}
    found = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            sessions[pid] = os.getsid(pid)
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.add(pid)
    found.discard(os.getpid())
    of_run = {sessions[pid] for pid in found} - {session}
    return found | {pid for pid, of_process in sessions.items() if of_process in of_run}


def main() -> None:
    mark, session = sys.argv[1], int(sys.argv[2])
    sys.stdin.buffer.read()
    deadline = time.monotonic() + SECONDS
    while (left := marked(mark, session)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)  # between two looks at /proc, which has no event


if __name__ == "__main__":
    main()
