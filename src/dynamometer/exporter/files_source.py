"""An engine's files as a source of the page: what ended processes have counted stays."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from dynamometer.exporter.writers import Life, Writers
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.names import labels

logger = logging.getLogger(__name__)

# SGLang's and vLLM's name for what the runtime calls `model`.
_MODEL_NAME: Final = re.compile(rb'[{,]model_name="((?:[^"\\]|\\.)+)"')
_ESCAPED: Final = re.compile(r'\\([\\"n])')
_SHOWN_NAMES: Final = 3


# Files whose writers cannot be seen are read this often, to see whether they change.
_READ_SECONDS: Final = 2.0
# And are a dead engine's where nothing else tells, and they have not changed for so long.
_GROWTH_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Sight:
    """The state of an engine's files and of their writers, as the last look found them.

    Attributes:
        changed: when the values were last found to be others; monotonic seconds, 0 for never.
        alive: the writers that were seen and live.
        ended: those that have ended since the last look, as a user knows them.
        growing: whether files grow whose writers cannot be seen.
        ends_as_a_whole: whether the engine has ended once any of its writers has.
    """

    changed: float = 0.0
    alive: frozenset[str] = frozenset()
    ended: tuple[str, ...] = ()
    growing: bool = False
    ends_as_a_whole: bool = False


class FilesSource:
    """The multiprocess files of one engine, read and never written.

    See `MetricsSource`. Gauges of ended processes are not shown, and totals never fall: not
    when files go, nor when the engine's next process writes to other ones.

    The page's thread and the thread that looks at the engine read under `_lock`, which may be held
    for as long as a file system hangs: the event loop never takes it. The loop uses `life`, which
    it alone writes, and `model`, `names` and `errors`: immutable values, which the holder of the
    lock replaces.
    """

    def __init__(
        self,
        name: str,
        *,
        constant: Mapping[str, str],
        prefixes: Sequence[str],
        max_series: int,
        members: Callable[[], Iterable[psutil.Process]],
        model_label: bool = True,
    ) -> None:
        """No directory is read yet; see `look`.

        Args:
            name: what its errors are counted under.
            constant: labels for every series that has not its own.
            prefixes: families whose name begins with one of them; none: all.
            max_series: how many series are shown.
            members: the engine's processes as far as they are known.
            model_label: add the label `model` where `constant` has none: the engine's own
                `model_name`, once a series shows it.
        """
        self.name = self.owner = name
        self.life = Life.UNKNOWN
        self.model = constant.get(labels.MODEL, "")
        self.names: frozenset[str] = frozenset()
        self.errors: Mapping[str, int] = {}
        self._writers = Writers()
        self._changed = 0.0
        self._read_at = float("-inf")
        self._applied = Life.UNKNOWN
        self._constant = dict(constant)
        self._settled = labels.MODEL in constant or not model_label
        self._prefixes = tuple(prefixes)
        self._filter = FamilyFilter(Selection.of(prefixes=prefixes))
        self._max_series = max_series
        self._members = members
        self._directory: MultiprocessDirectory | None = None
        self._families: Sequence[Family] = ()
        self._count = 0
        self._told = False
        self._lock = threading.Lock()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        with self._lock:
            return self._filter.apply(self._read())

    def look(self, paths: Sequence[str], *, waiting: bool) -> Sight:
        """Look which writers live, and read the files where that is due; may block.

        Args:
            paths: the directories from now on, at least one; the totals of the former ones stay.
            waiting: whether something depends on the files before anybody asks for the page.

        Raises:
            OSError: The writers cannot be looked at.
        """
        with self._lock:
            if self._directory is None:
                self._directory = self._open(paths)
            elif tuple(paths) != tuple(self._directory.paths):
                self._directory.follow(*paths)
            due = time.monotonic() - self._read_at >= _READ_SECONDS
            if self.life is not self._applied or (due and (waiting or not self._changed)):
                self._read()
            ended = self._writers.ended()
            if ended and self._directory is not None:
                self._directory.retire(ended)
            self._give_up_growth()
            return Sight(
                changed=self._changed,
                alive=frozenset(self._writers.alive),
                ended=tuple(sorted(writer.what for writer in ended.values())),
                growing=bool(self._writers.growing),
                ends_as_a_whole=self._writers.ends_as_a_whole,
            )

    def _give_up_growth(self) -> None:
        idle = time.monotonic() - self._changed
        if self.life is not Life.UNKNOWN or self._writers.alive or idle < _GROWTH_SECONDS:
            return
        grown = frozenset(self._writers.growing)
        if grown and self._directory is not None:
            self._writers.lose(grown)
            self._directory.retire(grown)

    def close(self) -> None:
        """Close all files; may block."""
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
        self._read_at = time.monotonic()
        families: Sequence[Family] = self._directory.families()
        if len(families) != self._count:
            self._count = len(families)
            self.names |= {family.metadata.sample_name for family in families}
            if not self._settled and self._writers.all_there:
                families = self._settle(families)
        life = self.life
        change = self._writers.update(self._directory.processes, self._members, life)
        self._applied = life
        if change.resume:
            self._directory.resume(change.resume)
        if change.retire:
            self._directory.retire(change.retire)
        if change.retire or change.resume:
            families = self._directory.families()
        self.errors = dict(self._directory.errors)
        if families is not self._families:
            self._changed = self._read_at
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
        self._constant[labels.MODEL] = self.model = model
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
