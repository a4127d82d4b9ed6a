"""prometheus_client's `MultiProcessCollector`, with an incremental reader.

Services create a registry and a collector for each scrape, as prometheus_client's documentation
shows. Therefore all collectors of a path in this process share one directory, which keeps the
content of the files between scrapes.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Final

import prometheus_client
from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.registry import Collector

from dynamometer.exposition.conversion import FamilyMetric, from_metric, to_metric
from dynamometer.exposition.rendering import Renderer
from dynamometer.multiprocess import file_format
from dynamometer.multiprocess.directory import MultiprocessDirectory
from dynamometer.multiprocess.faults import FileFault
from dynamometer.multiprocess.reader import Reader
from dynamometer.multiprocess.tree import FileList
from dynamometer.process.forks import renew_in_child

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_DEPRECATED_VARIABLE: Final = "prometheus_multiproc_dir"
# Since 0.23 prometheus_client has a constant of this value.
_UNDERSCORES: Final = "underscores"
_UNBOUNDED: Final = 2**62


class MultiProcessCollector(Collector):
    """A drop-in replacement for `prometheus_client.multiprocess.MultiProcessCollector`.

    The collector reads one directory, without the tree below it, and skips a bad file where
    prometheus_client raises.
    """

    def __init__(self, registry: CollectorRegistry | None, path: str | None = None) -> None:
        """Collect from a directory.

        Args:
            registry: the registry that the collector is added to; None for none.
            path: the directory; PROMETHEUS_MULTIPROC_DIR by default.

        Raises:
            ValueError: The directory does not exist.
        """
        path = _path_of_environment() if path is None else path
        if not path or not Path(path).is_dir():
            raise ValueError("env PROMETHEUS_MULTIPROC_DIR is not set or not a directory")
        self._path = path
        if registry:
            registry.register(self)

    @property
    def directory(self) -> MultiprocessDirectory:
        """The directory, shared by all collectors of the path."""
        return _directory(self._path)

    @property
    def errors(self) -> Mapping[str, int]:
        """The number of omissions of a file or of some of its series, by reason."""
        return self.directory.errors

    def collect(self) -> Iterable[Metric]:
        """Return the families; their samples are created when they are first used.

        The call waits while another thread reads the directory.
        """
        return self.directory.collect()

    @staticmethod
    def merge(files: Iterable[str], accumulate: bool = True) -> Iterable[Metric]:
        """Return the families of some files.

        Args:
            files: the paths of the files.
            accumulate: accumulate a histogram's buckets, as on a page; False where the result is
                written back to such files.

        Raises:
            FileNotFoundError: A file is missing that `mark_process_dead` does not remove.
        """
        paths = [os.fspath(file) for file in files]
        for path in paths:
            if not os.path.lexists(path) and not _removed_at_end(path):
                raise FileNotFoundError(path)
        reader = Reader(FileList(paths), {}, max_series=_UNBOUNDED, accumulate=accumulate)
        try:
            reader.read()
            return [to_metric(family) for family in reader.families]
        finally:
            reader.close()


def generate_latest(registry: Collector = REGISTRY, escaping: str = _UNDERSCORES) -> bytes:
    """Return a registry's page in the text format 0.0.4, as prometheus_client's function does.

    The families of Dynamometer's collector are joined from kept bytes; prometheus_client formats
    the families of other collectors.

    Args:
        registry: any registry or collector.
        escaping: the spelling of names outside the legacy character set. With any but the default,
            prometheus_client formats all families.
    """
    if escaping != _UNDERSCORES:
        return bytes(prometheus_client.generate_latest(registry, escaping))
    pages = []
    for kept, metrics in groupby(registry.collect(), _is_kept):
        if kept:
            families = [from_metric(metric) for metric in metrics]
            pages.append(_state.renderer.render(families))
        else:
            pages.append(bytes(prometheus_client.generate_latest(_Collected(list(metrics)))))
    return b"".join(pages)


def _is_kept(metric: Metric) -> bool:
    return isinstance(metric, FamilyMetric) and metric.untouched


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class _State:
    """The directories and pages of this process, guarded by `lock`; a child of `fork` has none."""

    def __init__(self) -> None:
        renew_in_child(self)

    def renew(self) -> None:
        self.directories: dict[str, MultiprocessDirectory] = {}
        self.renderer = Renderer()
        self.lock = threading.Lock()


_state: Final = _State()


def _directory(path: str) -> MultiprocessDirectory:
    key = os.path.realpath(path)
    with _state.lock:
        known = _state.directories.get(key)
        others = list(_state.directories)
    if known is not None:
        return known
    # Without the lock, so that a hanging file system does not stop the collectors of other paths.
    gone = [other for other in others if not Path(other).is_dir()]
    with _state.lock:
        closing = [_state.directories.pop(other) for other in gone if other in _state.directories]
        directory = _state.directories.setdefault(
            key, MultiprocessDirectory(path, recursive=False, max_series=_UNBOUNDED)
        )
    for one in closing:
        one.close()
    return directory


def _path_of_environment() -> str | None:
    if _DEPRECATED_VARIABLE in os.environ and _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = os.environ[_DEPRECATED_VARIABLE]
        warnings.warn(
            f"{_DEPRECATED_VARIABLE} variable has been deprecated in favor of the upper case "
            f"naming {_VARIABLE}",
            DeprecationWarning,
            stacklevel=3,
        )
    return os.environ.get(_VARIABLE)


def _removed_at_end(path: str) -> bool:
    """Return whether `mark_process_dead` removes the file of a process that ended."""
    with suppress(FileFault):
        return file_format.parse_name(path).live
    return False
