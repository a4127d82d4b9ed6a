"""A directory of multiprocess files, as one page."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

logger = logging.getLogger(__name__)

# Names with a colon stay as they are; prometheus_client's default would write another one.
_ESCAPING = "allow-utf-8"


class MultiprocessDirectory:
    """The files in the tree below a directory, read with prometheus_client's collector."""

    def __init__(self, path: Path | str, *, labels: Mapping[str, str] | None = None) -> None:
        """Nothing is read yet, and the directory need not be there yet.

        Args:
            path: where the tree begins; SGLang makes a directory inside.
            labels: constant ones, added to every series that has not its own.
        """
        self._path = Path(path)
        self._labels = dict(labels or {})
        self._bad: set[str] = set()
        self.errors: Counter[str] = Counter()

    def render(
        self,
        *,
        prefixes: Sequence[str] = (),
        names: Sequence[str] = (),
        exclude_prefixes: Sequence[str] = (),
        openmetrics: bool = False,
    ) -> bytes:
        """The exposition page of the chosen families.

        Args:
            prefixes: families whose name begins with one of them; none: all.
            names: of those, families that have a sample of one of these names; none: all.
            exclude_prefixes: left out before anything is chosen.
            openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.
        """
        chosen = [
            metric
            for metric in self.collect()
            if not metric.name.startswith(tuple(exclude_prefixes))
            and (not prefixes or metric.name.startswith(tuple(prefixes)))
            and (not names or any(sample.name in names for sample in metric.samples))
        ]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(chosen))
        if openmetrics:
            return bytes(openmetrics_exposition.generate_latest(registry, escaping=_ESCAPING))
        return bytes(generate_latest(registry))

    def collect(self) -> Iterable[Metric]:
        """The families of all readable files; a bad file costs only itself, and is counted."""
        files = sorted(str(file) for file in self._path.rglob("*.db"))
        try:
            metrics = MultiProcessCollector.merge(files)
        except Exception:  # noqa: BLE001, RUF100  # prometheus_client raises whatever the bytes led to
            metrics = MultiProcessCollector.merge([f for f in files if self._readable(f)])
        return [self._with_labels(metric) for metric in metrics]

    def _readable(self, file: str) -> bool:
        try:
            list(MultiProcessCollector.merge([file]))
        except Exception as error:  # noqa: BLE001, RUF100  # as above
            self.errors["unreadable"] += 1
            if file not in self._bad:
                self._bad.add(file)
                logger.warning("metrics file %s is left out: %r", file, error)
            return False
        self._bad.discard(file)
        return True

    def _with_labels(self, metric: Metric) -> Metric:
        metric.samples = [
            Sample(s.name, {**self._labels, **s.labels}, s.value, s.timestamp, s.exemplar)
            for s in metric.samples
        ]
        return metric


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
