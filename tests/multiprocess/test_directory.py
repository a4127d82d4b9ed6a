"""A reading costs as much as the changes since the last one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from pages import assert_parsers_accept, assert_same_lines, peer_page, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from writer import Written, write_process

from dynamometer.multiprocess import MultiprocessDirectory


class File:
    """A file that this process writes."""

    def __init__(self, path: Path) -> None:
        self._file = MmapedDict(str(path))
        self.close = self._file.close

    def set(self, name: str, value: float, stamp: float = 0.0, **labels: str) -> None:
        family = name.removesuffix("_total")
        key = mmap_key(family, name, list(labels), list(labels.values()), "help")
        self._file.write_value(key, value, stamp)

    def set_sample(self, family: str, sample: str, value: float, **labels: str) -> None:
        key = mmap_key(family, sample, list(labels), list(labels.values()), "help")
        self._file.write_value(key, value, 0.0)


Opener: TypeAlias = Callable[[Path], File]


@pytest.fixture
def written() -> Iterator[Opener]:
    """Opens files for writing, and closes them at the end."""
    with ExitStack() as stack:

        def opened(path: Path) -> File:
            file = File(path)
            stack.callback(file.close)
            return file

        yield opened


def test_nothing_new_is_the_very_same_page(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    file.set("c_total", 1.0)
    ours = MultiprocessDirectory(tmp_path)
    for openmetrics in (False, True):
        page = ours.render(openmetrics=openmetrics)
        assert ours.render(openmetrics=openmetrics) is page
    assert ours.families() is ours.families()
    file.set("c_total", 2.0)
    assert ours.render() != page


def test_only_families_that_changed_are_new_objects(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    for name in ("a_total", "b_total"):
        file.set(name, 1.0)
    ours = MultiprocessDirectory(tmp_path)
    a, b = ours.families()
    file.set("b_total", 2.0)
    same, other = ours.families()
    assert same is a
    assert other is not b
    assert other.metadata is b.metadata


def test_a_change_in_a_large_family_touches_one_chunk(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    for number in range(2000):
        file.set("c_total", 1.0, x=str(number))
    ours = MultiprocessDirectory(tmp_path)
    (before,) = ours.families()
    file.set("c_total", 2.0, x="777")
    (after,) = ours.families()
    other = [new for old, new in zip(before.chunks, after.chunks, strict=True) if old is not new]
    assert len(before.chunks) > 10
    assert len(other) == 1
    assert b'c_total{x="777"} 2.0\n' in other[0]


def test_a_file_that_grows_is_followed(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    ours = MultiprocessDirectory(tmp_path)
    for number in range(1500):
        file.set("c_total", float(number), x="é" * (number % 9), y=str(number))
        if number % 100 == 0:
            assert_same_lines(ours.render(), peer_page(tmp_path))
    assert (tmp_path / "counter_1.db").stat().st_size > 1 << 16
    assert_same_lines(ours.render(), peer_page(tmp_path))


def test_thousands_of_values_that_change_at_once(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    ours = MultiprocessDirectory(tmp_path)
    for value in (1.0, 2.5):
        for number in range(5000):
            file.set("c_total", value * number, x=str(number))
        assert_same_lines(ours.render(), peer_page(tmp_path))


def test_a_file_larger_than_the_buffer(tmp_path: Path, written: Opener) -> None:
    for name in ("counter_1.db", "gauge_mostrecent_1.db"):
        file = written(tmp_path / name)
        for number in range(1500):
            series = "c_total" if name[0] == "c" else "g"
            file.set(series, float(number), 5.0, x="long " * 100, y=str(number))
    ours = MultiprocessDirectory(tmp_path)
    assert_same_lines(ours.render(), peer_page(tmp_path))
    file.set("g", 1e9, 6.0, x="long " * 100, y="1499")
    assert_same_lines(ours.render(), peer_page(tmp_path))


def test_directories_are_not_listed_again_when_nothing_was_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_process(tmp_path, [Written("counter", "c", actions=[((), "+", 1.0)])])
    os.utime(tmp_path, ns=(1, 1_600_000_000_000_000_001))
    ours = MultiprocessDirectory(tmp_path)
    ours.render()
    really_list = os.scandir
    listed: list[str] = []

    def scandir(path: str) -> object:
        listed.append(path)
        return really_list(path)

    monkeypatch.setattr(os, "scandir", scandir)
    ours.render()
    assert listed == []
    write_process(tmp_path, [Written("counter", "c", actions=[((), "+", 1.0)])])
    assert values(ours.render()) == {"c_total": 2.0}
    assert listed


def test_constant_labels_yield_to_a_series_own(tmp_path: Path, written: Opener) -> None:
    written(tmp_path / "counter_1.db").set("c_total", 1.0, model="own", b="2")
    histogram = written(tmp_path / "histogram_1.db")
    histogram.set_sample("h", "h_sum", 1.0)
    histogram.set_sample("h", "h_bucket", 2.0, le="+Inf")
    ours = MultiprocessDirectory(tmp_path, labels={"model": "constant", "a": 'odd "\n'})
    assert values(ours.render()) == {
        'c_total{a="odd \\"\\n",b="2",model="own"}': 1.0,
        'h_bucket{a="odd \\"\\n",le="+Inf",model="constant"}': 2.0,
        'h_count{a="odd \\"\\n",model="constant"}': 2.0,
        'h_sum{a="odd \\"\\n",model="constant"}': 1.0,
    }
    assert_parsers_accept(ours)


def test_a_constant_pid_yields_to_a_series_own(tmp_path: Path, written: Opener) -> None:
    written(tmp_path / "counter_9.db").set("c_total", 1.0, pid="own")
    for mode in ("all", "min", "livesum", "mostrecent"):
        written(tmp_path / f"gauge_{mode}_9.db").set(mode, 2.0, 5.0, pid="own")
    # prometheus_client replaces the pid of a gauge by its process, or removes the pid.
    plain = {'c_total{pid="own"}': 1.0, 'all{pid="9"}': 2.0}
    assert values(peer_page(tmp_path)) == plain | dict.fromkeys(("min", "livesum", "mostrecent"), 2)
    assert_same_lines(MultiprocessDirectory(tmp_path).render(), peer_page(tmp_path))
    ours = MultiprocessDirectory(tmp_path, labels={"pid": "constant"})
    assert values(ours.render()) == plain | {
        f'{name}{{pid="constant"}}': 2.0 for name in ("min", "livesum", "mostrecent")
    }


def test_families_by_name_and_the_leading_rank_first(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "gauge_all_9.db")
    for name in ("b", "a"):
        for rank in ("10", "2", "0"):
            file.set(name, 1.0, tp_rank=rank, engine="z" if rank == "0" else "a")
    file.set("a", 2.0, tp_rank="0", priority="", engine="z")
    file.set("a", 2.0, tp_rank="0", priority="high", engine="z")
    ours = MultiprocessDirectory(tmp_path)
    lines = [line.decode() for line in ours.render().splitlines() if line[:1] != b"#"]
    assert lines == [
        'a{engine="z",pid="9",priority="",tp_rank="0"} 2.0',
        'a{engine="z",pid="9",priority="high",tp_rank="0"} 2.0',
        'a{engine="z",pid="9",tp_rank="0"} 1.0',
        'a{engine="a",pid="9",tp_rank="2"} 1.0',
        'a{engine="a",pid="9",tp_rank="10"} 1.0',
        'b{engine="z",pid="9",tp_rank="0"} 1.0',
        'b{engine="a",pid="9",tp_rank="2"} 1.0',
        'b{engine="a",pid="9",tp_rank="10"} 1.0',
    ]


def test_a_selection_of_families(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    for name in ("x:a_total", "x:b_total", "x:bad_total", "y_total"):
        file.set(name, 1.0)
    ours = MultiprocessDirectory(tmp_path)

    def chosen(
        prefixes: Sequence[str] = (), names: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> set[str]:
        page = ours.render(prefixes=prefixes, names=names, exclude_prefixes=exclude)
        return set(values(page))

    assert chosen(prefixes=["x:"]) == {"x:a_total", "x:b_total", "x:bad_total"}
    assert chosen(prefixes=["x:", "y"], exclude=["x:b"]) == {"x:a_total", "y_total"}
    assert chosen(names=["x:a_total", "y", "nothing"]) == {"x:a_total", "y_total"}
    assert chosen(prefixes=["x:"], names=["y_total"]) == set()
    assert chosen(exclude=["x:b_total"]) == {"x:a_total", "x:bad_total", "y_total"}


def test_a_reading_in_steps_lets_an_event_loop_run(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    for number in range(2000):
        file.set("c_total", float(number), x=str(number))
    ours = MultiprocessDirectory(tmp_path)
    steps = ours.refresh_steps(seconds=0.0)
    assert ours.current_families() == ()
    assert list(steps)
    assert len(ours.current_families()[0].lines.splitlines()) == 2000


def test_other_calls_between_two_steps_read_as_well(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    for number in range(1000):
        file.set("c_total", float(number), x=str(number))
    ours = MultiprocessDirectory(tmp_path)
    steps, others = ours.refresh_steps(seconds=0.0), ours.refresh_steps(seconds=0.0)
    next(steps)
    next(others)
    page = ours.render()
    assert_same_lines(page, peer_page(tmp_path))
    for one in (steps, others):
        list(one)
    assert ours.render() is page


def test_a_closed_directory_is_read_no_more(tmp_path: Path, written: Opener) -> None:
    written(tmp_path / "counter_1.db").set("c_total", 1.0)
    ours = MultiprocessDirectory(tmp_path)
    families = ours.families()
    ours.close()
    assert ours.current_families() is families
    with pytest.raises(ValueError, match="closed"):
        ours.render()
    with pytest.raises(ValueError, match="closed"):
        next(ours.refresh_steps())


def test_many_threads_share_a_directory(tmp_path: Path, written: Opener) -> None:
    file = written(tmp_path / "counter_1.db")
    for number in range(300):
        file.set("c_total", 1.0, x=str(number))
    ours = MultiprocessDirectory(tmp_path)
    pages: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: pages.extend(ours.render() for _ in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pages) == 160
    assert set(pages) == {peer_page(tmp_path)} or len({bytes(page) for page in pages}) == 1
    assert_same_lines(pages[0], peer_page(tmp_path))
