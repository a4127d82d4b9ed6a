"""Series that can be removed, in this process and in multiprocess files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from dynamometer.metrics.removable_gauge import RemovableGauge, without_removed
from dynamometer.multiprocess import MultiprocessDirectory
from processes import PYTHON

IN_FILES = """
from prometheus_client import CollectorRegistry
from dynamometer.metrics.histogram import BatchHistogram
from dynamometer.metrics.removable_gauge import RemovableGauge

registry = CollectorRegistry()
gauge = RemovableGauge("size", "A size.", ("model",), registry=registry)
gauge.remove(("never",))
for model in "ab":
    gauge.set((model,), 7)
gauge.remove(("a",))
histogram = BatchHistogram("gap", "A gap.", ("model",), buckets=(0.5, 1.0), registry=registry)
for seconds in (0.25, 0.5, 3.0):
    histogram.labels("m").observe(seconds)
histogram.labels("n")
"""


def test_a_removed_series_is_not_on_the_page() -> None:
    registry = CollectorRegistry()
    gauge = RemovableGauge("size", "A size.", ("model",), registry=registry)
    gauge.set(("a",), 1)
    gauge.set(("b",), 2)
    gauge.remove(("a",))
    gauge.remove(("a",))
    assert b'size{model="a"}' not in generate_latest(registry)
    gauge.set(("a",), 3)
    assert b'size{model="a"} 3.0' in generate_latest(registry)


def read_files(directory: Path) -> dict[str, list[str]]:
    """Run `IN_FILES`, and return the lines of each family."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    subprocess.run([PYTHON, "-c", IN_FILES], env=environment, check=True)
    with MultiprocessDirectory(directory) as files:
        return {
            family.name: without_removed(family).lines.decode().splitlines()
            for family in files.families()
        }


def test_a_removed_series_is_not_read_from_files(tmp_path: Path) -> None:
    assert read_files(tmp_path)["size"] == ['size{model="b"} 7.0']


def test_a_batch_histogram_counts_in_files(tmp_path: Path) -> None:
    assert sorted(read_files(tmp_path)["gap"]) == sorted(
        [
            'gap_bucket{le="0.5",model="m"} 2.0',
            'gap_bucket{le="1.0",model="m"} 2.0',
            'gap_bucket{le="+Inf",model="m"} 3.0',
            'gap_count{model="m"} 3.0',
            'gap_sum{model="m"} 3.75',
            'gap_bucket{le="0.5",model="n"} 0.0',
            'gap_bucket{le="1.0",model="n"} 0.0',
            'gap_bucket{le="+Inf",model="n"} 0.0',
            'gap_count{model="n"} 0.0',
            'gap_sum{model="n"} 0.0',
        ]
    )
