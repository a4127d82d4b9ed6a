"""The public runtime API: one process, its levels, its record in discovery, its system server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamometer.public import lazily

if TYPE_CHECKING:
    from dynamometer.runtime.distributed import Component, DistributedRuntime, Endpoint, Namespace
    from dynamometer.runtime.system_server import SystemServer

__all__ = ["Component", "DistributedRuntime", "Endpoint", "Namespace", "SystemServer"]

__getattr__ = lazily(
    __name__,
    {
        "Component": "distributed",
        "DistributedRuntime": "distributed",
        "Endpoint": "distributed",
        "Namespace": "distributed",
        "SystemServer": "system_server",
    },
)


def __dir__() -> list[str]:
    return __all__
