"""A page is complete at any time, while other processes change the files."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from pages import assert_same_lines, peer_page, values

from dynamometer.multiprocess import MultiprocessDirectory

PROGRAM = """
import os, sys, time
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead
registry = CollectorRegistry()
counter = Counter("c", "h", ["kind", "x"], registry=registry)
histogram = Histogram("h", "h", ["x"], registry=registry)
gauge = Gauge("g", "h", ["x"], multiprocess_mode="livesum", registry=registry)
end = time.monotonic() + float(sys.argv[2])
number = 0
while time.monotonic() < end:
    number += 1
    counter.labels(sys.argv[1], "same").inc()
    histogram.labels(str(number % 7)).observe(number % 10)
    if sys.argv[1] == "grows":
        gauge.labels("x" * (number % 50) + str(number)).set(1)
    else:
        gauge.labels("same").set(number)
    if sys.argv[1] == "removes" and number % 100 == 0:
        mark_process_dead(os.getpid())
    time.sleep(0.0002)
"""


@pytest.mark.slow
def test_others_write_grow_and_remove_files_while_it_is_read(tmp_path: Path) -> None:
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PATH": ""}
    seconds = 4.0
    writers = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, kind, str(seconds)], env=environment)
        for kind in ("writes", "grows", "removes")
    ]
    ours = MultiprocessDirectory(tmp_path)
    last: dict[str, float] = {}
    renders = 0
    while any(writer.poll() is None for writer in writers):
        page = values(ours.render())
        for series, value in last.items():
            assert page[series] >= value, series
        last = {s: v for s, v in page.items() if s.startswith(("c_total", "h_"))}
        renders += 1
        time.sleep(0.001)
    assert [writer.wait(10) for writer in writers] == [0, 0, 0]
    assert renders > 100
    assert_same_lines(ours.render(), peer_page(tmp_path))
    assert set(ours.errors) <= {"empty", "vanished"}
    assert len(last) > 20
