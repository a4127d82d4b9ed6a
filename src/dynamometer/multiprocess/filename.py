"""What a multiprocess file's name says: `counter_123.db`, `gauge_livesum_123.db`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from dynamometer.multiprocess.faults import FileFault, Reason

SUFFIX: Final = ".db"
# The types that prometheus_client writes in multiprocess mode.
TYPES: Final = frozenset({"counter", "gauge", "histogram", "summary"})
_PID: Final = "pid"
MODES: Final = frozenset({"all", "min", "max", "sum", "mostrecent"})


@dataclass(frozen=True, slots=True)
class FileName:
    """The parts of a name.

    Attributes:
        type: of every family in the file.
        mode: how a gauge's values of several processes become one, without `live`;
            empty for other types.
        live: whether prometheus_client's `mark_process_dead` removes the file.
        process: the identifier of the process that writes the file, mostly its pid.
        pid: the `pid` label that prometheus_client makes of it: the second or third word,
            less three characters.
    """

    type: str
    mode: str
    live: bool
    process: str
    pid: str

    @property
    def pid_label(self) -> bool:
        """Whether the series of each process stay apart, by a label `pid`."""
        return self.mode == "all"

    def own_labels(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        """The labels of a series; a gauge has no `pid` of its own.

        In prometheus_client each gauge gets its process as a label `pid`. Where processes stay
        apart it stands in for the key's; elsewhere the key's is taken off with it.

        Args:
            labels: those of its key.
        """
        if self.pid_label:
            return {**labels, _PID: self.pid}
        if self.type == "gauge" and _PID in labels:
            return {name: value for name, value in labels.items() if name != _PID}
        return labels


def parse(path: str) -> FileName:
    """The parts of the name of the file at `path`.

    Raises:
        FileFault: the name is none of a multiprocess file.
    """
    name = PurePath(path).name
    try:
        name.encode()
    except UnicodeEncodeError:  # the process would be a label that no page can hold
        raise FileFault(Reason.NAME, "its name is no UTF-8") from None
    words = name.split("_")
    kind, rest = words[0], words[1:]
    if kind not in TYPES:
        raise FileFault(Reason.NAME, f"unknown metric type {kind!r} in its name")
    written = ""
    if kind == "gauge":
        written, rest = (rest[0], rest[1:]) if rest else ("", [])
        if written.removeprefix("live") not in MODES:
            raise FileFault(Reason.NAME, f"unknown gauge mode {written!r} in its name")
    if not rest:
        raise FileFault(Reason.NAME, "no process in its name")
    return FileName(
        type=kind,
        mode=written.removeprefix("live"),
        live=written.startswith("live"),
        process="_".join(rest).removesuffix(SUFFIX),
        pid=rest[0][: -len(SUFFIX)],
    )
