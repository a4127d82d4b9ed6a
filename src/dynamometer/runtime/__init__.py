"""What every process is made of: its place, its record in discovery, its system server.

Public here: `DistributedRuntime`, with what it is made of. They are imported when they are first
asked for: prometheus_client chooses where values live when it is imported, and an engine's process
must set `PROMETHEUS_MULTIPROC_DIR` before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamometer.runtime.distributed import Component, DistributedRuntime, Endpoint, Namespace

__all__ = ["Component", "DistributedRuntime", "Endpoint", "Namespace"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from dynamometer.runtime import distributed

        return getattr(distributed, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
