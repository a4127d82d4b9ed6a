"""The family in which a page counts its own errors."""

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

    Only the thread that refreshes the page uses these counts, so no lock is needed. A lock could
    stay locked in the child of a fork.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], float] = {}
        self._reported: dict[tuple[str, str], int] = {}
        self._families: Sequence[Family] = ()

    def show_from_zero(self, source: str) -> None:
        """Show each usual error of a source with the count 0 before the error occurs."""
        for reason in _REASONS:
            if (source, reason) not in self._counts:
                self.add(source, reason, 0)

    def add(self, source: str, reason: str, number: int = 1) -> None:
        """Add `number` errors of a source; 0 shows a new series with the count 0."""
        key = (label_value(source), label_value(reason))
        self._counts[key] = self._counts.get(key, 0.0) + float(number)
        self._families = ()

    def add_reported(self, source: str, errors: Mapping[str, int]) -> None:
        """Count the errors that a source has reported since its last report.

        Args:
            source: the name of the source.
            errors: all errors of the source so far, by reason. A count that fell shows that the
                source was restarted.
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
