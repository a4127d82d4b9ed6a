"""Write a multiprocess directory like an engine's, of a given size and rate of change."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from prometheus_client.mmap_dict import MmapedDict, mmap_key

COUNTERS: Final = 30
GAUGES: Final = 40
HISTOGRAMS: Final = 10
BUCKETS: Final = 24
LINES_PER_LABEL_SET: Final = COUNTERS + GAUGES + HISTOGRAMS * (BUCKETS + 2)
_BOUNDS: Final = [*(f"{0.001 * 1.7**k:.4g}" for k in range(BUCKETS - 1)), "+Inf"]
_HELP: Final = "What an engine counts, at some length."


@dataclass(frozen=True, slots=True)
class _Child:
    """One instrument of one label set.

    Attributes:
        file: the file of its values.
        words: the positions of the values, in units of 8 bytes.
        floats: True if the values are fractions, False if whole numbers.
    """

    file: MmapedDict
    words: Sequence[int]
    floats: bool


class Load:
    """The files of several processes, each of which has the series of a rank.

    Each label set has 330 lines: 30 counters, 40 gauges, and 10 histograms of 24 buckets. A line
    takes about 230 bytes in a file, as in the files of SGLang 0.5.23 in tests/samples.
    """

    def __init__(self, path: Path, *, processes: int, label_sets: int) -> None:
        self._random = random.Random(20)
        self._files: list[MmapedDict] = []
        self._children: list[_Child] = []
        self.lines = processes * label_sets * LINES_PER_LABEL_SET
        for process in range(processes):
            self._write_process(path, process, label_sets)

    def change(self, share: float) -> None:
        """Change a share of all instruments, chosen at random; all lines of a histogram change."""
        count = round(share * len(self._children))
        for child in self._random.sample(self._children, count):
            step = self._random.random() if child.floats else 1.0
            words = np.frombuffer(child.file._m, np.float64)
            for word in child.words:
                words[word] += step

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _write_process(self, path: Path, process: int, label_sets: int) -> None:
        pid = 1000 + process
        counters, gauges, histograms = (
            MmapedDict(str(path / f"{kind}_{pid}.db"))
            for kind in ("counter", "gauge_mostrecent", "histogram")
        )
        self._files += [counters, gauges, histograms]
        for number in range(label_sets):
            labels = {
                "engine_type": "unified",
                "model_name": f"model-{number}",
                "moe_ep_rank": "0",
                "pp_rank": "0",
                "tp_rank": str(process),
            }
            self._write_label_set(counters, gauges, histograms, labels)

    def _write_label_set(
        self,
        counters: MmapedDict,
        gauges: MmapedDict,
        histograms: MmapedDict,
        labels: dict[str, str],
    ) -> None:
        for k in range(COUNTERS):
            name = f"sglang:some_counted_thing_{k}"
            word = self._write(counters, name, f"{name}_total", labels, float(k))
            self._children.append(_Child(counters, [word], k % 3 == 0))
        for k in range(GAUGES):
            name = f"sglang:some_gauge_value_{k}"
            word = self._write(gauges, name, name, labels, k / 7)
            self._children.append(_Child(gauges, [word], k % 2 == 0))
        for k in range(HISTOGRAMS):
            name = f"sglang:some_latency_{k}_seconds"
            total = self._write(histograms, name, f"{name}_sum", labels, 0.5 * k)
            buckets = [
                self._write(histograms, name, f"{name}_bucket", {**labels, "le": bound}, 1.0)
                for bound in _BOUNDS
            ]
            self._children.append(_Child(histograms, [total, buckets[0]], floats=False))

    def _write(
        self, file: MmapedDict, family: str, sample: str, labels: dict[str, str], value: float
    ) -> int:
        key = mmap_key(family, sample, list(labels), list(labels.values()), _HELP)
        file.write_value(key, value, 1_700_000_000.0)
        position: int = file._positions[key]
        return position // 8
