"""The end of a process together with its parent, by the kernel."""

from __future__ import annotations

import ctypes
import signal
from typing import Final

# <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies; also a `preexec_fn` of a child.

    A parent that died before the call has no effect: compare `os.getppid()` afterwards.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
