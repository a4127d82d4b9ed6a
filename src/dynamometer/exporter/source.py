"""An engine's files as a source of the page: what ended processes have counted stays."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import psutil

from dynamometer.exporter.writers import Writers
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.names import labels

logger = logging.getLogger(__name__)

# SGLang's and vLLM's name for what the runtime calls `model`.
_MODEL_NAME: Final = re.compile(rb'[{,]model_name="((?:[^"\\]|\\.)+)"')
_ESCAPED: Final = re.compile(r'\\([\\"n])')
_SHOWN_NAMES: Final = 3


class FilesSource:
    """The multiprocess files of one engine, read and never written.

    See `MetricsSource`. Gauges of ended processes are not shown, and totals never fall: not
    when files go, nor when the engine's next process writes to other ones.
    """

    def __init__(
        self,
        name: str,
        *,
        constant: Mapping[str, str],
        prefixes: Sequence[str],
        max_series: int,
        members: Callable[[], Iterable[psutil.Process]],
    ) -> None:
        """No directory is read yet; see `follow`.

        Args:
            name: what its errors are counted under.
            constant: labels for every series that has not its own. Where they have no `model`,
                the engine's own `model_name` becomes it, once a series shows it.
            prefixes: families whose name begins with one of them; none: all.
            max_series: how many series are shown.
            members: the engine's processes as far as they are known.
        """
        self.name = self.owner = name
        self.writers = Writers()
        self.changed = 0.0  # when the values were last found to be others; monotonic seconds
        self._constant = dict(constant)
        self._settled = labels.MODEL in constant or not constant
        self._prefixes = tuple(prefixes)
        self._filter = FamilyFilter(Selection.of(prefixes=prefixes))
        self._max_series = max_series
        self._members = members
        self._directory: MultiprocessDirectory | None = None
        self._families: Sequence[Family] = ()
        self._count = 0
        self._names: set[str] = set()
        self._told = False
        self._lock = threading.Lock()

    @property
    def errors(self) -> Mapping[str, int]:
        """What could not be read."""
        return self._directory.errors if self._directory is not None else {}

    @property
    def paths(self) -> Sequence[str]:
        """The directories that are read."""
        return self._directory.paths if self._directory is not None else ()

    def follow(self, paths: Sequence[str]) -> None:
        """Read these directories from now on; the totals of the former ones stay.

        Args:
            paths: at least one.
        """
        with self._lock:
            if self._directory is None:
                self._directory = self._open(paths)
            elif tuple(paths) != tuple(self._directory.paths):
                self._directory.follow(*paths)

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        with self._lock:
            return self._filter.apply(self._read())

    def names(self) -> frozenset[str]:
        """The families that were ever there, by the names that the text format has."""
        return frozenset(self._names)

    @property
    def model(self) -> str:
        """The label `model` of its series; empty for none."""
        return self._constant.get(labels.MODEL, "")

    def retire(self, writers: Iterable[str] | None = None) -> None:
        """Keep what ended processes have counted, and drop their gauges.

        Args:
            writers: as the files' names have them; None: all that there are.
        """
        with self._lock:
            if self._directory is None:
                return
            self._read()
            gone = list(self._directory.processes if writers is None else writers)
            self.writers.lose(gone)
            self._directory.retire(gone)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            if self._directory is not None:
                self._directory.close()

    def _open(self, paths: Sequence[str]) -> MultiprocessDirectory:
        directory = MultiprocessDirectory(
            paths[0], labels=self._constant, keep_totals=True, max_series=self._max_series
        )
        directory.follow(*paths)
        return directory

    def _read(self) -> Sequence[Family]:
        if self._directory is None:
            return ()
        families: Sequence[Family] = self._directory.families()
        if len(families) != self._count:
            self._count = len(families)
            self._names.update(family.metadata.sample_name for family in families)
            if not self._settled and self.writers.all_there:
                families = self._settle(families)
        missing = self.writers.meet(self._directory.processes, self._members)
        if missing:
            self._directory.retire(missing)
            families = self._directory.families()
        if families is not self._families:
            self.changed = time.monotonic()
            self._families = families
            self._tell_hidden(families)
        return families

    def _settle(self, families: Sequence[Family]) -> Sequence[Family]:
        """Take the engine's own name for its model as the label `model`, once it is there."""
        assert self._directory is not None
        model = _model_name(families)
        if not model:
            return families
        self._settled = True
        self._constant[labels.MODEL] = model
        paths, before = self._directory.paths, self._directory
        self._directory = self._open(paths)
        before.close()
        return self._directory.families()

    def _tell_hidden(self, families: Sequence[Family]) -> None:
        """No silent empty page: say so where none of what is there has one of the prefixes."""
        if self._told or not families or self._filter.apply(families):
            return
        self._told = True
        found = [family.metadata.text_name for family in families]
        more = ", ..." if len(found) > _SHOWN_NAMES else ""
        logger.warning(
            "%s: no family begins with %s; --prefix names others: there are %s%s",
            self.name,
            " or ".join(self._prefixes),
            ", ".join(found[:_SHOWN_NAMES]),
            more,
        )


def _model_name(families: Sequence[Family]) -> str:
    for family in families:
        for chunk in family.chunks:
            if found := _MODEL_NAME.search(chunk):
                text = found[1].decode("utf-8", "replace")
                return _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], text)
    return ""
