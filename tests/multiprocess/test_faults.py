"""A bad file affects only its own series."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bytes_of_files import content, entry, key
from pages import assert_same_lines, peer_page, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from writer import Written, write_process

from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.multiprocess.bulk_read import BulkRead

GOOD = [
    Written("counter", "c", labels=["x"], actions=[(("a",), "+", 2.0), (("b",), "+", 3.0)]),
    Written("histogram", "h", actions=[((), "o", 0.7)]),
]


FIRST = entry(key("other", "other_total"))


def sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
    connection.close()


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(os.path.relpath(path))


def written(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


FAULTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "empty": ("counter_1.db", "empty", written(b"")),
    "shorter than a header": ("counter_1.db", "truncated", written(b"\x08\0")),
    "truncated": ("counter_1.db", "truncated", written(content(FIRST)[:24])),
    "used beyond its end": ("counter_1.db", "truncated", written(content(FIRST, used=1 << 20))),
    "used negative": ("counter_1.db", "corrupt", written(content(FIRST, used=-8))),
    "used odd": ("counter_1.db", "corrupt", written(content(FIRST, used=13))),
    "key too long": (
        "counter_1.db",
        "corrupt",
        written(content(FIRST, entry(key(), length=1 << 20))),
    ),
    "key of negative length": (
        "counter_1.db",
        "corrupt",
        written(content(FIRST, entry(key(), length=-4))),
    ),
    "no JSON": ("counter_1.db", "key", written(content(FIRST, entry(b'["c", "c_total", {')))),
    "no UTF-8": (
        "counter_1.db",
        "key",
        written(content(FIRST, entry(b'["c", "c\xff_total", {}, "h"]'))),
    ),
    "lone surrogate": (
        "counter_1.db",
        "key",
        written(content(FIRST, entry(b'["c", "c_total", {"x": "\\ud800"}, "h"]'))),
    ),
    "JSON but no list": ("counter_1.db", "key", written(content(FIRST, entry(b"12")))),
    "labels no object": (
        "counter_1.db",
        "key",
        written(content(FIRST, entry(b'["c", "c_total", [1], "h"]'))),
    ),
    "label no text": (
        "counter_1.db",
        "key",
        written(content(FIRST, entry(b'["c", "c_total", {"x": 1}, "h"]'))),
    ),
    "label without a name": (
        "counter_1.db",
        "key",
        written(content(FIRST, entry(key(labels={"": "x"})))),
    ),
    "label without a name in a histogram": (
        "histogram_1.db",
        "key",
        written(content(entry(key("h", "h_bucket", {"": "x", "le": "1.0"})))),
    ),
    "bound no number": (
        "histogram_1.db",
        "key",
        written(content(FIRST, entry(b'["h", "h_bucket", {"le": "much"}, "h"]'))),
    ),
    "SQLite": ("x.db", "name", sqlite),
    "SQLite with a fitting name": ("counter_1.db", "corrupt", sqlite),
    "unknown type": ("meter_1.db", "name", written(content(FIRST))),
    "unknown mode": ("gauge_most_1.db", "name", written(content(FIRST))),
    "no mode": ("gauge.db", "name", written(content(FIRST))),
    "no process": ("counter.db", "name", written(content(FIRST))),
    "FIFO": ("counter_1.db", "not_a_file", os.mkfifo),
    "socket": ("counter_1.db", "not_a_file", unix_socket),
    "directory": ("counter_1.db", "not_a_file", Path.mkdir),
    "dangling link": ("counter_1.db", "vanished", lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_costs_only_itself(
    fault: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, reason, make = FAULTS[fault]
    caplog.set_level(logging.INFO, "dynamometer")
    monkeypatch.chdir(tmp_path)
    write_process(tmp_path, GOOD)
    expected = peer_page(tmp_path)
    make(tmp_path / name)
    ours = MultiprocessDirectory(tmp_path)
    for times in (1, 2):
        assert_same_lines(ours.render(), expected)
        assert ours.errors == {reason: times}
    assert [name in record.getMessage() for record in caplog.records] == [True]
    remove(tmp_path / name)
    assert_same_lines(ours.render(), expected)
    assert ours.errors == {reason: 2}
    assert len(caplog.records) == 2


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_good_file_that_turns_bad_and_good_again(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, make = FAULTS[fault]
    monkeypatch.chdir(tmp_path)
    write_process(tmp_path, GOOD)
    expected = peer_page(tmp_path)
    pid = write_process(tmp_path, GOOD)
    counter = tmp_path / f"counter_{pid}.db"
    whole = counter.read_bytes()
    ours = MultiprocessDirectory(tmp_path)
    before = ours.render()
    counter.unlink()
    make(tmp_path / name)
    without_counter = values(ours.render())
    assert without_counter['c_total{x="a"}'] == values(expected)['c_total{x="a"}']
    remove(tmp_path / name)
    counter.write_bytes(whole)
    assert ours.render() == before


def test_no_permission(tmp_path: Path) -> None:
    write_process(tmp_path, GOOD)
    expected = peer_page(tmp_path)
    forbidden = tmp_path / "counter_1.db"
    forbidden.write_bytes(content(FIRST))
    forbidden.chmod(0)
    for path in (tmp_path, *tmp_path.glob("*_*.db")):
        path.chmod(path.stat().st_mode | 0o055)
    forbidden.chmod(0)
    program = (
        "import os, sys\n"
        "from dynamometer.multiprocess import MultiprocessDirectory\n"
        "os.chdir(sys.argv[1])\n"
        "os.getuid() or os.setuid(65534)\n"
        "ours = MultiprocessDirectory('.')\n"
        "sys.stdout.buffer.write(ours.render())\n"
        "assert ours.errors == {'permission': 1}, ours.errors\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, check=True
    )
    assert_same_lines(found.stdout, expected)


def test_removed_between_listing_and_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_process(tmp_path, GOOD)
    expected = peer_page(tmp_path)
    gone = tmp_path / "counter_1.db"
    gone.write_bytes(content(FIRST))
    ours = MultiprocessDirectory(tmp_path)
    really_open = os.open

    def open_too_late(path: str, flags: int) -> int:
        if path == str(gone):
            gone.unlink(missing_ok=True)
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", open_too_late)
    assert_same_lines(ours.render(), expected)
    assert ours.errors == {"vanished": 1}
    assert_same_lines(ours.render(), expected)
    assert ours.errors == {"vanished": 1}


def test_truncated_while_held_open(tmp_path: Path) -> None:
    write_process(tmp_path, GOOD)
    expected = peer_page(tmp_path)
    held = tmp_path / "counter_1.db"
    same = key(labels={"x": "a"}, text="A text.")
    held.write_bytes(content(FIRST, entry(same, 5.0)))
    ours = MultiprocessDirectory(tmp_path)
    assert values(ours.render())["other_total"] == 1.0
    os.truncate(held, 16)
    assert_same_lines(ours.render(), expected)
    assert ours.errors == {"truncated": 1}
    held.write_bytes(content(FIRST))
    assert values(ours.render())["other_total"] == 1.0
    assert ours.errors == {"truncated": 1}


def test_truncated_and_written_again_between_two_calls(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    path.write_bytes(content(FIRST, entry(key(labels={"x": "a"}), 5.0)))
    ours = MultiprocessDirectory(tmp_path)
    assert values(ours.render()) == {"other_total": 1.0, 'c_total{x="a"}': 5.0}
    path.write_bytes(content(entry(key("n", "n_total"), 2.0)))
    assert values(ours.render()) == {"n_total": 2.0}
    assert ours.errors == {}


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "counter_1.db", tmp_path / "new"
    ours = MultiprocessDirectory(tmp_path)
    for number in range(20):
        other.write_bytes(content(entry(key(f"n{number}", f"n{number}_total"), 2.0)))
        other.rename(path)
        assert values(ours.render()) == {f"n{number}_total": 2.0}


def test_other_keys_of_the_same_lengths_in_the_same_file_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    ours = MultiprocessDirectory(tmp_path)
    for first, last, value in (("a", "b", 1.0), ("x", "y", 5.0)):
        both = [entry(key(labels={"l": label}), value) for label in (first, last)]
        path.write_bytes(content(*both))
        assert values(ours.render()) == {
            f'c_total{{l="{first}"}}': value,
            f'c_total{{l="{last}"}}': value,
        }
    assert ours.errors == {}


def test_other_earlier_keys_are_noticed_in_a_file_not_held_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamometer.multiprocess.open_files._MAX_HELD_OPEN", 0)
    path = tmp_path / "counter_1.db"
    ours = MultiprocessDirectory(tmp_path)
    for change, first in enumerate("axx", 1):
        both = [entry(key(labels={"l": label}), 1.0 * change) for label in (first, "z")]
        path.write_bytes(content(*both, size=change << 12))
        assert values(ours.render()) == {
            f'c_total{{l="{first}"}}': 1.0 * change,
            'c_total{l="z"}': 1.0 * change,
        }
    assert ours.errors == {}


def test_many_files_that_turn_bad_at_once_are_rejected_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"counter_{number}.db" for number in range(30)]
    for path in paths:
        path.write_bytes(content(FIRST))
    ours = MultiprocessDirectory(tmp_path)
    assert values(ours.render()) == {"other_total": 30.0}
    plans: list[BulkRead] = []

    def planned(*args: Any) -> BulkRead:
        plans.append(BulkRead(*args))
        return plans[-1]

    monkeypatch.setattr("dynamometer.multiprocess.reader.BulkRead", planned)
    for path in paths[1:]:
        os.truncate(path, 16)
    assert values(ours.render()) == {"other_total": 1.0}
    assert ours.errors == {"truncated": 29}
    assert len(plans) == 1


def test_a_half_written_key_is_taken_at_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    second = entry(key(labels={"x": "a"}), 5.0)
    for half in (b"\0" * len(second), second[:4].ljust(len(second), b"\0")):
        path.write_bytes(content(FIRST, half))
        ours = MultiprocessDirectory(tmp_path)
        if not half.strip(b"\0"):  # a length of zero leads elsewhere than the key's will
            path.write_bytes(content(FIRST, half[: len(entry(b""))]))
        assert values(ours.render()) == {"other_total": 1.0}
        with path.open("r+b") as file:
            file.write(content(FIRST, second))
        assert values(ours.render()) == {"other_total": 1.0, 'c_total{x="a"}': 5.0}
        assert ours.errors == {}
        ours.close()


def test_a_file_that_its_process_has_not_begun_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    path.write_bytes(bytes(1 << 16))
    ours = MultiprocessDirectory(tmp_path)
    assert ours.render() == ours.render() == b""
    with path.open("r+b") as file:
        file.write(content(FIRST))
    assert values(ours.render()) == {"other_total": 1.0}
    assert ours.errors == {}


def test_a_key_that_stays_half_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").write_bytes(content(FIRST, entry(b"\0\0\0\0")))
    ours = MultiprocessDirectory(tmp_path)
    assert values(ours.render()) == {"other_total": 1.0}
    assert ours.errors == {}
    assert ours.render() == b""
    assert ours.errors == {"key": 1}


def test_zeros_that_are_said_to_be_in_use_are_neither_split_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "counter_1.db"
    path.write_bytes(content(FIRST, used=(96 << 20) - 8))
    os.truncate(path, 96 << 20)
    read: list[int] = []
    really_read = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        read.append(size)
        return really_read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    ours = MultiprocessDirectory(tmp_path)
    assert values(ours.render()) == {"other_total": 1.0}
    for times in (1, 2):
        assert ours.render() == b""
        assert ours.errors == {"key": times}
    assert sum(read) < 8 << 20


def test_keys_over_the_ends_of_the_pieces_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamometer.multiprocess.file_content._PIECE_BYTES", 64)
    entries = [entry(key(labels={"x": "y" * n}), n) for n in range(1, 90)]
    (tmp_path / "counter_1.db").write_bytes(content(*entries, size=1 << 15))
    ours = MultiprocessDirectory(tmp_path)
    assert len(values(ours.render())) == 89


def test_a_type_that_files_disagree_on_is_the_first_ones(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").write_bytes(content(entry(key(), 2.0)))
    (tmp_path / "gauge_sum_1.db").write_bytes(
        content(entry(key("g", "g"), 1.0), entry(key("c", "c"), 7.0))
    )
    ours = MultiprocessDirectory(tmp_path)
    assert values(ours.render()) == {"c_total": 2.0, "g": 1.0}
    assert ours.errors == {"type_conflict": 1}
    (tmp_path / "counter_1.db").unlink()
    assert values(ours.render()) == {"c": 7.0, "g": 1.0}


def test_more_series_than_allowed_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [entry(key(labels={"x": str(n)}), n) for n in range(50)]
    (tmp_path / "counter_1.db").write_bytes(content(*entries, size=1 << 14))
    (tmp_path / "counter_2.db").write_bytes(content(*entries, size=1 << 14))
    ours = MultiprocessDirectory(tmp_path, max_series=20)
    found = values(ours.render())
    assert found == {f'c_total{{x="{n}"}}': 2.0 * n for n in range(20)}
    assert ours.errors == {"max_series": 2}
    assert "30 of its series: more than 20 series (--max-series" in caplog.text
    assert "is not complete on the page (max_series)" in caplog.text
    assert "has a fault" not in caplog.text
    histogram = MmapedDict(str(tmp_path / "histogram_1.db"))
    histogram.write_value(mmap_key("h", "h_sum", [], [], "h"), 1.0, 0.0)
    assert values(ours.render()) == found
    histogram.close()
    (tmp_path / "counter_1.db").unlink()
    (tmp_path / "counter_2.db").write_bytes(content(*entries[:10]))
    faults = dict(ours.errors)
    assert values(ours.render()) == {
        **{f'c_total{{x="{n}"}}': 1.0 * n for n in range(10)},
        "h_sum": 1.0,
    }
    assert ours.errors == faults


def test_a_half_written_key_is_looked_at_once_where_series_get_room(tmp_path: Path) -> None:
    other, path = tmp_path / "counter_1.db", tmp_path / "counter_2.db"
    first = entry(key(labels={"x": "a"}), 1.0)
    other.write_bytes(content(FIRST))
    path.write_bytes(content(first))
    ours = MultiprocessDirectory(tmp_path, max_series=1)
    assert values(ours.render()) == {"other_total": 1.0}
    faults = dict(ours.errors)
    other.unlink()
    with path.open("r+b") as file:
        file.write(content(first, bytes(len(first))))  # in use, and not written yet
    assert values(ours.render()) == {'c_total{x="a"}': 1.0}
    assert ours.errors == faults


def test_a_directory_that_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    ours = MultiprocessDirectory(path)
    for _ in range(3):
        assert ours.render() == b""
        path.mkdir()
        (path / "counter_1.db").write_bytes(content(FIRST))
        assert values(ours.render()) == {"other_total": 1.0}
        shutil.rmtree(path)
    assert ours.errors == {}


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_to_list_a_directory_its_known_files_go_on(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    paths = [tmp_path / "counter_1.db", below / "counter_2.db"]
    for path in paths:
        path.write_bytes(content(entry(key(), 2.0)))
    ours = MultiprocessDirectory(tmp_path)
    assert values(ours.render()) == {"c_total": 4.0}
    with paths[1].open("r+b") as held:
        held.write(content(entry(key(), 5.0)))
        (tmp_path / "counter_3.db").write_bytes(content(entry(key(), 10.0)))  # it is listed again
        with no_descriptors():
            held.seek(0)
            held.write(content(entry(key(), 6.0)))
            held.flush()
            page = values(ours.render())
    assert page == {"c_total": 8.0}
    assert ours.errors["unreadable"]
    faults = dict(ours.errors)
    assert values(ours.render()) == {"c_total": 18.0}
    assert ours.errors == faults


def test_more_files_than_may_be_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamometer.multiprocess.open_files._MAX_HELD_OPEN", 5)
    for number in range(20):
        (tmp_path / f"counter_{number}.db").write_bytes(content(entry(key(), 2.0)))
    ours = MultiprocessDirectory(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert values(ours.render()) == {"c_total": 40.0}
    assert len(os.listdir("/proc/self/fd")) == before + 5
    for number in range(20):
        (tmp_path / f"counter_{number}.db").write_bytes(content(entry(key(), 3.0)))
    assert values(ours.render()) == {"c_total": 60.0}
    os.truncate(tmp_path / "counter_19.db", 0)
    assert values(ours.render()) == {"c_total": 57.0}
    assert ours.errors == {"truncated": 1} or ours.errors == {"empty": 1}
    ours.close()
    assert len(os.listdir("/proc/self/fd")) == before
