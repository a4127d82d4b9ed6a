"""The errors of a page, counted in a family of the page itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily

from dynamometer.exposition.conversion import from_metric
from dynamometer.exposition.families import Family
from dynamometer.names import label_value, labels, scrape

_REASONS: Final = ("failed", "timeout", "invalid")
_DOCUMENTATION: Final = (
    "Scrapes in which a source of engine metrics, one of its files or one of its series was omitted"
)


class ErrorCounts:
    """The family `dynamometer_engine_scrape_errors_total`.

    One thread at a time uses these counts: the thread that refreshes the page. So the page needs
    no lock that a fork could leave locked in the child.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], float] = {}
        self._reported: dict[tuple[str, str], int] = {}
        self._families: Sequence[Family] = ()

    def expect(self, source: str) -> None:
        """Show the usual errors of a source from 0 on."""
        for reason in _REASONS:
            if (source, reason) not in self._counts:
                self.add(source, reason, 0)

    def add(self, source: str, reason: str, number: int = 1) -> None:
        """Count errors of a source, or a new series with `number=0`."""
        key = (label_value(source), label_value(reason))
        self._counts[key] = self._counts.get(key, 0.0) + float(number)
        self._families = ()

    def add_reported(self, source: str, errors: Mapping[str, int]) -> None:
        """Count the errors that a source has reported since its last report.

        Args:
            source: the name of the source.
            errors: all errors of the source so far, by reason; a restarted source begins again.
        """
        for reason, count in errors.items():
            key = (source, reason)
            increase = count - self._reported.get(key, 0)
            if increase > 0 or key not in self._reported:
                self.add(source, reason, max(0, increase))
            self._reported[key] = count

    @property
    def families(self) -> Sequence[Family]:
        """The family of all counts; the same objects until a count changes."""
        if not self._families:
            metric = CounterMetricFamily(
                scrape.ERRORS_TOTAL, _DOCUMENTATION, labels=(labels.SOURCE, labels.REASON)
            )
            for key, count in self._counts.items():
                metric.add_metric(key, count)
            self._families = (from_metric(metric),)
        return self._families
