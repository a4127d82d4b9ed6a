"""The public metrics API: the page that `/metrics` returns, and its sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamometer.public import lazily

if TYPE_CHECKING:
    from dynamometer.metrics.engine_callback import (
        get_prometheus_expfmt,
        register_engine_metrics_callback,
    )
    from dynamometer.metrics.hierarchy import Metrics
    from dynamometer.metrics.http_source import HttpSource
    from dynamometer.metrics.page import MetricsPage
    from dynamometer.metrics.sources import MetricsSource

__all__ = [
    "HttpSource",
    "Metrics",
    "MetricsPage",
    "MetricsSource",
    "get_prometheus_expfmt",
    "register_engine_metrics_callback",
]

__getattr__ = lazily(
    __name__,
    {
        "HttpSource": "http_source",
        "Metrics": "hierarchy",
        "MetricsPage": "page",
        "MetricsSource": "sources",
        "get_prometheus_expfmt": "engine_callback",
        "register_engine_metrics_callback": "engine_callback",
    },
)


def __dir__() -> list[str]:
    return __all__
