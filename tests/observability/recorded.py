"""The series that a Prometheus has recorded in a range of time, for dashboards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation import DashboardError

from prometheus import Prometheus, QueryError

STEP_SECONDS = 1


@dataclass(frozen=True)
class Recorded:
    """A Prometheus, and the range that a dashboard shows, in seconds since the epoch.

    Grafana rounds a range to whole steps.
    """

    server: Prometheus
    start: float
    end: float

    def range(self, query: str) -> Sequence[Sequence[str]]:
        """Return the values of each series of a query.

        Raises:
            DashboardError: Prometheus refuses the query.
        """
        step = str(STEP_SECONDS)
        try:
            found = self.server.ask("query_range", query=query, step=step, **self._times())[
                "result"
            ]
        except QueryError as error:
            raise DashboardError(str(error)) from error
        return [[value for _, value in series["values"]] for series in found]

    def label_values(self, label: str, selector: str | None) -> Sequence[str]:
        """Return the values of a label in the range, of all series or of the selected ones."""
        selected = {"match[]": selector} if selector else {}
        return list(self.server.ask(f"label/{label}/values", **self._times(), **selected))

    def _times(self) -> dict[str, str]:
        return {"start": str(math.floor(self.start)), "end": str(math.ceil(self.end))}
