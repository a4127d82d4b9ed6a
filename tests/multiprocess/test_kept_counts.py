"""`keep_totals` keeps the counts of removed files: a total never falls."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bytes_of_files import content, entry, key
from pages import values
from writer import Written, write_process

from dynamometer.multiprocess import MultiprocessDirectory


def written(amount: float) -> list[Written]:
    return [
        Written("counter", "c", actions=[((), "+", amount)]),
        Written("histogram", "h", actions=[((), "o", amount)], buckets=[1.0, 5.0]),
        Written("gauge", "g", mode="sum", actions=[((), "=", amount)]),
    ]


@pytest.fixture(params=["held open", "not held open"])
def ours(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MultiprocessDirectory:
    if request.param != "held open":
        monkeypatch.setattr("dynamometer.multiprocess.open_files._MAX_HELD_OPEN", 0)
    return MultiprocessDirectory(tmp_path / "first", keep_totals=True)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    (tmp_path / "first").mkdir()
    return tmp_path / "first"


def shown(ours: MultiprocessDirectory) -> dict[str, float]:
    return values(ours.render())


def test_removed_files_leave_their_totals_and_take_their_gauges(
    ours: MultiprocessDirectory, first: Path
) -> None:
    write_process(first, written(2.0))
    assert shown(ours)["g"] == 2.0
    shutil.rmtree(first)
    after = shown(ours)
    assert after["c_total"] == 2.0
    assert after["h_sum"] == 2.0
    assert after["h_count"] == 1.0
    assert after['h_bucket{le="5.0"}'] == 1.0
    assert "g" not in after


def test_other_processes_add_to_what_was_kept(ours: MultiprocessDirectory, first: Path) -> None:
    for times in (1, 2, 3):
        write_process(first, written(2.0))
        assert shown(ours)["c_total"] == 2.0 * times
        for file in first.iterdir():
            file.unlink()
        assert shown(ours)["c_total"] == 2.0 * times


def test_an_engine_that_writes_elsewhere_now_goes_on_with_its_totals(
    ours: MultiprocessDirectory, first: Path, tmp_path: Path
) -> None:
    write_process(first, written(2.0))
    shown(ours)
    shutil.rmtree(first)
    second = tmp_path / "second"
    second.mkdir()
    write_process(second, written(3.0))
    ours.follow(second)
    after = shown(ours)
    assert (after["c_total"], after["h_sum"], after["g"]) == (5.0, 5.0, 3.0)


def test_a_file_that_another_takes_the_place_of_counts_on(
    ours: MultiprocessDirectory, first: Path
) -> None:
    path = first / "counter_7.db"
    path.write_bytes(content(entry(key("c", "c_total", {}), 4.0)))
    assert shown(ours)["c_total"] == 4.0
    other = first / "other"
    other.write_bytes(content(entry(key("c", "c_total", {}), 1.0)))
    other.rename(path)
    assert shown(ours)["c_total"] == 5.0


def test_what_was_counted_between_the_last_reading_and_the_end_counts_too(first: Path) -> None:
    ours = MultiprocessDirectory(first, keep_totals=True)
    path = first / "counter_7.db"
    path.write_bytes(content(entry(key("c", "c_total", {}), 4.0), size=4096))
    assert shown(ours)["c_total"] == 4.0
    with path.open("r+b") as file:
        more = entry(key("c", "c_total", {}), 6.0), entry(key("d", "d_total", {}), 9.0)
        file.write(content(*more, size=4096))
    path.unlink()
    after = shown(ours)
    assert (after["c_total"], after["d_total"]) == (6.0, 9.0)


def test_a_file_cut_off_before_it_was_removed_leaves_what_was_known(first: Path) -> None:
    ours = MultiprocessDirectory(first, keep_totals=True)
    path = first / "counter_7.db"
    path.write_bytes(content(entry(key("c", "c_total", {}), 4.0)))
    shown(ours)
    path.write_bytes(b"")
    path.unlink()
    assert shown(ours)["c_total"] == 4.0


def test_a_retired_process_is_not_counted_again_when_its_files_go(first: Path) -> None:
    ours = MultiprocessDirectory(first, keep_totals=True)
    dead = write_process(first, written(2.0))
    ours.retire([dead])
    shutil.rmtree(first)
    assert shown(ours)["c_total"] == 2.0


def test_without_it_files_that_go_take_their_totals_as_prometheus_client_has_it(
    first: Path,
) -> None:
    ours = MultiprocessDirectory(first)
    write_process(first, written(2.0))
    shown(ours)
    shutil.rmtree(first)
    assert shown(ours) == {}


def test_a_sum_falls_by_a_negative_amount_also_when_another_file_is_removed(first: Path) -> None:
    ours = MultiprocessDirectory(first, keep_totals=True)
    paths = [first / "summary_7.db", first / "summary_8.db"]
    for path in paths:
        path.write_bytes(content(entry(key("s", "s_count"), 2.0), entry(key("s", "s_sum"), 6.0)))
    assert shown(ours) == {"s_count": 4.0, "s_sum": 12.0}
    paths[0].write_bytes(content(entry(key("s", "s_count"), 3.0), entry(key("s", "s_sum"), 1.0)))
    paths[1].unlink()
    assert shown(ours) == {"s_count": 5.0, "s_sum": 7.0}
    assert shown(ours) == {"s_count": 5.0, "s_sum": 7.0}
