"""prometheus_client's `MultiProcessCollector`, with a reader that remembers.

Services make a registry and a collector anew for each scrape, as prometheus_client's own
documentation does. So what has been read belongs to the path, not to the collector: all
collectors of a path in this process share one directory.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import EVERYTHING
from dynamometer.exposition.metrics import from_metric, to_metric
from dynamometer.exposition.pages import Pages
from dynamometer.multiprocess import filename
from dynamometer.multiprocess.directory import MultiprocessDirectory
from dynamometer.multiprocess.faults import FileFault
from dynamometer.multiprocess.reader import Reader
from dynamometer.multiprocess.tree import FileList

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_DEPRECATED_VARIABLE: Final = "prometheus_multiproc_dir"
_UNBOUNDED: Final = 2**62
_directories: Final[dict[str, MultiprocessDirectory]] = {}
_pages: Final = Pages()
_lock: Final = threading.Lock()


class MultiProcessCollector(Collector):
    """A drop-in for `prometheus_client.multiprocess.MultiProcessCollector`.

    It reads one directory, without the tree below it, and leaves out a bad file where
    prometheus_client would raise.
    """

    def __init__(self, registry: CollectorRegistry | None, path: str | None = None) -> None:
        """Collect from a directory.

        Args:
            registry: where to register; None: nowhere.
            path: the directory; None: what PROMETHEUS_MULTIPROC_DIR says.

        Raises:
            ValueError: there is no such directory.
        """
        path = _path_of_environment() if path is None else path
        if not path or not Path(path).is_dir():
            raise ValueError("env PROMETHEUS_MULTIPROC_DIR is not set or not a directory")
        self.directory = _directory(path)
        if registry:
            registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The families; their samples are made when they are looked at."""
        return self.directory.collect()

    @staticmethod
    def merge(files: Iterable[str], accumulate: bool = True) -> Iterable[Metric]:
        """The families of some files.

        Args:
            files: their paths.
            accumulate: add up a histogram's buckets, as a page has them; False where the
                result is written back to such files.

        Raises:
            FileNotFoundError: a file is not there, and is none that `mark_process_dead` removes.
        """
        paths = [os.fspath(file) for file in files]
        for path in paths:
            if not os.path.lexists(path) and not _may_go(path):
                raise FileNotFoundError(path)
        reader = Reader(FileList(paths), {}, max_series=_UNBOUNDED, accumulate=accumulate)
        try:
            for _ in reader.steps():
                pass
            return [to_metric(family) for family in reader.families]
        finally:
            reader.close()


def generate_latest(registry: Collector) -> bytes:
    """A drop-in for prometheus_client's, that joins the bytes our collector has kept.

    Args:
        registry: with any collectors.
    """
    families: tuple[Family, ...] = tuple(from_metric(metric) for metric in registry.collect())
    return _pages.render(families, EVERYTHING, openmetrics=False)


def _directory(path: str) -> MultiprocessDirectory:
    key = os.path.realpath(path)
    with _lock:
        directory = _directories.get(key)
        if directory is None:
            directory = _directories[key] = MultiprocessDirectory(
                path, recursive=False, max_series=_UNBOUNDED
            )
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


def _may_go(path: str) -> bool:
    with suppress(FileFault):
        return filename.parse(PurePath(path).name).live
    return False
