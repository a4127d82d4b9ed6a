"""A directory of multiprocess files as one page."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self

from prometheus_client import Metric

from dynamometer.exposition.conversion import to_metric
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import Selection
from dynamometer.exposition.label_bounds import LabelBounds
from dynamometer.exposition.rendering import Renderer
from dynamometer.multiprocess.reader import Reader
from dynamometer.multiprocess.tree import FileTree
from dynamometer.process.forks import renew_in_child

DEFAULT_MAX_SERIES: Final = 200_000


class MultiprocessDirectory:
    """A directory of multiprocess files, read incrementally from one call to the next.

    A context manager that closes its files at the end; a directory that is deleted without
    `close` closes them as well. A child of `fork` inherits no open file and reads for itself
    from the start, without the kept counts of its parent. Safe to use from several threads. A
    method waits while another thread reads, and while a file system hangs, unless its docstring
    states otherwise. A bad file never makes a call fail: `errors` counts the omissions.
    """

    def __init__(
        self,
        path: os.PathLike[str] | str,
        *,
        labels: Mapping[str, str] | None = None,
        owned: bool = False,
        keep_totals: bool = False,
        max_series: int = DEFAULT_MAX_SERIES,
        label_bounds: LabelBounds | None = None,
        recursive: bool = True,
    ) -> None:
        """Describe a directory, which may be created later; no file is read yet.

        Args:
            path: the directory of the files; see `follow` for several.
            labels: constant labels, added to each series that does not have them.
            owned: whether `retire` may remove files.
            keep_totals: whether the counts of missing files stay in the totals, as after
                `retire`; prometheus_client's own collector forgets them. No total falls, except
                a sum to which a process adds negative amounts. A file that is missing or has wrong
                values for a reading does not count twice. A file that returns adds only its
                increase. If most of its values are at most half of the former ones, the file is of
                another process, and all its values are added.
            max_series: the maximum number of series. The first ones are shown, and a histogram
                that is partly shown is completed. Other series replace removed ones at once.
            label_bounds: the bounds of label values that clients choose; None for no bounds. A
                child of `fork` keeps the values that its parent kept.
            recursive: whether the files of subdirectories count too; SGLang creates a
                subdirectory.
        """
        self._owned = owned
        self._closed = False
        self._paths: Sequence[str] = (os.fspath(path),)
        self._recursive = recursive
        self._new_reader = partial(
            Reader,
            labels=dict(labels or {}),
            max_series=max_series,
            keep_totals=keep_totals,
            label_bounds=label_bounds,
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
        """Forget all files; each child of `fork` starts with this call."""
        # The lock owns all attributes except `_renderer`, which has its own. `_reader.families` and
        # `_reader.errors` are replaced as a whole, so that any thread may read them.
        self._lock = threading.Lock()
        self._renderer = Renderer()
        self._tree = FileTree(*self._paths, recursive=self._recursive)
        self._reader = self._new_reader(self._tree)

    @property
    def errors(self) -> Mapping[str, int]:
        """The number of omissions of a file, or of some of its series, by reason.

        Each reading adds to the counts. docs/multiprocess.md lists the reasons. Does not wait.
        """
        return self._reader.errors

    def families(self) -> tuple[Family, ...]:
        """Read the files, and return the families, sorted by name.

        A family in which nothing changed is the same object as before; the tuple is the same
        object where no family changed.

        Raises:
            ValueError: The directory is closed.
        """
        with self._lock:
            self._read()
            return self._reader.families

    def continue_faults(self, former: MultiprocessDirectory) -> None:
        """Continue the `errors` of `former`, which read the same files; do not log them again.

        Call this method before the first reading, and do not read `former` afterwards.
        """
        self._reader.continue_faults(former._reader)

    def current_families(self) -> tuple[Family, ...]:
        """Return the families of the last reading. Does not wait."""
        return self._reader.families

    def refresh_steps(self, *, seconds: float = 0.002) -> Iterator[None]:
        """Read in a thread, and yield until the reading is complete.

        An event loop can run at each yield. The iterator waits like other methods: where the file
        system may hang, call `families` in a thread instead.

        Args:
            seconds: the longest wait between two yields.

        Raises:
            ValueError: The directory is closed.
        """
        with ThreadPoolExecutor(max_workers=1) as executor:
            reading = executor.submit(self.families)
            while wait([reading], seconds).not_done:
                yield
            reading.result()

    def render(
        self,
        *,
        prefixes: Sequence[str] = (),
        names: Sequence[str] = (),
        exclude_prefixes: Sequence[str] = (),
        openmetrics: bool = False,
    ) -> bytes:
        """Read the files, and return the page of the selected families.

        Args:
            prefixes: select families whose name begins with one of these; all if empty.
            names: select families that have a sample of one of these names; all if empty.
            exclude_prefixes: omit families whose name begins with one of these.
            openmetrics: render OpenMetrics 1.0.0 instead of text 0.0.4.

        Raises:
            TypeError: One of the sequences is a single string.
            ValueError: The directory is closed.
        """
        selection = Selection.of(prefixes=prefixes, names=names, exclude_prefixes=exclude_prefixes)
        return self._renderer.render(self.families(), selection, openmetrics=openmetrics)

    def collect(self) -> Iterable[Metric]:
        """Read the files, and return prometheus_client's `Metric` of each family.

        Samples are created when they are first used.

        Raises:
            ValueError: The directory is closed.
        """
        return [to_metric(family) for family in self.families()]

    def retire(self, pids: Iterable[int | str]) -> None:
        """Keep the counts of ended processes, and hide their gauges.

        Their counters, histograms and summaries stay in the totals. Their files are removed
        where the directory is owned, and read like others otherwise. A new process with the same
        pid that continues an old file shows its gauges again, and no count is added twice.

        Args:
            pids: the processes' identifiers, as in the names of their files.

        Raises:
            TypeError: `pids` is a single string.
            ValueError: The directory is closed.
        """
        if isinstance(pids, str):
            raise TypeError(f"pids must be a list of identifiers, not {pids!r}")
        processes = frozenset(str(pid) for pid in pids)
        with self._lock:
            self._read()
            self._reader.retire(processes, owned=self._owned)

    def resume(self, pids: Iterable[int | str]) -> None:
        """End the retirement of processes: the next reading shows their gauges again.

        Args:
            pids: the processes' identifiers, as in the names of their files.

        Raises:
            TypeError: `pids` is a single string.
        """
        if isinstance(pids, str):
            raise TypeError(f"pids must be a list of identifiers, not {pids!r}")
        with self._lock:
            self._reader.resume(frozenset(str(pid) for pid in pids))

    def follow(self, *paths: os.PathLike[str] | str) -> None:
        """Read other directories from the next reading on; the former files are missing then.

        Args:
            paths: the directories.
        """
        with self._lock:
            self._paths = self._tree.paths = tuple([os.fspath(path) for path in paths])

    @property
    def paths(self) -> Sequence[str]:
        """The paths of the directories. Does not wait."""
        return self._paths

    @property
    def processes(self) -> Mapping[str, Sequence[str]]:
        """The paths of each process's files, as of the last reading."""
        with self._lock:
            return self._reader.processes

    def close(self) -> None:
        """Close all files; later readings raise `ValueError`, `current_families` still works."""
        with self._lock:
            self._closed = True
            self._reader.close()

    def _read(self) -> None:
        """Read the files; the caller holds the lock."""
        if self._closed:
            raise ValueError("the directory is closed")
        with _paused_garbage_collection():
            self._reader.read()


@contextmanager
def _paused_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector.

    A first reading creates many containers and no reference cycles. A collection would visit all
    of them, and stop every thread of the process meanwhile.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
