"""The multiprocess files of one engine, as a source of the page."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from dynamometer.exporter.writers import Liveness, Writers
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.label_bounds import LabelBounds
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.names import labels

logger = logging.getLogger(__name__)

# SGLang's and vLLM's own label for the name of the model, which the runtime calls `model`.
_MODEL_NAME: Final = f'{labels.MODEL_NAME}="'.encode()
_LISTED_FAMILIES: Final = 3
# Seconds between two readings, while only changes in the files can show that the engine lives.
_READ_SECONDS: Final = 2.0
# Seconds without a change after which invisible writers count as ended, if only changes in their
# files can show that they live.
_IDLE_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class FilesStatus:
    """The state of an engine's files and of their writers at one check.

    Attributes:
        changed_at: the monotonic time in seconds at which a value last changed; 0 until a value is
            read.
        alive: the visible writers that live.
        ended: descriptions of the visible writers that have ended since the last check.
        still_writing: invisible writers that counted as ended have changed their files.
        writers_are_essential: the engine has ended when one of its visible writers has ended.
    """

    changed_at: float = 0.0
    alive: frozenset[str] = frozenset()
    ended: tuple[str, ...] = ()
    still_writing: bool = False
    writers_are_essential: bool = False


class FilesSource:
    """A `MetricsSource` that reads an engine's multiprocess files, and never writes there.

    Gauges of ended processes are hidden. Totals never fall, even if files are removed, or if the
    restarted engine writes other files.

    Two threads read the files, each while it holds `_lock`: the page's thread, and the thread that
    checks the engine. A file system that hangs keeps the lock, so the event loop never takes it.
    The loop alone writes `liveness`. It also reads `model`, `names` and `errors`: immutable values,
    which are replaced under the lock.
    """

    def __init__(
        self,
        name: str,
        *,
        constant: Mapping[str, str],
        prefixes: Sequence[str],
        max_series: int,
        members: Callable[[], Iterable[psutil.Process]],
        label_bounds: LabelBounds | None = None,
        model_label: bool = True,
    ) -> None:
        """Create a source without a directory; `check` sets the directories.

        Args:
            name: the name of the source in error counts.
            constant: labels for every series that does not have them.
            prefixes: prefixes of the families to show; empty to show all.
            max_series: the highest number of series.
            members: a function that returns the known processes of the engine.
            label_bounds: the bounds of label values; None for no bounds.
            model_label: add the label `model`, with the engine's own `model_name`, if `constant`
                does not contain the label.
        """
        self.name = self.owner = name
        self.liveness = Liveness.UNKNOWN
        self.model = constant.get(labels.MODEL, "")
        self.names: frozenset[str] = frozenset()
        self.errors: Mapping[str, int] = {}
        self._writers = Writers()
        self._changed_at = 0.0
        self._read_at = float("-inf")
        self._applied_liveness = Liveness.UNKNOWN
        self._constant = dict(constant)
        self._model_label_done = labels.MODEL in constant or not model_label
        self._prefixes = tuple(prefixes)
        self._filter = FamilyFilter(Selection.of(prefixes=prefixes))
        self._max_series = max_series
        self._label_bounds = label_bounds
        self._members = members
        self._directory: MultiprocessDirectory | None = None
        self._families: Sequence[Family] = ()
        self._family_count = 0
        self._empty_logged = False
        self._lock = threading.Lock()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        with self._lock:
            return self._filter.apply(self._read())

    def check(self, paths: Sequence[str], *, read: bool) -> FilesStatus:
        """Check which writers live, and read the files if necessary; may block.

        Args:
            paths: the directories to read from now on, at least one. The totals of directories that
                are no longer read stay.
            read: True to read the files every two seconds; False to do so only until the first
                value is found.

        Raises:
            OSError: The writers cannot be checked.
        """
        with self._lock:
            if self._directory is None:
                self._directory = self._open(paths)
            elif tuple(paths) != tuple(self._directory.paths):
                self._directory.follow(*paths)
            due = time.monotonic() - self._read_at >= _READ_SECONDS
            if self.liveness is not self._applied_liveness or (
                due and (read or not self._changed_at)
            ):
                self._read()
            ended = self._writers.take_ended()
            if ended:
                self._directory.retire(ended)
            self._retire_idle(self._directory)
            return FilesStatus(
                changed_at=self._changed_at,
                alive=frozenset(self._writers.alive),
                ended=tuple(sorted(writer.description for writer in ended.values())),
                still_writing=bool(self._writers.still_writing),
                writers_are_essential=self._writers.writers_are_essential,
            )

    def _retire_idle(self, directory: MultiprocessDirectory) -> None:
        """Retire the invisible writers if no value has changed for `_IDLE_SECONDS`."""
        idle = time.monotonic() - self._changed_at
        known = self.liveness is not Liveness.UNKNOWN or self._writers.alive
        if known or idle < _IDLE_SECONDS or not self._writers.still_writing:
            return
        names = frozenset(self._writers.still_writing)
        self._writers.retire(names)
        directory.retire(names)

    def close(self) -> None:
        """Close all files; may block."""
        with self._lock:
            if self._directory is not None:
                self._directory.close()

    def _open(self, paths: Sequence[str]) -> MultiprocessDirectory:
        directory = MultiprocessDirectory(
            paths[0],
            labels=self._constant,
            keep_totals=True,
            max_series=self._max_series,
            label_bounds=self._label_bounds,
        )
        directory.follow(*paths)
        return directory

    def _read(self) -> Sequence[Family]:
        if self._directory is None:
            return ()
        self._read_at = time.monotonic()
        families: Sequence[Family] = self._directory.families()
        if len(families) != self._family_count:
            self._family_count = len(families)
            self.names |= {family.metadata.sample_name for family in families}
            if not self._model_label_done and self._writers.none_ended:
                families = self._add_model_label(families)
        liveness = self.liveness
        change = self._writers.update(self._directory.processes, self._members, liveness)
        self._applied_liveness = liveness
        if change.resume:
            self._directory.resume(change.resume)
        if change.retire:
            self._directory.retire(change.retire)
        if change.retire or change.resume:
            families = self._directory.families()
        self.errors = dict(self._directory.errors)
        if families is not self._families:
            self._changed_at = self._read_at
            self._families = families
            self._log_empty_selection(families)
        return families

    def _add_model_label(self, families: Sequence[Family]) -> Sequence[Family]:
        """Add the label `model` if a series contains the engine's own label `model_name`."""
        assert self._directory is not None
        model = _model_name(families)
        if not model:
            return families
        self._model_label_done = True
        self._constant[labels.MODEL] = self.model = model
        paths, before = self._directory.paths, self._directory
        self._directory = self._open(paths)
        self._directory.continue_faults(before)
        before.close()
        return self._directory.families()

    def _log_empty_selection(self, families: Sequence[Family]) -> None:
        """Warn once if the files have families, but none with one of the prefixes."""
        if self._empty_logged or not families or self._filter.apply(families):
            return
        self._empty_logged = True
        found = [family.metadata.text_name for family in families]
        more = ", ..." if len(found) > _LISTED_FAMILIES else ""
        logger.warning(
            "%s: no family in the files begins with %s: select others with --prefix, such as %s%s",
            self.name,
            " or ".join(map(repr, self._prefixes)),
            ", ".join(found[:_LISTED_FAMILIES]),
            more,
        )


def _model_name(families: Sequence[Family]) -> str:
    for family in families:
        if any(_MODEL_NAME in chunk for chunk in family.chunks):
            for sample in family.samples:
                if model := sample.series.labels.get(labels.MODEL_NAME):
                    return model
    return ""
