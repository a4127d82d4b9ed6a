"""The counts of ended processes stay; their gauges disappear."""

from __future__ import annotations

import errno
import logging
import math
import os
from pathlib import Path

import pytest
from bytes_of_files import content, entry, key
from pages import assert_parsers_accept, values
from writer import Written, write_process

from dynamometer.multiprocess import MultiprocessDirectory

MODES = ("all", "liveall", "min", "max", "sum", "livesum", "mostrecent")


def everything(amount: float) -> list[Written]:
    """Return metrics of each type, and a gauge of each mode."""
    return [
        Written("counter", "c", actions=[((), "+", amount)]),
        Written("histogram", "h", actions=[((), "o", amount)], buckets=[1.0, 5.0]),
        Written("summary", "s", actions=[((), "o", amount)]),
        *(Written("gauge", f"g_{mode}", mode=mode, actions=[((), "=", amount)]) for mode in MODES),
    ]


def counters(*found: tuple[str, dict[str, str], float]) -> bytes:
    """Return the bytes of a counter file with these series: name, labels, value."""
    entries = [entry(key(name, f"{name}_total", labels), value) for name, labels, value in found]
    return content(*entries)


def totals(page: bytes) -> dict[str, float]:
    return {series: value for series, value in values(page).items() if series[:2] != "g_"}


def gauges(page: bytes) -> set[str]:
    return {series for series in values(page) if series[:2] == "g_"}


@pytest.fixture(params=[True, False], ids=["ours", "not ours"])
def owned(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_dead_process_keeps_its_counters_and_loses_its_gauges(
    owned: bool, tmp_path: Path
) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=owned)
    dead = write_process(tmp_path, everything(2.0))
    before = totals(ours.render())
    ours.retire([dead])
    assert totals(ours.render()) == before
    assert gauges(ours.render()) == set()
    assert_parsers_accept(ours)
    assert any(tmp_path.iterdir()) is not owned


def test_a_dead_process_that_counted_nothing_keeps_its_families(
    owned: bool, tmp_path: Path
) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=owned)
    idle = [
        Written("counter", "idle"),
        Written("histogram", "lat", buckets=[1.0]),
        Written("summary", "s"),
    ]
    dead = write_process(tmp_path, idle)
    before = ours.render()
    assert values(before)["idle_total"] == values(before)["lat_count"] == 0.0
    ours.retire([dead])
    assert ours.render() == before
    for path in tmp_path.iterdir():
        path.unlink()
    assert ours.render() == before
    assert any(tmp_path.iterdir()) is False


def test_a_process_never_seen_before_it_ended_counts_too(owned: bool, tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=owned)
    ours.retire([write_process(tmp_path, everything(2.0))])
    assert totals(ours.render())["c_total"] == 2.0


def test_the_living_count_on_beside_the_dead(owned: bool, tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=owned)
    dead = [write_process(tmp_path, everything(2.0)) for _ in range(3)]
    ours.render()
    ours.retire(map(int, dead[:2]))
    write_process(tmp_path, everything(0.5))
    found = values(ours.render())
    assert found["c_total"] == 6.5
    assert found['h_bucket{le="1.0"}'] == 1.0
    assert found['h_bucket{le="+Inf"}'] == found["h_count"] == 4.0
    assert found["h_sum"] == found["s_sum"] == 6.5
    assert found["g_sum"] == 2.5
    assert found["g_max"] == 2.0
    ours.retire([dead[2]])
    found = values(ours.render())
    assert found["c_total"] == 6.5
    assert found["g_max"] == 0.5


def test_a_pid_used_again_counts_nothing_twice(owned: bool, tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=owned)
    for life in range(1, 4):
        write_process(tmp_path, everything(2.0), pid="77")
        assert totals(ours.render())["c_total"] == 2.0 * life
        assert totals(ours.render())["h_count"] == 1.0 * life
        assert len(gauges(ours.render())) == len(MODES)
        ours.retire(["77"])
        assert totals(ours.render())["c_total"] == 2.0 * life
        assert totals(ours.render())["h_count"] == 1.0 * life
        assert gauges(ours.render()) == set()
    assert ours.errors == {}


def test_an_old_file_continued_with_new_series(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path)
    write_process(tmp_path, [Written("counter", "c", actions=[((), "+", 2.0)])], pid="5")
    ours.retire(["5"])
    more = [
        Written("counter", "c", actions=[((), "+", 1.0)]),
        Written("counter", "d", actions=[((), "+", 4.0)]),
    ]
    write_process(tmp_path, more, pid="5")
    assert values(ours.render()) == {"c_total": 3.0, "d_total": 4.0}
    ours.retire(["5"])
    assert values(ours.render()) == {"c_total": 3.0, "d_total": 4.0}


def test_a_retired_file_that_somebody_removes_still_counts(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path)
    dead = write_process(tmp_path, everything(2.0))
    ours.retire([dead])
    before = ours.render()
    for path in tmp_path.iterdir():
        path.unlink()
    assert ours.render() == before
    write_process(tmp_path, everything(1.0), pid=dead)
    assert values(ours.render())["c_total"] == 3.0


@pytest.mark.parametrize(
    ("now", "total"),
    [
        pytest.param([("c", {}, 5.0)], {"c_total": 105.0}, id="far less"),
        pytest.param([("c", {}, 90.0)], {"c_total": 100.0}, id="less: an odd reading"),
        pytest.param([("c", {}, 150.0)], {"c_total": 150.0}, id="more: the same file goes on"),
        pytest.param([("d", {}, 150.0)], {"c_total": 100.0, "d_total": 150.0}, id="other key"),
        pytest.param(
            [("cc", {}, 150.0), ("c", {}, 120.0)],
            {"c_total": 120.0, "cc_total": 150.0},
            id="other place: the file was written again",
        ),
        pytest.param([], {"c_total": 100.0}, id="not started"),
    ],
)
def test_other_content_of_a_retired_file_counts_once_it_is_certain_whose_it_is(
    now: list[tuple[str, dict[str, str], float]], total: dict[str, float], tmp_path: Path
) -> None:
    path = tmp_path / "counter_7.db"
    path.write_bytes(counters(("c", {}, 100.0)))
    ours = MultiprocessDirectory(tmp_path)
    ours.retire([7])
    path.write_bytes(counters(*now))  # in place: as a file system that uses numbers again
    ours.render()  # one reading may be odd
    assert values(ours.render()) == total
    ours.retire([7])
    assert values(ours.render()) == total


def test_a_new_file_of_a_retired_process_shows_its_gauges_at_once(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path)
    old = range(100, 200)
    for pid in old:
        (tmp_path / f"counter_{pid}.db").write_bytes(counters(("c", {}, 1.0)))
    ours.retire(old)
    for pid in old:
        (tmp_path / f"counter_{pid}.db").write_bytes(counters(("c", {}, 2.0)))
        (tmp_path / f"gauge_sum_{pid}.db").write_bytes(content(entry(key("g", "g"), 1.0)))
    assert values(ours.render()) == {"c_total": 200.0, "g": 100.0}


@pytest.mark.parametrize(
    "then",
    [
        pytest.param([("a", {}, 3.0)], id="counts"),
        pytest.param([("a", {}, 0.0), ("b", {}, 0.0)], id="another series without counts"),
    ],
)
def test_a_pid_used_again_shows_its_gauges_at_the_first_change_after_zeros(
    then: list[tuple[str, dict[str, str], float]], tmp_path: Path
) -> None:
    counter = tmp_path / "counter_1.db"
    counter.write_bytes(counters(("a", {}, 0.0)))
    (tmp_path / "gauge_all_1.db").write_bytes(content(entry(key("g", "g", {}), 7.0)))
    ours = MultiprocessDirectory(tmp_path)
    ours.render()
    ours.retire([1])
    for _ in range(2):
        assert values(ours.render()) == {"a_total": 0.0}
    counter.write_bytes(counters(*then))
    assert values(ours.render())['g{pid="1"}'] == 7.0
    assert list(ours.processes) == ["1"]


def test_a_gauge_of_zero_is_shown_when_a_pid_used_again_sets_it(tmp_path: Path) -> None:
    gauge = tmp_path / "gauge_all_1.db"
    gauge.write_bytes(content(entry(key("g", "g", {}), 0.0)))
    ours = MultiprocessDirectory(tmp_path)
    ours.retire([1])
    assert values(ours.render()) == {}
    gauge.write_bytes(content(entry(key("g", "g", {}), 5.0)))
    assert values(ours.render()) == {'g{pid="1"}': 5.0}


def test_a_sum_that_falls_is_the_same_file_going_on(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path)
    write_process(tmp_path, [Written("summary", "s", actions=[((), "o", 4.0)])], pid="5")
    ours.retire(["5"])
    write_process(tmp_path, [Written("summary", "s", actions=[((), "o", -1.0)])], pid="5")
    assert values(ours.render()) == {"s_count": 2.0, "s_sum": 3.0}


def test_a_total_never_falls_by_its_last_bit(owned: bool, tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=owned)
    pids = [
        write_process(tmp_path, [Written("counter", "c", actions=[((), "+", amount)])])
        for amount in (0.1, 0.7, 1e9 / 3, 1e-9, 0.3)
    ]
    total = values(ours.render())["c_total"]
    for pid in reversed(pids):
        ours.retire([pid])
        now = values(ours.render())["c_total"]
        assert now >= total
        total = now


def test_a_file_that_cannot_be_removed_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "no", str(path))

    ours = MultiprocessDirectory(tmp_path, owned=True)
    dead = write_process(tmp_path, [Written("counter", "c", actions=[((), "+", 2.0)])])
    monkeypatch.setattr(Path, "unlink", refuse)
    ours.retire([dead])
    assert values(ours.render()) == {"c_total": 2.0}
    assert ours.errors["not_removed"]


class Unlinking:
    """Path.unlink, which fails as in a directory that is not writable for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed = False
        self.tried = 0
        really_unlink = Path.unlink

        def unlink(path: Path, missing_ok: bool = False) -> None:
            self.tried += 1
            if not self.allowed:
                raise PermissionError(13, "no", str(path))
            really_unlink(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)


@pytest.fixture
def unlinking(monkeypatch: pytest.MonkeyPatch) -> Unlinking:
    return Unlinking(monkeypatch)


def settle(path: Path) -> None:
    """Give a directory an old modification time."""
    os.utime(path, ns=(1, 1_600_000_000_000_000_001))


ONE = [Written("counter", "c", actions=[((), "+", 2.0)])]


def test_a_file_that_could_not_be_removed_is_no_fault_once_it_is_gone(
    tmp_path: Path, unlinking: Unlinking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dynamometer")
    ours = MultiprocessDirectory(tmp_path, owned=True)
    dead = write_process(tmp_path, ONE)
    ours.retire([dead])
    assert values(ours.render()) == {"c_total": 2.0}
    assert ours.errors == {"not_removed": 1}
    os.unlink(tmp_path / f"counter_{dead}.db")
    for _ in range(3):
        assert values(ours.render()) == {"c_total": 2.0}
    assert ours.errors == {"not_removed": 1}
    assert "no longer has the fault (not_removed)" in caplog.records[-1].getMessage()


def test_a_file_that_could_not_be_removed_is_with_the_next_process(
    tmp_path: Path, unlinking: Unlinking
) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=True)
    ours.retire([write_process(tmp_path, ONE)])
    ours.render()
    settle(tmp_path)
    unlinking.allowed = True
    other = write_process(tmp_path, ONE)
    settle(tmp_path)
    ours.retire([other])
    assert list(tmp_path.iterdir()) == []
    faults = dict(ours.errors)
    assert values(ours.render()) == {"c_total": 4.0}
    assert ours.errors == faults


def test_a_file_that_could_not_be_removed_is_when_its_directory_is_listed(
    tmp_path: Path, unlinking: Unlinking
) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=True)
    ours.retire([write_process(tmp_path, ONE)])
    settle(tmp_path)
    ours.render()
    tried = unlinking.tried
    for _ in range(3):
        ours.render()
    assert unlinking.tried == tried
    unlinking.allowed = True
    living = write_process(tmp_path, ONE)
    assert values(ours.render()) == {"c_total": 4.0}
    assert [path.name for path in tmp_path.iterdir()] == [f"counter_{living}.db"]
    faults = dict(ours.errors)
    assert values(ours.render()) == {"c_total": 4.0}
    assert ours.errors == faults


def test_a_file_that_could_not_be_removed_is_left_to_a_process_that_goes_on_with_it(
    tmp_path: Path, unlinking: Unlinking
) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=True)
    write_process(tmp_path, ONE, pid="99999999")
    ours.retire(["99999999"])
    write_process(tmp_path, ONE, pid="99999999")
    mine = tmp_path / f"counter_{os.getpid()}.db"
    mine.write_bytes(counters(("c", {}, 3.0)))
    ours.retire([os.getpid()])  # its process has this number again, and may have it open
    unlinking.allowed = True
    for _ in range(2):
        ours.retire([])
        assert values(ours.render()) == {"c_total": 7.0}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("endless", [math.inf, -math.inf, math.nan])
def test_an_infinity_that_goes_on_stays_what_it_was(endless: float, tmp_path: Path) -> None:
    counter, gauge = tmp_path / "counter_7.db", tmp_path / "gauge_sum_7.db"
    ours = MultiprocessDirectory(tmp_path)
    for life in (1.0, 2.0, 3.0):
        c = [entry(key(), endless), entry(key(labels={"x": "a"}), life)]
        counter.write_bytes(content(*c))
        gauge.write_bytes(content(entry(key("g", "g"), endless)))
        expected = {"c_total": endless, 'c_total{x="a"}': life}
        assert values(ours.render()) == pytest.approx({**expected, "g": endless}, nan_ok=True)
        ours.retire([7])
        assert values(ours.render()) == pytest.approx(expected, nan_ok=True)
        gauge.unlink()


def test_an_endless_sum_that_another_file_does_not_go_on_with_stays(tmp_path: Path) -> None:
    path = tmp_path / "summary_7.db"
    ours = MultiprocessDirectory(tmp_path)
    for value in (math.inf, 5.0):
        path.write_bytes(content(entry(key("s", "s_sum"), value)))
        assert values(ours.render()) == {"s_sum": math.inf}
        ours.retire([7])
        assert values(ours.render()) == {"s_sum": math.inf}


@pytest.mark.parametrize("retired_while_bad", [False, True])
def test_an_old_file_that_goes_on_and_turns_bad_for_a_while_counts_nothing_twice(
    retired_while_bad: bool, tmp_path: Path
) -> None:
    path = tmp_path / "counter_7.db"
    path.write_bytes(counters(("c", {}, 100.0)))
    ours = MultiprocessDirectory(tmp_path)
    ours.retire([7])
    for counted in (150.0, 170.0):
        path.write_bytes(counters(("c", {}, counted), ("d", {}, 1.0)))
        assert values(ours.render()) == {"c_total": counted, "d_total": 1.0}
        os.truncate(path, 16)
        assert values(ours.render()) == {"c_total": counted, "d_total": 1.0}
        if retired_while_bad:
            ours.retire([7])
    path.write_bytes(counters(("c", {}, 200.0)))
    assert values(ours.render()) == {"c_total": 200.0, "d_total": 1.0}
    ours.retire([7])
    assert values(ours.render()) == {"c_total": 200.0, "d_total": 1.0}


@pytest.mark.parametrize("fails", range(1, 7))
def test_an_old_file_that_cannot_be_opened_again_for_a_while_counts_nothing_twice(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamometer.multiprocess.open_files._MAX_HELD_OPEN", 0)
    path = tmp_path / "counter_7.db"
    path.write_bytes(counters(("c", {}, 100.0)))
    ours = MultiprocessDirectory(tmp_path)
    ours.retire([7])
    path.write_bytes(counters(("c", {}, 150.0)))
    opened = 0
    really_open = os.open

    def fail_once(name: str, flags: int) -> int:
        nonlocal opened
        opened += name == str(path)
        if opened == fails:
            raise OSError(errno.EMFILE, "Too many open files")
        return really_open(name, flags)

    monkeypatch.setattr(os, "open", fail_once)
    while opened <= fails:
        assert values(ours.render()) in ({"c_total": 100.0}, {"c_total": 150.0})
    assert values(ours.render()) == {"c_total": 150.0}


def test_series_that_get_room_in_an_old_file_that_goes_on_count_whole(tmp_path: Path) -> None:
    path, other = tmp_path / "counter_7.db", tmp_path / "counter_1.db"
    other.write_bytes(counters(("a", {}, 1.0)))
    path.write_bytes(counters(("c", {}, 100.0), ("d", {}, 10.0)))
    ours = MultiprocessDirectory(tmp_path, max_series=2)
    ours.retire([7])
    path.write_bytes(counters(("c", {}, 150.0), ("d", {}, 15.0)))
    assert values(ours.render()) == {"a_total": 1.0, "c_total": 150.0}
    other.unlink()
    assert values(ours.render()) == {"c_total": 150.0, "d_total": 15.0}


def test_many_retired_processes_leave_nothing_to_read(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=True)
    for number in range(40):
        ours.retire([write_process(tmp_path, everything(1.0), pid=str(number))])
    assert values(ours.render())["c_total"] == 40.0
    assert list(tmp_path.iterdir()) == []
    assert len(ours.families()) == 3
