"""The page: every source's families, one after the other; a broken source costs only itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter

from dynamometer import names as metric_names
from dynamometer.metrics.sources import MetricsSource, RegistrySource

logger = logging.getLogger(__name__)


class MetricsPage:
    """What `/metrics` returns. Safe to render from several threads."""

    def __init__(self, instruments: CollectorRegistry) -> None:
        """A page of this process's own instruments.

        Args:
            instruments: the registry that holds them; the page counts its errors there.
        """
        self._engines: list[MetricsSource] = []
        self._runtime = RegistrySource("runtime", instruments)
        self._failing: set[str] = set()
        self._lock = threading.Lock()
        self._errors = Counter(
            metric_names.scrape.ERRORS_TOTAL,
            "Scrapes in which a source of engine metrics, or one of its files, was left out",
            (metric_names.labels.SOURCE, metric_names.labels.REASON),
            registry=instruments,
        )

    def add(self, source: MetricsSource) -> None:
        """Show the families of `source` too, after those of the runtime."""
        self._engines.append(source)
        self._errors.labels(source.name, "failed")

    def render(self, *, names: Sequence[str] = (), openmetrics: bool = False) -> bytes:
        """The whole page.

        Args:
            names: families that have a sample of one of these names; none: all.
            openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.
        """
        with self._lock:
            engines = [self._render(source, names, openmetrics) for source in self._engines]
            runtime = self._runtime.render(names=names, openmetrics=openmetrics)
        return b"".join([runtime, *engines, b"# EOF\n" if openmetrics else b""])

    def _render(self, source: MetricsSource, names: Sequence[str], openmetrics: bool) -> bytes:
        try:
            text = source.render(names=names, openmetrics=openmetrics)
        except Exception:  # a source of any kind; the page must stand
            self._errors.labels(source.name, "failed").inc()
            if source.name not in self._failing:
                self._failing.add(source.name)
                logger.exception("metrics of %s are left out of the page", source.name)
            return b""
        if source.name in self._failing:
            self._failing.discard(source.name)
            logger.info("metrics of %s are on the page again", source.name)
        return text
