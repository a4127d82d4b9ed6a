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


ZEROS = [
    Written("counter", "c"),
    Written("histogram", "h", buckets=[1.0, 5.0]),
    Written("summary", "s"),
]


def test_removed_files_with_only_zeros_leave_their_families(
    ours: MultiprocessDirectory, first: Path
) -> None:
    write_process(first, ZEROS)
    before = ours.render()
    assert set(shown(ours).values()) == {0.0}
    for _ in range(2):
        for file in first.iterdir():
            file.unlink()
        assert ours.render() == before
        write_process(first, ZEROS)
        assert ours.render() == before
    write_process(first, written(2.0))
    assert shown(ours)["c_total"] == 2.0


def test_a_series_without_counts_stays_when_its_file_is_removed_before_another_reading(
    ours: MultiprocessDirectory, first: Path
) -> None:
    path = first / "counter_7.db"
    path.write_bytes(content(entry(key("c", "c_total", {}), 0.0), size=4096))
    shown(ours)
    entries = [entry(key(name, f"{name}_total", {}), 0.0) for name in "cd"]
    path.write_bytes(content(*entries, size=4096))
    assert shown(ours) == {"c_total": 0.0, "d_total": 0.0}
    path.write_bytes(b"")
    assert shown(ours) == {"c_total": 0.0, "d_total": 0.0}
    path.unlink()
    assert shown(ours) == {"c_total": 0.0, "d_total": 0.0}


def test_zeros_after_counts_are_an_odd_reading(ours: MultiprocessDirectory, first: Path) -> None:
    path = first / "counter_7.db"
    for value in (0.0, 4.0, 0.0, 0.0):
        path.write_bytes(content(entry(key("c", "c_total", {}), value)))
        total = shown(ours)["c_total"]
    path.unlink()
    assert shown(ours)["c_total"] == total == 4.0


def test_a_total_does_not_fall_by_its_last_bit_when_a_file_returns(
    ours: MultiprocessDirectory, first: Path
) -> None:
    for number, value in enumerate((0.4, 0.2, 0.8, 0.1)):
        path = first / f"counter_{number}.db"
        path.write_bytes(content(entry(key("c", "c_total", {}), value)))
    total = shown(ours)["c_total"]
    path = first / "counter_0.db"
    data = path.read_bytes()
    for found in (b"", data, data):
        path.write_bytes(found)
        now = shown(ours)["c_total"]
        assert now >= total
        total = now


def summary(count: float, total: float) -> bytes:
    return content(entry(key("s", "s_count", {}), count), entry(key("s", "s_sum", {}), total))


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        pytest.param([(1.0, 0.0), (2.0, 1.0), (3.0, 7.0)], [3.0, 3.0, 7.0], id="same count"),
        pytest.param([(2.0, 1.0), (3.0, 2.0), (9.0, 3.5)], [3.0, 3.0, 3.5], id="more counted"),
        pytest.param([(2.0, -1.0), (3.0, -4.0)], [3.0, 3.0], id="negative"),
    ],
)
def test_a_sum_does_not_fall_when_a_file_returns_with_a_lower_one(
    then: list[tuple[float, float]],
    expected: list[float],
    ours: MultiprocessDirectory,
    first: Path,
) -> None:
    path = first / "summary_7.db"
    path.write_bytes(summary(1.0, 3.0))
    assert shown(ours) == {"s_count": 1.0, "s_sum": 3.0}
    path.unlink()
    assert shown(ours) == {"s_count": 1.0, "s_sum": 3.0}
    most = 1.0
    for (count, total), sum_shown in zip(then, expected, strict=True):
        path.write_bytes(summary(count, total))
        most = max(most, count)
        for _ in range(2):
            assert shown(ours) == {"s_count": most, "s_sum": sum_shown}


def test_the_sum_of_a_histogram_does_not_fall_when_its_file_returns_with_a_lower_one(
    ours: MultiprocessDirectory, first: Path
) -> None:
    path = first / "histogram_7.db"

    def write(count: float, total: float) -> None:
        bucket = entry(key("h", "h_bucket", {"le": "+Inf"}), count)
        path.write_bytes(content(entry(key("h", "h_sum", {}), total), bucket))

    write(2.0, 6.0)
    shown(ours)
    path.unlink()
    shown(ours)
    for count, total in ((2.0, 1.0), (3.0, 2.0), (4.0, 8.0)):
        write(count, total)
        after = shown(ours)
        assert (after["h_count"], after["h_sum"]) == (count, max(total, 6.0))


def test_a_count_does_not_fall_below_one_shown_while_others_are_held(
    ours: MultiprocessDirectory, first: Path
) -> None:
    path = first / "counter_7.db"

    def write(c: float, d: float) -> None:
        entries = [entry(key("c", "c_total", {}), c), entry(key("d", "d_total", {}), d)]
        path.write_bytes(content(*entries))

    write(10.0, 100.0)
    shown(ours)
    path.unlink()
    shown(ours)
    write(50.0, 90.0)
    assert shown(ours) == {"c_total": 50.0, "d_total": 100.0}
    write(30.0, 95.0)
    assert shown(ours) == {"c_total": 50.0, "d_total": 100.0}
