"""What ended processes have counted stays; what they were gauging goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from bytes_of_files import content, entry, key
from pages import assert_parsers_accept, values
from writer import Written, write_process

from dynamometer.multiprocess import MultiprocessDirectory

MODES = ("all", "liveall", "min", "max", "sum", "livesum", "mostrecent")


def everything(amount: float) -> list[Written]:
    """Some of each type, and a gauge of each mode."""
    return [
        Written("counter", "c", actions=[((), "+", amount)]),
        Written("histogram", "h", actions=[((), "o", amount)], buckets=[1.0, 5.0]),
        Written("summary", "s", actions=[((), "o", amount)]),
        *(Written("gauge", f"g_{mode}", mode=mode, actions=[((), "=", amount)]) for mode in MODES),
    ]


def counters(*found: tuple[str, dict[str, str], float]) -> bytes:
    """A counter file of these: name, labels, value."""
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
        pytest.param([("c", {}, 5.0)], {"c_total": 105.0}, id="less"),
        pytest.param([("c", {}, 150.0)], {"c_total": 150.0}, id="more: the same file goes on"),
        pytest.param([("d", {}, 150.0)], {"c_total": 100.0, "d_total": 150.0}, id="other key"),
        pytest.param(
            [("cc", {}, 150.0), ("c", {}, 120.0)],
            {"c_total": 220.0, "cc_total": 150.0},
            id="other place",
        ),
        pytest.param([], {"c_total": 100.0}, id="not begun"),
    ],
)
def test_another_file_with_the_number_of_a_retired_one_counts_from_zero(
    now: list[tuple[str, dict[str, str], float]], total: dict[str, float], tmp_path: Path
) -> None:
    path = tmp_path / "counter_7.db"
    path.write_bytes(counters(("c", {}, 100.0)))
    ours = MultiprocessDirectory(tmp_path)
    ours.retire([7])
    path.write_bytes(counters(*now))  # in place: as a file system that uses numbers again
    assert values(ours.render()) == total
    ours.retire([7])
    assert values(ours.render()) == total


def test_a_new_file_of_a_retired_process_awakens_its_old_ones_at_once(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path)
    old = range(100, 200)
    for pid in old:
        (tmp_path / f"counter_{pid}.db").write_bytes(counters(("c", {}, 1.0)))
    ours.retire(old)
    for pid in old:
        (tmp_path / f"counter_{pid}.db").write_bytes(counters(("c", {}, 2.0)))
        (tmp_path / f"gauge_sum_{pid}.db").write_bytes(content(entry(key("g", "g"), 1.0)))
    assert values(ours.render()) == {"c_total": 200.0, "g": 100.0}


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


def test_many_retired_processes_leave_nothing_to_read(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path, owned=True)
    for number in range(40):
        ours.retire([write_process(tmp_path, everything(1.0), pid=str(number))])
    assert values(ours.render())["c_total"] == 40.0
    assert list(tmp_path.iterdir()) == []
    assert len(ours.families()) == 3
