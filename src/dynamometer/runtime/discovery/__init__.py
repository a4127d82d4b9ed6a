"""Instance discovery.

A process registers itself, and disappears from discovery when it ends, even if it is killed. A
process that ended without withdrawing its record is remembered for 15 minutes, so that Prometheus
shows it as down. A frontend watches the set of live processes. `interface` defines the contract;
the only variant is `file`, for one machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dynamometer.errors import DiscoveryError
from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.discovery.interface import Discovery

__all__ = ["connect"]

_CONNECT_SECONDS: Final = 5.0


async def connect(directory: Path | None) -> Discovery:
    """Open the discovery that the flags and variables of this process select.

    Args:
        directory: the directory of the file discovery; None for the default of this user.

    Raises:
        DiscoveryError: The directory cannot be used, or does not answer; the message names it.
    """
    opening: BlockingCalls[Discovery] = BlockingCalls("discovery", deadline=_CONNECT_SECONDS)
    try:
        return await opening.run(FileDiscovery, directory)
    except HangError:
        place = "this user's directory" if directory is None else directory
        raise DiscoveryError(
            f"discovery: {place} does not answer: set DYN_FILE_KV to a directory on a local disk"
        ) from None
