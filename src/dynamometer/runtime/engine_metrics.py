"""The families about an engine's life: its state, restarts, progress, and last changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.merging import Source
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.ordering import sort_key
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series
from dynamometer.metrics.directory_space import DirectorySpace
from dynamometer.metrics.sources import NO_ERRORS
from dynamometer.names import engine_state, labels
from dynamometer.runtime.lifecycle import ExitCause, Lifecycle

_STATE: Final = Metadata(
    engine_state.STATE,
    "gauge",
    "1 if the engine is in this state, else 0; missing for a state that the engine never had",
)
_RESTARTS: Final = Metadata(
    engine_state.RESTARTS_TOTAL.removesuffix("_total"),
    "counter",
    "Restarts of the engine, by the cause of the exit before",
)
_PROGRESS: Final = Metadata(
    engine_state.LAST_PROGRESS_TIMESTAMP_SECONDS,
    "gauge",
    "Unix time of the last proof that the data-parallel rank works",
)
_CHANGE: Final = Metadata(
    engine_state.LAST_CHANGE_TIMESTAMP_SECONDS,
    "gauge",
    "Unix time of the scrape that found the last change of a total that only requests change",
)
_START: Final = Metadata(
    engine_state.START_TIME_SECONDS, "gauge", "Unix time of the start of the engine's process"
)
_EXIT_CODE: Final = Metadata(
    engine_state.LAST_EXIT_CODE,
    "gauge",
    "Exit code of the last engine that ended; -N if signal N killed it",
)
_DIRECTORY: Final = Metadata(
    engine_state.DIRECTORY_BYTES, "gauge", "Bytes that the engine's metrics files occupy"
)
_AVAILABLE: Final = Metadata(
    engine_state.DIRECTORY_AVAILABLE_BYTES,
    "gauge",
    "Bytes that the file system of the engine's metrics files has left",
)
# By the name and the value of the series' own label, if it has one.
_Values: TypeAlias = Mapping[tuple[str, str] | None, float]
# Gauges are not compared: those of an ended process disappear, and a health check moves many.
_TOTALS: Final = frozenset({"counter", "histogram", "summary"})


@dataclass(frozen=True, kw_only=True)
class RequestTotals:
    """The totals that only requests change: neither a health check, nor a scrape, nor time.

    Attributes:
        prefixes: the beginnings of the names of an engine's families.
        excluded: the beginnings of the names of families that also change without a request.
        parts: for a family that changes without a request in part, the text of the label that the
            series of the other part have.
    """

    prefixes: tuple[str, ...]
    excluded: tuple[str, ...]
    parts: Mapping[str, str]

    def values(self, family: Family | None) -> Sequence[str]:
        """Return the values in a family that only requests change."""
        if family is None or family.metadata.type not in _TOTALS:
            return []
        name = family.metadata.sample_name
        if not name.startswith(self.prefixes) or name.startswith(self.excluded):
            return []
        part = self.parts.get(name, "")
        return [sample.value for sample in family.samples if part in sample.series.text]


class EngineMetrics:
    """The families about one engine's life, as a source of the page; see `MetricsSource`.

    The event loop calls `note_progress` and changes the lifecycle; the page's thread only reads.
    """

    def __init__(
        self,
        owner: str,
        lifecycle: Lifecycle,
        constant_labels: Callable[[], Mapping[str, str]],
        current_sources: Callable[[str], Sequence[Source]],
        *,
        totals: RequestTotals,
        directories: Callable[[], Sequence[str]],
        empty_at_start: bool,
        nodes: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Create the families of one engine; `MetricsPage.add_derived` shows them.

        Args:
            owner: the owner of the sources that read the engine.
            lifecycle: the state of the engine.
            constant_labels: returns the labels of all series; called at each refresh.
            current_sources: see `MetricsPage.current_sources`.
            totals: the totals that only requests change.
            directories: returns the directories of the engine's metrics files.
            empty_at_start: the engine has no values yet, so that its first ones are a change.
            nodes: the number of nodes of the engine; one node cannot lose another.
            clock: returns the Unix time.
        """
        self.name = f"{owner}_state"
        self.owner = owner
        self._lifecycle = lifecycle
        self._constant_labels = constant_labels
        self._current_sources = current_sources
        self._changes = _Changes(totals, empty_at_start=empty_at_start)
        self._space = DirectorySpace(directories)
        self._causes = [c for c in ExitCause if nodes > 1 or c is not ExitCause.NODE_LOST]
        self._clock = clock
        self._progress: Mapping[str, float] = {}  # replaced by the event loop
        # The page's thread owns these: the families, and what each was made from.
        self._families: tuple[Family, ...] = ()
        self._known: dict[str, tuple[Mapping[str, str], _Values, Family]] = {}

    @property
    def errors(self) -> Mapping[str, int]:
        """Empty: see `MetricsSource.errors`."""
        return NO_ERRORS

    def note_progress(self, rank: str, unix_time: float) -> None:
        """Record a proof that a data-parallel rank works, also after the clock was set back.

        Args:
            rank: the value of the label `dp_rank`.
            unix_time: the time of the proof, in seconds.
        """
        self._progress = {**self._progress, rank: unix_time}

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        self._changes.note(self._current_sources(self.owner), self._clock())
        constant = self._constant_labels()
        families = tuple(
            self._family(metadata, constant, values)
            for metadata, values in self._values().items()
            if values
        )
        if families != self._families:  # a family is equal only to itself
            self._families = families
        return self._families

    def _values(self) -> Mapping[Metadata, _Values]:
        life, space = self._lifecycle, self._space.measure()
        state, change = life.state, self._changes.last_at
        code = life.last_exit.code if life.last_exit is not None else None
        return {
            _STATE: {(labels.STATE, one): one is state for one in {*life.past_states, state}},
            _RESTARTS: {(labels.REASON, cause): life.restarts[cause] for cause in self._causes},
            _PROGRESS: {(labels.DP_RANK, rank): at for rank, at in self._progress.items()},
            _CHANGE: {} if change is None else {None: change},
            _START: {} if life.started_at is None else {None: life.started_at},
            _EXIT_CODE: {} if code is None else {None: code},
            _DIRECTORY: {} if space is None else {None: space.used},
            _AVAILABLE: {} if space is None else {None: space.available},
        }

    def _family(self, metadata: Metadata, constant: Mapping[str, str], values: _Values) -> Family:
        """Return the family with these values: the same object as before if nothing changed."""
        known = self._known.get(metadata.name)
        if known is not None and known[:2] == (constant, values):
            return known[2]
        by_series = {
            Series.of(metadata.text_name, {**constant, **dict([own] if own else [])}): value
            for own, value in values.items()
        }
        samples = [
            Sample(one, format_number(by_series[one])) for one in sorted(by_series, key=sort_key)
        ]
        family = Family.of_samples(metadata, samples)
        self._known[metadata.name] = (dict(constant), values, family)
        return family


class _Changes:
    """The time of the last change of the totals, as refreshes of the page find it."""

    def __init__(self, totals: RequestTotals, *, empty_at_start: bool) -> None:
        self.last_at: float | None = None
        self._totals = totals
        self._empty_at_start = empty_at_start
        self._known: dict[str, Sequence[Family]] = {}

    def note(self, sources: Sequence[Source], now: float) -> None:
        """Compare the families of all sources with those of the last refresh."""
        for source in sources:
            before = self._known.get(source.name, ())
            self._known[source.name] = source.families
            first = not before and not self._empty_at_start
            if source.families is not before and not first and self._changed(before, source):
                self.last_at = now

    def _changed(self, before: Sequence[Family], source: Source) -> bool:
        known = {family.name: family for family in before}
        values = self._totals.values
        return any(
            family is not known.get(family.name)
            and values(family) != values(known.get(family.name))
            for family in source.families
        )
