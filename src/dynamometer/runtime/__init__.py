"""The public runtime API: a process, its namespaces, components and endpoints, and its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamometer.public import lazily

if TYPE_CHECKING:
    from dynamometer.runtime.distributed import Component, DistributedRuntime, Endpoint, Namespace
    from dynamometer.runtime.server_thread import SystemServer

__all__ = ["Component", "DistributedRuntime", "Endpoint", "Namespace", "SystemServer"]

__getattr__ = lazily(
    __name__,
    {
        "Component": "distributed",
        "DistributedRuntime": "distributed",
        "Endpoint": "distributed",
        "Namespace": "distributed",
        "SystemServer": "server_thread",
    },
)


def __dir__() -> list[str]:
    return __all__
