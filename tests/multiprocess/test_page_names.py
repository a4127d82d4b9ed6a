"""Keys with the same names on a page are one series: the first is shown, others are counted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bytes_of_files import content, entry, key
from pages import assert_parsers_accept, values

from dynamometer.multiprocess import MultiProcessCollector, MultiprocessDirectory

Keys = list[tuple[bytes, float]]

COUNTERS: dict[str, tuple[Keys, dict[str, float], dict[str, int]]] = {
    "a dot and an underscore": (
        [
            (key("a.b", "a.b_total", {"x.y": "1"}), 5.0),
            (key("a_b", "a_b_total", {"x_y": "1"}), 7.0),
        ],
        {'a_b_total{x_y="1"}': 5.0},
        {"overlap": 1},
    ),
    "the other way round": (
        [
            (key("a_b", "a_b_total", {"x_y": "1"}), 7.0),
            (key("a.b", "a.b_total", {"x.y": "1"}), 5.0),
        ],
        {'a_b_total{x_y="1"}': 7.0},
        {"overlap": 1},
    ),
    "names alone": (
        [(key("a.b", "a.b_total"), 5.0), (key("a-b", "a-b_total"), 7.0)],
        {"a_b_total": 5.0},
        {"overlap": 1},
    ),
    "labels alone": (
        [(key(labels={"x:y": "1"}), 5.0), (key(labels={"x_y": "1"}), 7.0)],
        {'c_total{x_y="1"}': 5.0},
        {"overlap": 1},
    ),
    "one family by two names, with other labels": (
        [
            (key("a.b", "a.b_total", {"k": "1"}), 5.0),
            (key("a_b", "a_b_total", {"k": "2"}), 7.0),
        ],
        {'a_b_total{k="1"}': 5.0, 'a_b_total{k="2"}': 7.0},
        {},
    ),
    "colons stay in a metric's name": (
        [(key("a:b", "a:b_total"), 5.0), (key("a_b", "a_b_total"), 7.0)],
        {"a:b_total": 5.0, "a_b_total": 7.0},
        {},
    ),
    "letters outside ASCII": (
        [(key("é", "é_total"), 5.0), (key("漢", "漢_total"), 7.0)],
        {"__total": 5.0},
        {"overlap": 1},
    ),
    "a digit in front": (
        [(key("1a", "1a_total"), 5.0), (key("_a", "_a_total"), 7.0)],
        {"_a_total": 5.0},
        {"overlap": 1},
    ),
    "with and without _total": (
        [(key("c", "c_total"), 5.0), (key("c", "c"), 7.0)],
        {"c_total": 5.0},
        {"overlap": 1},
    ),
    "a family that is called _total": (
        [(key("c", "c_total"), 5.0), (key("c_total", "c_total"), 7.0)],
        {"c_total": 5.0},
        {"overlap": 1},
    ),
    "without _total alone": ([(key("c", "c"), 7.0)], {"c_total": 7.0}, {}),
    "a counter that is called like another one's sample": (
        [(key("c", "c_total"), 5.0), (key("c_total", "c_total_total"), 7.0)],
        {"c_total": 5.0},
        {"type_conflict": 1},
    ),
    "a sample of another family": (
        [(key("c", "d_total"), 5.0), (key("d", "d_total"), 7.0)],
        {"d_total": 7.0},
        {"key": 1},
    ),
    "two labels of one name": (
        [(key(labels={"x.y": "1", "x_y": "2"}), 5.0), (key(labels={"x_y": "2"}), 7.0)],
        {'c_total{x_y="2"}': 7.0},
        {"overlap": 1},
    ),
    "a label that stands for the metric's name": (
        [
            (key(labels={"__name__": "d"}), 5.0),
            (key(labels={"_.name__": "d"}), 6.0),
            (key(), 7.0),
        ],
        {"c_total": 7.0},
        {"key": 1},
    ),
    "labels in another order are the same key, as for prometheus_client": (
        [(key(labels={"x": "1", "y": "2"}), 5.0), (key(labels={"y": "2", "x": "1"}), 7.0)],
        {'c_total{x="1",y="2"}': 12.0},
        {},
    ),
}


def file(*keys: tuple[bytes, float]) -> bytes:
    return content(*[entry(one, value) for one, value in keys])


def assert_readable(ours: MultiprocessDirectory) -> None:
    """Assert that promtool and prometheus_client's parsers accept the page, without duplicates."""
    page = ours.render()
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
    )
    assert checked.returncode in (0, 3), checked  # 3: a name or a help text is not to its taste
    assert b"error while linting" not in checked.stderr
    for openmetrics in (False, True):
        lines = ours.render(openmetrics=openmetrics).decode().splitlines()
        series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
        assert len(series) == len(set(series))
        types = [line.split(" ")[2] for line in lines if line.startswith("# TYPE")]
        assert len(types) == len(set(types))
    assert_parsers_accept(ours)


@pytest.mark.parametrize("name", COUNTERS)
def test_counters_of_one_file(name: str, tmp_path: Path) -> None:
    keys, expected, errors = COUNTERS[name]
    (tmp_path / "counter_1.db").write_bytes(file(*keys))
    with MultiprocessDirectory(tmp_path) as ours:
        assert values(ours.render()) == expected
        assert ours.errors == errors
        assert_readable(ours)


@pytest.mark.parametrize("name", COUNTERS)
def test_counters_of_two_processes(name: str, tmp_path: Path) -> None:
    keys, expected, errors = COUNTERS[name]
    for number, one in enumerate(keys, 1):
        (tmp_path / f"counter_{number}.db").write_bytes(file(one))
    with MultiprocessDirectory(tmp_path) as ours:
        assert values(ours.render()) == expected
        # A reading counts each file with an omitted series.
        assert ours.errors.keys() == errors.keys()
        assert_readable(ours)


def test_each_process_adds_to_the_name_that_stands(tmp_path: Path) -> None:
    dotted = (key("a.b", "a.b_total", {"x.y": "1"}), 5.0)
    plain = (key("a_b", "a_b_total", {"x_y": "1"}), 7.0)
    for number in range(3):
        (tmp_path / f"counter_{number}.db").write_bytes(file(dotted, plain))
    with MultiprocessDirectory(tmp_path) as ours:
        assert values(ours.render()) == {'a_b_total{x_y="1"}': 15.0}
        assert ours.errors == {"overlap": 3}


def test_the_log_names_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "counter_1.db").write_bytes(file(*COUNTERS["a dot and an underscore"][0]))
    with MultiprocessDirectory(tmp_path) as ours:
        ours.families()
    assert "a_b_total{x_y} is written as a.b_total{x.y}, which came first" in caplog.text


def test_the_next_name_stands_when_the_first_is_gone(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").write_bytes(file((key("a.b", "a.b_total"), 5.0)))
    (tmp_path / "counter_2.db").write_bytes(file((key("a_b", "a_b_total"), 7.0)))
    with MultiprocessDirectory(tmp_path) as ours:
        assert values(ours.render()) == {"a_b_total": 5.0}
        (tmp_path / "counter_1.db").unlink()
        assert values(ours.render()) == {"a_b_total": 7.0}


def test_constant_labels_yield_to_a_series_own_by_its_written_name(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").write_bytes(file((key(labels={"x.y": "own"}), 1.0)))
    with MultiprocessDirectory(tmp_path, labels={"x_y": "constant", "z.z": "c"}) as ours:
        assert values(ours.render()) == {'c_total{x_y="own",z_z="c"}': 1.0}
        assert_readable(ours)


def histogram(name: str, labels: dict[str, str], value: float) -> Keys:
    bounds = [{**labels, "le": bound} for bound in ("1.0", "+Inf")]
    return [
        *[(key(name, f"{name}_bucket", one), value) for one in bounds],
        (key(name, f"{name}_sum", labels), value),
    ]


def test_a_histograms_label_set_is_one_names_as_a_whole(tmp_path: Path) -> None:
    keys = [*histogram("h.x", {"k.l": "1"}, 3.0), *histogram("h_x", {"k_l": "1"}, 4.0)]
    keys += histogram("h_x", {"k_l": "2"}, 5.0)
    (tmp_path / "histogram_1.db").write_bytes(file(*keys))
    with MultiprocessDirectory(tmp_path) as ours:
        found = values(ours.render())
        assert found['h_x_bucket{k_l="1",le="+Inf"}'] == 6.0
        assert (found['h_x_sum{k_l="1"}'], found['h_x_count{k_l="1"}']) == (3.0, 6.0)
        assert (found['h_x_sum{k_l="2"}'], found['h_x_count{k_l="2"}']) == (5.0, 10.0)
        assert ours.errors == {"overlap": 1}
        assert_readable(ours)


CONFLICTS: dict[str, dict[str, bytes]] = {
    "a gauge and a counter of one name": {
        "counter_1.db": file((key("a.b", "a.b_total"), 1.0)),
        "gauge_sum_1.db": file((key("a_b", "a_b"), 2.0)),
    },
    "a gauge that is called like a counter's sample": {
        "counter_1.db": file((key("a", "a_total"), 1.0)),
        "gauge_sum_1.db": file((key("a.total", "a.total"), 2.0)),
    },
    "a gauge that is called like a histogram's sample": {
        "gauge_sum_1.db": file((key("h_sum", "h_sum"), 2.0)),
        "histogram_1.db": file(*histogram("h", {}, 3.0)),
    },
    "a summary and a histogram of one name": {
        "histogram_1.db": file(*histogram("h.x", {}, 3.0)),
        "summary_1.db": file((key("h_x", "h_x_count"), 1.0), (key("h_x", "h_x_sum"), 1.0)),
    },
    "gauges of two modes": {
        "gauge_max_1.db": file((key("g.x", "g.x"), 1.0)),
        "gauge_sum_1.db": file((key("g_x", "g_x"), 2.0)),
    },
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_files_of_two_types(name: str, tmp_path: Path) -> None:
    for path, data in CONFLICTS[name].items():
        (tmp_path / path).write_bytes(data)
    with MultiprocessDirectory(tmp_path) as ours:
        assert len(ours.families()) == 1
        assert ours.errors == {"type_conflict": 1}
        assert_readable(ours)
        errors = dict(ours.errors)
        (tmp_path / next(iter(CONFLICTS[name]))).unlink()  # now the other one has the name
        assert len(ours.families()) == 1
        assert ours.errors == errors


def test_a_gauge_of_each_process_by_two_names(tmp_path: Path) -> None:
    gauges = file((key("g.x", "g.x", {"l.m": "1"}), 1.0), (key("g_x", "g_x", {"l_m": "1"}), 2.0))
    for number in (1, 2):
        (tmp_path / f"gauge_all_{number}.db").write_bytes(gauges)
    with MultiprocessDirectory(tmp_path) as ours:
        assert values(ours.render()) == {
            'g_x{l_m="1",pid="1"}': 1.0,
            'g_x{l_m="1",pid="2"}': 1.0,
        }
        assert ours.errors == {"overlap": 2}
        assert_readable(ours)


def test_the_drop_in_collector_shows_each_series_once(tmp_path: Path) -> None:
    keys = COUNTERS["a dot and an underscore"][0]
    (tmp_path / "counter_1.db").write_bytes(file(*keys))
    (metric,) = MultiProcessCollector(None, str(tmp_path)).collect()
    assert [(sample.name, sample.value) for sample in metric.samples] == [("a_b_total", 5.0)]
