"""The page: all sources' families merged; a broken source costs only itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter

from dynamometer import names as metric_names
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import EVERYTHING, Selection
from dynamometer.exposition.merged_page import MergedPage
from dynamometer.exposition.merging import Clash, Omission, Source
from dynamometer.metrics.derivation import Derivation, DerivedSource
from dynamometer.metrics.guarded_source import GuardedSource, SourceError, SourceResult
from dynamometer.metrics.refresh import Refreshes
from dynamometer.metrics.sources import MetricsSource, RegistrySource
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

DEADLINE_SECONDS: Final = 5.0
# For each source that hangs besides the first.
_NEXT_DEADLINE_SECONDS: Final = 1.0


class MetricsPage:
    """The content of `/metrics`. Safe to use from several threads."""

    def __init__(
        self, instruments: CollectorRegistry, *, deadline: float = DEADLINE_SECONDS
    ) -> None:
        """A page of this process's own instruments.

        Args:
            instruments: the registry that holds them; the page counts its errors there.
            deadline: how long all sources together may take before the one that is being asked
                is given up, seconds; each further one that hangs has one second at most.
        """
        self._engines: list[GuardedSource] = []
        self._derived: dict[object, GuardedSource] = {}
        self._runtime = GuardedSource(RegistrySource("runtime", instruments))
        self._page = MergedPage()
        # Of the thread that refreshes, one at a time; so is `GuardedSource.current`.
        self._counted: dict[tuple[str, str], int] = {}
        self._failing: dict[str, str] = {}
        self._seen_omissions: tuple[Omission, ...] = ()
        self._omissions: set[Omission] = set()
        self._refreshes = Refreshes(
            self,
            name="metrics",
            deadline=deadline,
            next_deadline=min(deadline, _NEXT_DEADLINE_SECONDS),
        )
        renew_in_child(self)
        self._errors = Counter(
            metric_names.scrape.ERRORS_TOTAL,
            "Scrapes in which a source of engine metrics, one of its files or a series of one was "
            "left out",
            (metric_names.labels.SOURCE, metric_names.labels.REASON),
            registry=instruments,
        )
        self._expect_errors(self._runtime.source.name)

    def renew(self) -> None:
        """Start with a lock that no thread holds."""
        self._changing = threading.Lock()  # held to replace `_engines` and `_derived`

    def add(self, source: MetricsSource, *, expected: frozenset[str] = frozenset()) -> None:
        """Show the families of `source` too; of a series that two have, the first one's stands.

        Args:
            source: whom to ask at each refresh.
            expected: names of families in which it shows this very process, as the runtime and
                other sources may do too: that is no error.
        """
        self._expect_errors(source.name)
        with self._changing:
            self._engines = [*self._engines, GuardedSource(source, expected=expected)]

    def derive(self, derivation: Derivation) -> None:
        """Show too what `derivation` makes of its owner's families, of the same refresh."""

        def given() -> list[Source]:
            engines = [one for one in self._engines if one.source.owner == derivation.owner]
            return [Source(one.source.name, one.current) for one in engines]

        source = DerivedSource(derivation, given)
        self._expect_errors(source.name)
        # A new table: a refresh that goes on in its thread keeps the one that it began with.
        with self._changing:
            self._derived = {**self._derived, derivation: GuardedSource(source)}

    def remove(self, source: MetricsSource | Derivation) -> None:
        """Remove the families of `source` from the page."""
        with self._changing:
            self._engines = [kept for kept in self._engines if kept.source is not source]
            self._derived = {one: kept for one, kept in self._derived.items() if one is not source}

    def _expect_errors(self, name: str) -> None:
        for reason in ("failed", "timeout", "invalid"):
            self._errors.labels(name, reason)

    def refresh(self) -> None:
        """Read all sources; a source that fails or hangs is not on the page.

        Return at once inside a callback: the refresh that calls the callback is running.
        """
        if self._refreshes.in_source:
            return
        refreshed = self.submit(lambda: None)
        while wait([refreshed], self.wait_seconds()).not_done:
            self.give_up_late()
        refreshed.result()

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Refresh the page in its thread, then call `function` there; return its future.

        While the future is not done, wait for `wait_seconds` at most, then call `give_up_late`.
        A caller may stop waiting at any time.
        """
        return self._refreshes.submit(function)

    def wait_seconds(self) -> float:
        """Return the seconds to wait for a refresh before `give_up_late` is called."""
        return self._refreshes.wait_seconds()

    def give_up_late(self) -> None:
        """Give up the source that is being read, if its time is over."""
        self._refreshes.give_up_late()

    def sources(self) -> Sequence[GuardedSource]:
        """See `PageSources`: the runtime comes last, so that errors just counted are shown."""
        return (*self._engines, *self._derived.values(), self._runtime)

    def update(self, source: GuardedSource, result: SourceResult | SourceError) -> None:
        """See `PageSources`."""
        source.current = ()
        source.current = self._current(source.source.name, result)

    def merge(self, sources: Sequence[GuardedSource]) -> None:
        """See `PageSources`: the runtime's own families come first on the page."""
        shown = sorted(sources, key=lambda one: one is not self._runtime)
        self._page.update([Source(one.source.name, one.current) for one in shown])
        self._report_omissions()

    def render(self, selection: Selection = EVERYTHING, *, openmetrics: bool = False) -> bytes:
        """The page as it was at the last refresh.

        Args:
            selection: which families.
            openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.
        """
        return self._page.render(selection, openmetrics=openmetrics)

    def compressed(self, selection: Selection = EVERYTHING, *, openmetrics: bool = False) -> bytes:
        """The same, with gzip; the same bytes as before where nothing changed."""
        return self._page.compressed(selection, openmetrics=openmetrics)

    def _current(self, name: str, result: SourceResult | SourceError) -> Sequence[Family]:
        if isinstance(result, SourceError):
            self._errors.labels(name, result.reason).inc()
            if self._failing.get(name) != result.reason:
                self._failing[name] = result.reason
                logger.warning("metrics of %s are not on the page: %s", name, result)
                logger.debug("metrics of %s", name, exc_info=result.__cause__)
            return ()
        if self._failing.pop(name, None):
            logger.info("metrics of %s are on the page again", name)
        if result.errors is None:
            self._errors.labels(name, "failed").inc()
        else:
            self._count(name, result.errors)
        return result.families

    def _count(self, name: str, errors: Mapping[str, int]) -> None:
        """Count what a source has left out since it was last asked."""
        for reason, count in errors.items():
            key = (name, reason)
            # Fewer than before: a source of the same name was restarted.
            self._errors.labels(*key).inc(max(0, count - self._counted.get(key, 0)))
            self._counted[key] = count

    def _report_omissions(self) -> None:
        """Count and say what two sources both have, where that is not expected."""
        omissions = self._page.omissions
        if omissions is not self._seen_omissions:
            self._seen_omissions = omissions
            everyone = (self._runtime, *self._engines, *self._derived.values())
            by_name = {one.source.name: one for one in everyone}
            unexpected = {part for part in omissions if not self._is_expected(part, by_name)}
            for part in unexpected - self._omissions:
                logger.warning(
                    "%s of %s is not on the page (%s): %s has it", part.family, part.source,
                    part.clash, part.winner,
                )  # fmt: skip
            self._omissions = unexpected
        for part in self._omissions:
            self._errors.labels(part.source, str(part.clash)).inc()

    def _is_expected(self, part: Omission, by_name: Mapping[str, GuardedSource]) -> bool:
        """Whether two sources show one thing, so that nothing is missing on the page.

        Not where one source has a series twice: what a prefix has made of two names, say.
        """
        source, winner = by_name.get(part.source), by_name.get(part.winner)
        if part.clash is not Clash.OVERLAP:
            return False
        if source is None or winner is None:  # just removed
            return True
        if part.family in source.expected:
            return winner is self._runtime or part.family in winner.expected
        return source is not winner and source.source.owner == winner.source.owner
