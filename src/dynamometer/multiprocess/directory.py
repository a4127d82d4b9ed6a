"""A directory of multiprocess files as one page."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self

from prometheus_client import Metric

from dynamometer.exposition.conversion import to_metric
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import Selection
from dynamometer.exposition.rendering import Renderer
from dynamometer.multiprocess.reader import Reader
from dynamometer.multiprocess.tree import FileTree
from dynamometer.process.forks import renew_in_child

DEFAULT_MAX_SERIES: Final = 200_000


class MultiprocessDirectory:
    """A directory of multiprocess files, kept current from one call to the next.

    A context manager that closes its files at the end; a directory that is dropped without
    `close` closes them as well. A child of `fork` inherits no open file and reads for itself
    from the start, without the totals of files that its parent saw go. Safe to use from several
    threads. A method waits while another thread reads, and while a file system hangs, unless its
    docstring says otherwise. No file makes a call fail: `errors` counts what was skipped.
    """

    def __init__(
        self,
        path: os.PathLike[str] | str,
        *,
        labels: Mapping[str, str] | None = None,
        owned: bool = False,
        keep_totals: bool = False,
        max_series: int = DEFAULT_MAX_SERIES,
        recursive: bool = True,
    ) -> None:
        """Read nothing yet; the directory may be created later.

        Args:
            path: the directory of the files; see `follow` for several.
            labels: constant labels, added to each series that does not have them.
            owned: whether `retire` may remove files.
            keep_totals: what was counted in files that are gone stays in the totals, as it does
                after `retire`; prometheus_client's own collector forgets it. No total falls, and a
                file that is missing or odd for a reading counts nothing twice: one that comes
                back adds what it has above what it had, unless most of its values are at most
                half, as those of another process are.
            max_series: the most series that are shown: the first ones, where a histogram that
                has begun is finished. Where series go, others take their place at once.
            recursive: whether files in the tree below count too; SGLang creates a directory
                inside.
        """
        self._owned = owned
        self._closed = False
        self._paths: Sequence[str] = (os.fspath(path),)
        self._recursive = recursive
        self._new_reader = partial(
            Reader, labels=dict(labels or {}), max_series=max_series, keep_totals=keep_totals
        )
        renew_in_child(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def renew(self) -> None:
        """Start with nothing read, as each child of `fork` does."""
        # The lock owns everything below but `_pages`, which has its own; `_reader.families` and
        # `_reader.errors` are replaced as a whole, and any thread may read them.
        self._lock = threading.Lock()
        self._reading: Iterator[None] | None = None
        self._renderer = Renderer()
        self._tree = FileTree(*self._paths, recursive=self._recursive)
        self._reader = self._new_reader(self._tree)

    @property
    def errors(self) -> Mapping[str, int]:
        """How often a file, or series of one, was skipped in a reading, by reason.

        The counts only grow. docs/multiprocess.md lists the reasons. Does not wait.
        """
        return self._reader.errors

    def families(self) -> tuple[Family, ...]:
        """Read the files, and return the families, sorted by name.

        A family in which nothing changed is the same object as before, and the tuple is the
        same where nothing changed at all.

        Raises:
            ValueError: the directory is closed.
        """
        with self._lock:
            self._read()
            return self._reader.families

    def current_families(self) -> tuple[Family, ...]:
        """Return the families as they were last read; see `refresh_steps`. Does not wait."""
        return self._reader.families

    def refresh_steps(self, *, seconds: float = 0.002) -> Iterator[None]:
        """Read in steps, so that a first reading leaves pauses for an event loop.

        Another call in between finishes the reading. A step waits like other methods: where the
        file system may hang, call `families` in a thread instead.

        Args:
            seconds: about how long a step takes.

        Raises:
            ValueError: the directory is closed.
        """
        with self._lock:
            if self._reading is None:
                self._reading = self._begun()
            mine = self._reading
        while True:
            with self._lock:
                if self._reading is not mine or self._advance(seconds):
                    return
            yield

    def render(
        self,
        *,
        prefixes: Sequence[str] = (),
        names: Sequence[str] = (),
        exclude_prefixes: Sequence[str] = (),
        openmetrics: bool = False,
    ) -> bytes:
        """Read the files, and return the page of the chosen families.

        Args:
            prefixes: only families whose name begins with one of these; all if empty.
            names: only families that have a sample of one of these names; all if empty.
            exclude_prefixes: no families whose name begins with one of these.
            openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.

        Raises:
            TypeError: one of the sequences is a single string.
            ValueError: the directory is closed.
        """
        selection = Selection.of(prefixes=prefixes, names=names, exclude_prefixes=exclude_prefixes)
        return self._renderer.render(self.families(), selection, openmetrics=openmetrics)

    def collect(self) -> Iterable[Metric]:
        """Read the files, and return prometheus_client's `Metric` of each family.

        Samples are created when they are first used.

        Raises:
            ValueError: the directory is closed.
        """
        return [to_metric(family) for family in self.families()]

    def retire(self, pids: Iterable[int | str]) -> None:
        """Keep what ended processes have counted, and drop their gauges.

        Their counters, histograms and summaries stay in the totals. Their files are removed
        where the directory is owned, and read like others otherwise. A process that gets such a
        pid again and continues an old file is noticed, and nothing counts twice.

        Args:
            pids: the processes, as the files' names have them.

        Raises:
            TypeError: `pids` is a single string.
            ValueError: the directory is closed.
        """
        if isinstance(pids, str):
            raise TypeError(f"pids must be a list of processes, not {pids!r}")
        processes = frozenset(str(pid) for pid in pids)
        with self._lock:
            self._read()
            self._reader.retire(processes, owned=self._owned)

    def resume(self, pids: Iterable[int | str]) -> None:
        """Show the gauges of these processes again, from the next reading on: they live after all.

        Args:
            pids: retired processes, as the files' names have them.

        Raises:
            TypeError: `pids` is a single string.
        """
        if isinstance(pids, str):
            raise TypeError(f"pids must be several identifiers, not {pids!r}")
        with self._lock:
            self._reader.resume(frozenset(str(pid) for pid in pids))

    def follow(self, *paths: os.PathLike[str] | str) -> None:
        """Read other directories from the next reading on; the former files are gone then.

        Args:
            paths: the directories.
        """
        with self._lock:
            self._paths = self._tree.paths = tuple([os.fspath(path) for path in paths])

    @property
    def paths(self) -> Sequence[str]:
        """The directories that are read. Does not wait."""
        return self._paths

    @property
    def processes(self) -> Mapping[str, Sequence[str]]:
        """The paths of the files that each process has, as of the last reading."""
        with self._lock:
            return self._reader.processes

    def close(self) -> None:
        """Close all files for good; `current_families` stays as it was."""
        with self._lock:
            self._reading = None
            self._closed = True
            self._reader.close()

    def _begun(self) -> Iterator[None]:
        if self._closed:
            raise ValueError("the directory is closed")
        return self._reader.steps()

    def _read(self) -> None:
        """Finish the reading that has begun, and make one of now."""
        self._finish()
        self._reading = self._begun()
        self._finish()

    def _finish(self) -> None:
        """Finish the reading that has begun, if there is one."""
        reading, self._reading = self._reading, None
        if reading is not None:
            with _no_collection():
                for _ in reading:
                    pass

    def _advance(self, seconds: float) -> bool:
        """Go on with the reading for a while; whether it is complete."""
        reading = self._reading
        assert reading is not None
        end = time.perf_counter() + seconds
        self._reading = None  # not kept where a step fails
        for _ in reading:
            if time.perf_counter() >= end:
                self._reading = reading
                return False
        return True


@contextmanager
def _no_collection() -> Iterator[None]:
    """Put off the garbage collector.

    A first reading makes many short-lived containers and no cycles; a collection in its midst
    walks them all, and holds every thread of the process for that long.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
