"""Where the families of a page come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from dynamometer.multiprocess import MultiprocessDirectory


class MetricsSource(Protocol):
    """One source of families; no two sources of a page have a family in common."""

    name: str

    def render(self, *, names: Sequence[str], openmetrics: bool) -> bytes:
        """The page of this source alone, without `# EOF`.

        Args:
            names: families that have a sample of one of these names; none: all.
            openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.
        """


class RegistrySource:
    """prometheus_client's instruments in this process."""

    def __init__(self, name: str, instruments: CollectorRegistry) -> None:
        self.name = name
        self._registry = instruments

    def render(self, *, names: Sequence[str], openmetrics: bool) -> bytes:
        """See `MetricsSource.render`."""
        chosen = self._registry.restricted_registry(names) if names else self._registry
        if openmetrics:
            page = bytes(openmetrics_exposition.generate_latest(chosen, escaping="allow-utf-8"))
            return page.removesuffix(b"# EOF\n")
        return bytes(generate_latest(chosen))


class EngineSource:
    """An engine's multiprocess files; only names with one of `prefixes` pass."""

    def __init__(
        self,
        name: str,
        directory: MultiprocessDirectory,
        *,
        prefixes: Sequence[str],
    ) -> None:
        self.name = name
        self._directory = directory
        self._prefixes = prefixes

    def render(self, *, names: Sequence[str], openmetrics: bool) -> bytes:
        """See `MetricsSource.render`."""
        page = self._directory.render(prefixes=self._prefixes, names=names, openmetrics=openmetrics)
        return page.removesuffix(b"# EOF\n")
