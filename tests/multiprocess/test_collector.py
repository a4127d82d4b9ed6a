"""The drop-in: prometheus_client's class by another import."""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import prometheus_client
import pytest
from pages import assert_same_lines, values
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client import generate_latest as peer_generate_latest
from prometheus_client.multiprocess import MultiProcessCollector as PeerCollector
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector
from writer import Written, write_process

from dynamometer.multiprocess import MultiProcessCollector, generate_latest
from dynamometer.multiprocess import collector as collector_module

METRICS = [
    Written("counter", "c", labels=["x"], actions=[(('a"\n',), "+", 2.0)]),
    Written("histogram", "h", labels=["x"], actions=[(("a",), "o", 0.7), (("b",), "o", 7.0)]),
    Written("gauge", "g", mode="livesum", actions=[((), "=", 3.0)]),
    Written("gauge", "i", mode="all", actions=[((), "=", math.inf)]),
]


def write_some(path: Path) -> None:
    """One counter of one series."""
    write_process(path, METRICS[:1])


Either: TypeAlias = type[MultiProcessCollector] | type[PeerCollector]


def registry_of(collector: Either, tmp_path: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    collector(registry, str(tmp_path))
    return registry


def test_pages_are_the_same_with_either_generate_latest(tmp_path: Path) -> None:
    for _ in range(2):
        write_process(tmp_path, METRICS)
        ours = registry_of(MultiProcessCollector, tmp_path)
        expected = peer_generate_latest(registry_of(PeerCollector, tmp_path))
        assert_same_lines(peer_generate_latest(ours), expected)
        assert_same_lines(generate_latest(ours), expected)


def test_other_collectors_of_the_registry_are_on_the_page_too(tmp_path: Path) -> None:
    write_process(tmp_path, METRICS)
    registry = registry_of(MultiProcessCollector, tmp_path)
    Gauge("other", "Of this process", ["x"], registry=registry).labels("y").set(2)
    page = generate_latest(registry)
    assert_same_lines(page, peer_generate_latest(registry))
    assert b'other{x="y"} 2.0\n' in page


def test_a_restricted_registry_has_the_named_samples(tmp_path: Path) -> None:
    write_process(tmp_path, METRICS)
    registry = CollectorRegistry(auto_describe=True)
    MultiProcessCollector(registry, str(tmp_path))
    restricted = registry.restricted_registry(["g", "h_sum"])
    assert values(peer_generate_latest(restricted)).keys() == {
        "g",
        'h_sum{x="a"}',
        'h_sum{x="b"}',
    }


def test_mark_process_dead_drops_live_gauges(tmp_path: Path) -> None:
    pid = write_process(tmp_path, METRICS)
    registry = registry_of(MultiProcessCollector, tmp_path)
    assert "g" in values(generate_latest(registry))
    mark_process_dead(int(pid), str(tmp_path))
    assert "g" not in values(generate_latest(registry))
    assert values(generate_latest(registry))['c_total{x="a\\"\\n"}'] == 2.0


def test_one_directory_without_its_tree(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write_process(tmp_path / "below", METRICS)
    assert generate_latest(registry_of(MultiProcessCollector, tmp_path)) == b""


def test_collectors_of_a_path_share_what_was_read(tmp_path: Path) -> None:
    write_process(tmp_path, METRICS)
    first = generate_latest(registry_of(MultiProcessCollector, tmp_path))
    assert generate_latest(registry_of(MultiProcessCollector, tmp_path)) is first


def test_the_path_is_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert list(MultiProcessCollector(None).collect()) == []


def test_the_old_variable_is_deprecated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv("prometheus_multiproc_dir", str(tmp_path))
    with pytest.warns(DeprecationWarning, match="PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(None)
    assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path)
    del os.environ["PROMETHEUS_MULTIPROC_DIR"]  # monkeypatch would put it back at the end


@pytest.mark.parametrize("path", [None, "", "/does/not/exist"])
def test_no_directory_is_the_same_error(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.delenv("prometheus_multiproc_dir", raising=False)
    messages = []
    for collector in (MultiProcessCollector, PeerCollector):
        with pytest.raises(ValueError) as error:
            collector(CollectorRegistry(), path)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [True, False])
def test_merge_of_files(
    accumulate: bool, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        write_process(tmp_path, METRICS)
    monkeypatch.chdir(tmp_path)
    paths = sorted(tmp_path.glob("*.db"))
    files = [str(path) for path in paths[1:]] * times + [paths[0].name] * times

    def samples(collector: Either) -> list[tuple[object, ...]]:
        return sorted(
            (metric.name, metric.type, metric.documentation, s.name, sorted(s.labels.items()), s[2])
            for metric in collector.merge(files, accumulate)
            for s in metric.samples
        )

    assert samples(MultiProcessCollector) == samples(PeerCollector)


def test_merge_of_a_missing_file(tmp_path: Path) -> None:
    live, other = (str(tmp_path / name) for name in ("gauge_liveall_1.db", "counter_1.db"))
    assert list(MultiProcessCollector.merge([live])) == []
    with pytest.raises(FileNotFoundError):
        MultiProcessCollector.merge([other])


def test_a_caller_that_changes_its_metrics_changes_no_others(tmp_path: Path) -> None:
    write_some(tmp_path)
    collector = MultiProcessCollector(None, str(tmp_path))
    for _ in range(3):
        (metric,) = collector.collect()
        assert len(metric.samples) == 1
        metric.add_sample("c_total", {"l": "extra"}, 7.0)


def test_a_filter_of_samples_shows_on_the_page(tmp_path: Path) -> None:
    write_some(tmp_path)

    class Filter(Collector):
        def collect(self) -> Iterable[Metric]:
            for metric in MultiProcessCollector(None, str(tmp_path)).collect():
                metric.samples = []
                yield metric

    registry = CollectorRegistry()
    registry.register(Filter())
    assert b"c_total{" not in generate_latest(registry)


def test_others_families_are_as_prometheus_client_formats_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_client.metrics, "_use_created", True)
    write_some(tmp_path)
    registry = CollectorRegistry()
    Counter("own", "with its time of creation", registry=registry).inc()
    MultiProcessCollector(registry, str(tmp_path))
    Histogram("other_seconds", "x", registry=registry).observe(1)
    page = generate_latest(registry)
    assert b"own_created" in page
    peers = prometheus_client.generate_latest(registry)
    assert sorted(page.splitlines()) == sorted(peers.splitlines())
    other = generate_latest(registry, escaping="allow-utf-8")
    assert other == prometheus_client.generate_latest(registry, "allow-utf-8")


def test_a_forked_child_reads_for_itself(tmp_path: Path) -> None:
    """A lock that a thread of the parent holds does not stop the child."""
    write_some(tmp_path)
    collector = MultiProcessCollector(None, str(tmp_path))
    directory = collector.directory
    list(collector.collect())
    with directory._lock, collector_module._state.lock:
        pid = os.fork()
        if pid == 0:
            same = len(list(collector.collect())) == 1 and b"c_total" in directory.render()
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_directories_that_are_gone_are_let_go(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        path = tmp_path / str(number)
        path.mkdir()
        write_some(path)
        assert len(list(MultiProcessCollector(None, str(path)).collect())) == 1
        shutil.rmtree(path)
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_directory_that_hangs_does_not_stop_the_collectors_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collectors of other paths read meanwhile."""
    for name in ("hangs", "new", "other"):
        (tmp_path / name).mkdir()
        write_some(tmp_path / name)
    other = MultiProcessCollector(None, str(tmp_path / "other"))
    list(other.collect())
    looked, goes_on = threading.Event(), threading.Event()

    def is_dir(path: Path) -> bool:
        looked.set()
        return goes_on.wait(10)

    new = MultiProcessCollector(None, str(tmp_path / "new"))
    monkeypatch.setattr(Path, "is_dir", is_dir)
    thread = threading.Thread(target=lambda: list(new.collect()))
    thread.start()
    try:
        assert looked.wait(10)
        assert len(list(other.collect())) == 1
        assert thread.is_alive()
    finally:
        goes_on.set()
        thread.join()


def test_errors_that_are_looked_at_do_not_change(tmp_path: Path) -> None:
    """A thread may read the counts while another one reads files."""
    collector = MultiProcessCollector(None, str(tmp_path))
    (tmp_path / "counter_1.db").write_bytes(b"\x08")
    list(collector.collect())
    before = collector.errors
    (tmp_path / "odd_1.db").write_bytes(b"")
    list(collector.collect())
    assert before == {"truncated": 1}
    assert collector.errors == {"truncated": 2, "name": 1}
