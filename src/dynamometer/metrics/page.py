"""The page: the merged families of all sources.

A fault of a source affects only that source's families.
"""

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
from dynamometer.metrics.page_limit import PageLimit
from dynamometer.metrics.refresh import PageRequest, Refreshes
from dynamometer.metrics.sources import MetricsSource, RegistrySource, check_seconds, check_source
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)

SOURCE_DEADLINE_SECONDS: Final = 5.0
# The deadline of each further source that hangs in the same refresh.
_NEXT_DEADLINE_SECONDS: Final = 1.0


class MetricsPage:
    """The content of `/metrics`. Safe to use from several threads."""

    def __init__(
        self, instruments: CollectorRegistry, *, deadline: float = SOURCE_DEADLINE_SECONDS
    ) -> None:
        """Create a page with the metrics of this process; `add` adds other sources.

        Args:
            instruments: the registry of this process's own metrics.
            deadline: the seconds that a refresh may take before the source that is being read is
                skipped. Each further source that hangs may take one second.

        Raises:
            ArgumentError: `deadline` is not a number above 0.
        """
        check_seconds("deadline", deadline)
        self._added_sources: list[GuardedSource] = []
        self._derived_sources: dict[object, GuardedSource] = {}
        self._runtime_source = GuardedSource(RegistrySource("runtime", instruments))
        # The thread that refreshes owns these attributes, and `GuardedSource.current`.
        self._errors = ErrorCounts()
        self._limit = PageLimit()
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
        self._lock = threading.Lock()  # held to replace `_added_sources` and `_derived_sources`
        # The thread that refreshes owns the merger; any thread may read `Merger.families`.
        self._merger = Merger()
        self._renderer = Renderer()

    def add(self, source: MetricsSource, *, expected: frozenset[str] = frozenset()) -> None:
        """Add `source` to the page; a series that two sources have is shown from the first one.

        Args:
            source: the source, which each refresh reads.
            expected: names of families that describe this process, so that the runtime or another
                source may have the same series. Such a series is omitted without an error.

        Raises:
            ArgumentError: `source` does not have the attributes of a source.
        """
        check_source(source)
        with self._lock:
            self._added_sources = [*self._added_sources, GuardedSource(source, expected=expected)]

    def derive(self, derivation: Derivation) -> None:
        """Add the families that `derivation` derives from its owner's families at each refresh."""
        self._add_derived(derivation, DerivedSource(derivation, self.current_sources))

    def add_derived(self, source: MetricsSource) -> None:
        """Add a source that reads `current_sources`, and so is read after the other sources.

        Its families stay on a page that is too large.
        """
        self._add_derived(source, source)

    def _add_derived(self, key: object, source: MetricsSource) -> None:
        # Replace the dict: a refresh that is running still uses the old one.
        with self._lock:
            self._derived_sources = {**self._derived_sources, key: GuardedSource(source)}

    def current_sources(self, owner: str) -> Sequence[Source]:
        """Return the sources of an owner, with the families that the running refresh has read."""
        sources = [one for one in self._added_sources if one.source.owner == owner]
        return [Source(one.source.name, one.current) for one in sources]

    def remove(self, source: MetricsSource | Derivation) -> None:
        """Remove the families of `source` from the page."""
        with self._lock:
            self._added_sources = [
                kept for kept in self._added_sources if kept.source is not source
            ]
            self._derived_sources = {
                one: kept for one, kept in self._derived_sources.items() if one is not source
            }

    def limit_size(self, max_bytes: int) -> None:
        """Omit the largest families of a page with more bytes; call before the first refresh."""
        self._limit.max_bytes = max_bytes

    def refresh(self) -> None:
        """Read all sources; a source that fails or hangs is not on the page.

        A callback that calls this method returns at once, because a refresh is running already.
        """
        if self._refreshes.called_by_source:
            return
        refreshed = self.submit()
        while wait([refreshed], self.wait_seconds()).not_done:
            self.give_up_late()
        refreshed.result()

    def submit(self, request: PageRequest | None = None) -> Future[bytes]:
        """Start to refresh and render the page in the page's thread; return a future of the bytes.

        While the future is not done, the caller waits for at most `wait_seconds`, calls
        `give_up_late`, and waits again. The caller may stop waiting at any time.

        Args:
            request: the page to render; None to refresh only, with an empty result.
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
        return self.answer(PageRequest(selection, openmetrics))

    def answer(self, request: PageRequest) -> bytes:
        """Return the requested page as of the last refresh; see `RefreshedPage`."""
        return self._renderer.render(
            self._merger.families,
            request.selection,
            openmetrics=request.openmetrics,
            gzip=request.gzip,
        )

    def sources(self) -> Sequence[GuardedSource]:
        """See `RefreshedPage`; the runtime is read last, so that its metrics are the newest."""
        return (*self._added_sources, *self._derived_sources.values(), self._runtime_source)

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
        """Count a failure; log the first failure in a row, and each change of its reason."""
        self._errors.add(name, error.reason)
        if self._failing.get(name) != error.reason:
            self._failing[name] = error.reason
            logger.warning("metrics of %s are not on the page: %s", name, error)
            logger.debug("metrics of %s", name, exc_info=error.__cause__)

    def merge(self, sources: Sequence[GuardedSource]) -> None:
        """See `RefreshedPage`; merge twice if the first merge changes the page's error counts."""
        shown = sorted(sources, key=lambda one: one is not self._runtime_source)
        for one in shown:
            self._errors.show_from_zero(one.source.name)
        self._merge(shown)
        omitted = self._count_omissions()
        for oversized in self._limit.omitted:
            self._errors.add(oversized.source, "page_bytes")
        if omitted or self._limit.omitted:
            self._merge(shown)

    def _merge(self, shown: Sequence[GuardedSource]) -> None:
        runtime = self._runtime_source.source.name
        counts = Source(runtime, self._errors.families)
        sources = [counts, *(Source(one.source.name, one.current) for one in shown)]
        kept = {one.source.name for key, one in self._derived_sources.items() if key is one.source}
        self._merger.merge(self._limit.apply(sources, whole={runtime, *kept}))

    def _count_omissions(self) -> bool:
        """Count and log the unexpected omissions of the last merge; return whether any exist."""
        omissions = self._merger.omissions
        if omissions is not self._known_omissions:
            self._known_omissions = omissions
            all_sources = (
                self._runtime_source,
                *self._added_sources,
                *self._derived_sources.values(),
            )
            by_name = {one.source.name: one for one in all_sources}
            unexpected = {
                omission for omission in omissions if not self._is_expected(omission, by_name)
            }
            for omission in unexpected - self._unexpected:
                logger.warning(
                    "%s of %s is not on the page (%s): %s has precedence", omission.family,
                    omission.source, omission.reason, omission.winner,
                )  # fmt: skip
            self._unexpected = unexpected
        for omission in self._unexpected:
            self._errors.add(omission.source, str(omission.reason))
        return bool(self._unexpected)

    def _is_expected(self, omission: Omission, by_name: Mapping[str, GuardedSource]) -> bool:
        """Return whether two sources may have the same series without a fault.

        A series that occurs twice in one source is always a fault: for example, an added prefix may
        have given two families the same name.
        """
        source, winner = by_name.get(omission.source), by_name.get(omission.winner)
        if omission.reason is not OmissionReason.OVERLAP:
            return False
        if source is None or winner is None:  # removed during this refresh
            return True
        if omission.family in source.expected:
            return winner is self._runtime_source or omission.family in winner.expected
        return source is not winner and source.source.owner == winner.source.owner
