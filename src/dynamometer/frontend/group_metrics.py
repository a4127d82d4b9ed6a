"""The families of a frontend of several processes, which its supervisor's page shows.

Each process writes its metrics into multiprocess files; the counts of an ended process stay in the
totals. Families, labels and help texts are the same as with one process.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from dynamometer.exposition.conversion import from_metric, to_metric
from dynamometer.exposition.families import Family
from dynamometer.exposition.reuse import FamilyMap
from dynamometer.metrics.removable_gauge import without_removed
from dynamometer.metrics.sources import CountsErrors
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.names import process


class GroupCollector(Collector, CountsErrors):
    """The families of all processes, read from their multiprocess files."""

    def __init__(self, path: Path, described: CollectorRegistry) -> None:
        """Create the collector; `collect` reads the files.

        Args:
            path: the directory of the files.
            described: a registry with the instruments of one process, so that a family without
                series in the files still appears, without samples.
        """
        self._directory = MultiprocessDirectory(path, owned=True, recursive=False)
        self._kept = FamilyMap(without_removed)
        self._empty = {
            metric.name: Family.of_samples(from_metric(metric).metadata, ())
            for metric in described.collect()
        }

    def collect(self) -> Iterable[Metric]:
        """Return the families of all processes."""
        found = {family.name: family for family in self._kept.apply(self._directory.families())}
        return [to_metric(family) for family in (self._empty | found).values()]

    def retire(self, pid: int) -> None:
        """Keep the counts of an ended process, hide its gauges, and remove its files. Blocks."""
        self._directory.retire([pid])

    def close(self) -> None:
        """Close the files."""
        self._directory.close()

    @property
    def errors(self) -> Mapping[str, int]:
        """See `CountsErrors.errors`."""
        return self._directory.errors


class ProcessesCollector(Collector):
    """The `process_*` families as the sums over this process and its children.

    The start time is this process's own. The CPU time includes children that have ended.
    """

    def __init__(self, children: Callable[[], Sequence[int]]) -> None:
        """Create the collector; `collect` reads the processes.

        Args:
            children: a function that returns the pids of the running children.
        """
        self._children = children
        # The page's thread owns these attributes.
        self._pid: int | str = "self"
        self._one = ProcessCollector(pid=lambda: self._pid, registry=None)
        self._cpu_seconds = 0.0

    def collect(self) -> Iterable[Metric]:
        """Return the families of prometheus_client's `ProcessCollector`."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended_seconds = usage.ru_utime + usage.ru_stime
        found = self._collect_one("self")
        sums = {name: metric.samples[0].value for name, metric in found.items()}
        for pid in self._children():
            for name, metric in self._collect_one(pid).items():
                if name in sums and name != process.START_TIME_SECONDS:
                    sums[name] += metric.samples[0].value
        if process.CPU_SECONDS_TOTAL in sums:
            # The sum would fall once if a child were reaped between the two readings.
            self._cpu_seconds = max(
                self._cpu_seconds, sums[process.CPU_SECONDS_TOTAL] + ended_seconds
            )
            sums[process.CPU_SECONDS_TOTAL] = self._cpu_seconds
        for name, metric in found.items():
            metric.samples = [Sample(name, {}, sums[name])]
        return found.values()

    def _collect_one(self, pid: int | str) -> Mapping[str, Metric]:
        """Return the families of one process; none if the process has ended."""
        self._pid = pid
        return {metric.samples[0].name: metric for metric in self._one.collect()}
