"""The page: the families of all sources, merged; a fault affects only its source's families."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Final

from prometheus_client import CollectorRegistry

from dynamometer.exposition.filters import EVERYTHING, Selection
from dynamometer.exposition.merging import Merger, Omission, OmissionReason, Source
from dynamometer.exposition.rendering import Renderer
from dynamometer.metrics.derivation import Derivation, DerivedSource
from dynamometer.metrics.error_counts import ErrorCounts
from dynamometer.metrics.guarded_source import GuardedSource, SourceError, SourceResult
from dynamometer.metrics.refresh import PageRequest, Refreshes
from dynamometer.metrics.sources import MetricsSource, RegistrySource
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)

DEADLINE_SECONDS: Final = 5.0
# The deadline of each further source that hangs in the same refresh.
_NEXT_DEADLINE_SECONDS: Final = 1.0


class MetricsPage:
    """The content of `/metrics`. Safe to use from several threads."""

    def __init__(
        self, instruments: CollectorRegistry, *, deadline: float = DEADLINE_SECONDS
    ) -> None:
        """Create a page with the metrics of this process; `add` adds other sources.

        Args:
            instruments: the registry of this process's own metrics.
            deadline: the seconds that all sources together may take before the running source is
                skipped; each further source that hangs may take one second.
        """
        self._engines: list[GuardedSource] = []
        self._derived: dict[object, GuardedSource] = {}
        self._runtime = GuardedSource(RegistrySource("runtime", instruments))
        # The thread that refreshes owns these attributes, and `GuardedSource.current`.
        self._errors = ErrorCounts()
        self._failing: dict[str, str] = {}
        self._known_omissions: tuple[Omission, ...] = ()
        self._unexpected: set[Omission] = set()
        self._refreshes = Refreshes(
            self,
            name="metrics",
            deadline=deadline,
            next_deadline=min(deadline, _NEXT_DEADLINE_SECONDS),
        )
        renew_in_child(self)

    def renew(self) -> None:
        """Create a new lock: another thread may have held the old one at the fork."""
        self._changing = threading.Lock()  # held to replace `_engines` and `_derived`
        # The thread that refreshes owns the merger; any thread may read `families`.
        self._merger = Merger()
        self._renderer = Renderer()

    def add(self, source: MetricsSource, *, expected: frozenset[str] = frozenset()) -> None:
        """Add the families of `source`; of a series in two sources, the first source wins.

        Args:
            source: the source, which each refresh reads.
            expected: names of families that describe this process, and that the runtime or another
                source may have too: such a series is omitted without an error.
        """
        with self._changing:
            self._engines = [*self._engines, GuardedSource(source, expected=expected)]

    def derive(self, derivation: Derivation) -> None:
        """Add the families that `derivation` derives from its owner's families at each refresh."""
        source = DerivedSource(derivation, self.current_sources)
        # A new table: a refresh that is running keeps the table that it began with.
        with self._changing:
            self._derived = {**self._derived, derivation: GuardedSource(source)}

    def current_sources(self, owner: str) -> Sequence[Source]:
        """Return the sources of an owner with the families that this refresh has read."""
        engines = [one for one in self._engines if one.source.owner == owner]
        return [Source(one.source.name, one.current) for one in engines]

    def remove(self, source: MetricsSource | Derivation) -> None:
        """Remove the families of `source` from the page."""
        with self._changing:
            self._engines = [kept for kept in self._engines if kept.source is not source]
            self._derived = {one: kept for one, kept in self._derived.items() if one is not source}

    def refresh(self) -> None:
        """Read all sources; a source that fails or hangs is not on the page.

        Return at once inside a callback: the refresh that calls the callback is running.
        """
        if self._refreshes.in_source:
            return
        refreshed = self.submit()
        while wait([refreshed], self.wait_seconds()).not_done:
            self.give_up_late()
        refreshed.result()

    def submit(self, request: PageRequest | None = None) -> Future[bytes]:
        """Refresh and render the page in its thread; return the future of the bytes.

        While the future is not done, wait for `wait_seconds` at most, then call `give_up_late`.
        A caller may stop waiting at any time.

        Args:
            request: the page to render; None renders nothing, and the result is empty.
        """
        return self._refreshes.submit(request)

    def wait_seconds(self) -> float:
        """Return the seconds to wait for a refresh before `give_up_late` is called."""
        return self._refreshes.wait_seconds()

    def give_up_late(self) -> None:
        """Skip the source that is being read, if its deadline has passed."""
        self._refreshes.give_up_late()

    def render(self, selection: Selection = EVERYTHING, *, openmetrics: bool = False) -> bytes:
        """Return the page as of the last refresh.

        Args:
            selection: the families to render.
            openmetrics: True for OpenMetrics 1.0.0, False for text 0.0.4.
        """
        return self._renderer.render(self._merger.families, selection, openmetrics=openmetrics)

    def compressed(self, selection: Selection = EVERYTHING, *, openmetrics: bool = False) -> bytes:
        """Return the same page compressed with gzip; see `render`."""
        families = self._merger.families
        return self._renderer.render(families, selection, openmetrics=openmetrics, gzip=True)

    def answer(self, request: PageRequest) -> bytes:
        """Return the requested page as of the last refresh; see `RefreshedPage`."""
        render = self.compressed if request.gzip else self.render
        return render(request.selection, openmetrics=request.openmetrics)

    def sources(self) -> Sequence[GuardedSource]:
        """See `RefreshedPage`: the runtime comes last, so that its metrics are the newest."""
        return (*self._engines, *self._derived.values(), self._runtime)

    def update(self, source: GuardedSource, result: SourceResult | SourceError) -> None:
        """See `RefreshedPage`; count the errors of the source."""
        source.current = ()
        name = source.source.name
        if isinstance(result, SourceError):
            self._note_failure(name, result)
            return
        if self._failing.pop(name, None):
            logger.info("metrics of %s are on the page again", name)
        if result.errors is None:
            self._errors.add(name, "failed")
        else:
            self._errors.add_reported(name, result.errors)
        source.current = result.families

    def _note_failure(self, name: str, error: SourceError) -> None:
        """Count a failure, and log the first one, and each change of its reason."""
        self._errors.add(name, error.reason)
        if self._failing.get(name) != error.reason:
            self._failing[name] = error.reason
            logger.warning("metrics of %s are not on the page: %s", name, error)
            logger.debug("metrics of %s", name, exc_info=error.__cause__)

    def merge(self, sources: Sequence[GuardedSource]) -> None:
        """See `RefreshedPage`; the counts on the page include the omissions of this merge."""
        shown = sorted(sources, key=lambda one: one is not self._runtime)
        for one in shown:
            self._errors.expect(one.source.name)
        self._merge(shown)
        if self._count_omissions():
            self._merge(shown)

    def _merge(self, shown: Sequence[GuardedSource]) -> None:
        counts = Source(self._runtime.source.name, self._errors.families)
        self._merger.merge([counts, *(Source(one.source.name, one.current) for one in shown)])

    def _count_omissions(self) -> bool:
        """Count and log the unexpected omissions of the last merge; return whether any exist."""
        omissions = self._merger.omissions
        if omissions is not self._known_omissions:
            self._known_omissions = omissions
            everyone = (self._runtime, *self._engines, *self._derived.values())
            by_name = {one.source.name: one for one in everyone}
            unexpected = {part for part in omissions if not self._is_expected(part, by_name)}
            for part in unexpected - self._unexpected:
                logger.warning(
                    "%s of %s is not on the page (%s): %s has precedence", part.family,
                    part.source, part.reason, part.winner,
                )  # fmt: skip
            self._unexpected = unexpected
        for part in self._unexpected:
            self._errors.add(part.source, str(part.reason))
        return bool(self._unexpected)

    def _is_expected(self, part: Omission, by_name: Mapping[str, GuardedSource]) -> bool:
        """Return whether two sources show the same series on purpose.

        A series that occurs twice in one source is never expected: an added prefix, for example,
        may have made one name of two.
        """
        source, winner = by_name.get(part.source), by_name.get(part.winner)
        if part.reason is not OmissionReason.OVERLAP:
            return False
        if source is None or winner is None:  # removed during this refresh
            return True
        if part.family in source.expected:
            return winner is self._runtime or part.family in winner.expected
        return source is not winner and source.source.owner == winner.source.owner
