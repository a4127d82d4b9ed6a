"""What `/metrics` returns: the runtime's own instruments, and the engines' families.

Public here: `register_engine_metrics_callback` and `get_prometheus_expfmt`. They are imported when
they are first asked for: prometheus_client chooses where values live when it is imported, and an
engine's process must set `PROMETHEUS_MULTIPROC_DIR` before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamometer.metrics.engine_callback import (
        get_prometheus_expfmt,
        register_engine_metrics_callback,
    )

__all__ = ["get_prometheus_expfmt", "register_engine_metrics_callback"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from dynamometer.metrics import engine_callback

        return getattr(engine_callback, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
