"""`/engine_metrics`: the engine families of all workers and exporters on one page.

Each series has its `worker_id`. `dynamometer_fleet_up` shows which pages are part of it; the
families of a page that could not be read are missing, never old.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.merging import Merger, Omission, Source
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.relabelling import Relabelling
from dynamometer.exposition.rendering import Renderer
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series, label_text
from dynamometer.exposition.untyped import clashing_in_text, split
from dynamometer.frontend.fleet_fetches import FleetFetches, FleetPages, ProcessPage
from dynamometer.metrics.error_counts import ErrorCounts
from dynamometer.metrics.page_limit import PageLimit
from dynamometer.metrics.refresh import PageRequest
from dynamometer.names import fleet, labels
from dynamometer.process.background import BackgroundThread
from dynamometer.runtime.identity import hexadecimal

logger = logging.getLogger(__name__)

# The label `source` of the errors of this page.
_SOURCE: Final = "fleet"
_UP: Final = Metadata(
    fleet.UP, "gauge", "1 if the page of the process is part of this page, else 0"
)
_LAST_SUCCESS: Final = Metadata(
    fleet.LAST_SUCCESS_TIMESTAMP_SECONDS,
    "gauge",
    "Unix time at which the page of the process was read last; missing if it never was",
)


class FleetPage:
    """Merges the pages of one fetch, once for all who ask at that time."""

    def __init__(
        self, fetches: FleetFetches, thread: BackgroundThread, *, own_id: int, max_bytes: int
    ) -> None:
        """Store the arguments; `render` fetches the pages.

        Args:
            fetches: fetches the pages of all processes.
            thread: merges and renders.
            own_id: the id of this frontend, the `worker_id` of the page's own errors.
            max_bytes: the size of the page, not compressed; see `PageLimit`.
        """
        self._fetches = fetches
        self._thread = thread
        self._own_id = hexadecimal(own_id)
        # The thread owns these attributes.
        self._limit = PageLimit()
        self._limit.max_bytes = max_bytes
        self._errors = ErrorCounts()
        self._errors.add(_SOURCE, "page_bytes", 0)
        self._labelling = Relabelling({labels.WORKER_ID: self._own_id})
        self._overlapping: set[tuple[str, str]] = set()
        self._last: tuple[FleetPages | None, Sequence[Family], Renderer] = (None, (), Renderer())

    async def render(self, request: PageRequest) -> bytes:
        """Fetch the pages of all processes, and return the requested page.

        Raises:
            DynamometerError: The processes are unknown.
        """
        fetched = await self._fetches.fetch(request.selection.names)
        return await self._thread.submit(partial(self._render, fetched, request))

    def _render(self, fetched: FleetPages, request: PageRequest) -> bytes:
        if self._last[0] is not fetched:
            self._last = (fetched, self._assemble(fetched), Renderer())
        _, families, renderer = self._last
        return renderer.render(
            families, request.selection, openmetrics=request.openmetrics, gzip=request.gzip
        )

    def _assemble(self, fetched: FleetPages) -> Sequence[Family]:
        """Return the families of the page; merge twice if the page's error counts change."""
        sources = _untype_conflicts(_sources(fetched.pages))
        if fetched.whole:
            limit = self._limit
        else:  # the page does not show which families fit on the whole page again
            limit = PageLimit()
            limit.max_bytes = self._limit.max_bytes
        own = _fleet_families(fetched.pages)
        families, omissions = self._merge(own, sources, limit)
        self._log_overlaps(omissions)
        for omission in omissions:
            self._errors.add(_SOURCE, str(omission.reason))
        for _ in limit.omitted:
            self._errors.add(_SOURCE, "page_bytes")
        if omissions or limit.omitted:
            families, _ = self._merge(own, sources, limit)
        return families

    def _merge(
        self, own: Sequence[Family], sources: Sequence[Source], limit: PageLimit
    ) -> tuple[Sequence[Family], Sequence[Omission]]:
        merger = Merger()
        errors = self._labelling.apply(self._errors.families)
        counts = Source(_SOURCE, errors, label_text(labels.WORKER_ID, self._own_id))
        # Whole families are limited: one without the series of some workers would be misleading.
        merged = Source(_SOURCE, merger.merge([counts, *sources]))
        limited = limit.apply([Source("", own), merged], whole={""})
        return [family for source in limited for family in source.families], merger.omissions

    def _log_overlaps(self, omissions: Sequence[Omission]) -> None:
        overlapping = {(omission.source, omission.winner) for omission in omissions}
        for source, winner in sorted(overlapping - self._overlapping):
            logger.warning(
                "series of process %s are omitted: process %s has the same series with the same "
                "worker_id", source, winner,
            )  # fmt: skip
        self._overlapping |= overlapping


def _sources(pages: Sequence[ProcessPage]) -> Sequence[Source]:
    """Return the families of all pages; a page's series of other processes come last."""
    own, others = [], []
    for page in pages:
        id_ = hexadecimal(page.record.id)
        own.append(Source(id_, page.families, label_text(labels.WORKER_ID, id_)))
        if page.others:
            others.append(Source(id_, page.others))
    return [*own, *others]


def _fleet_families(pages: Sequence[ProcessPage]) -> Sequence[Family]:
    """Return the families about the pages themselves, without empty families."""
    up, success = [], []
    for page in pages:
        worker = {labels.WORKER_ID: hexadecimal(page.record.id)}
        up.append(Sample(Series.of(fleet.UP, worker), "0.0" if page.error else "1.0"))
        if page.last_success is not None:
            series = Series.of(fleet.LAST_SUCCESS_TIMESTAMP_SECONDS, worker)
            success.append(Sample(series, format_number(page.last_success)))
    families = (Family.of_samples(_UP, up), Family.of_samples(_LAST_SUCCESS, success))
    return [family for family in families if family.samples]


def _untype_conflicts(sources: Sequence[Source]) -> Sequence[Source]:
    """Return the sources without types where versions of an engine disagree about a name."""
    found = {
        (family.metadata.text_name, family.metadata.type): family.metadata
        for source in sources
        for family in source.families
    }
    clashing = clashing_in_text(list(found.values()))
    if not clashing:
        return sources
    return [
        replace(
            source,
            families=[
                part
                for family in source.families
                for part in (split(family) if family.metadata.text_name in clashing else (family,))
            ],
        )
        for source in sources
    ]
