"""The page of files that prometheus_client wrote is prometheus_client's own page."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import assert_parsers_accept, assert_same_lines, peer_page
from prometheus_client.multiprocess import MultiProcessCollector as PeerCollector
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_om
from writer import Written, write_process

from dynamometer.multiprocess import MultiProcessCollector, MultiprocessDirectory

SAMPLE = Path(__file__).parent.parent / "samples" / "sglang-0.5.23"
MODES = (
    "all",
    "liveall",
    "min",
    "livemin",
    "max",
    "livemax",
    "sum",
    "livesum",
    "mostrecent",
    "livemostrecent",
)
# Sums of these are exact, in whatever order.
AMOUNTS = st.integers(0, 2**40).map(lambda n: n / 8) | st.sampled_from(
    [0.0, 1e-7, 1e6, 999999.0, 1e16, 123456789.125, 1e300]
)
VALUES = (
    AMOUNTS
    | AMOUNTS.map(lambda amount: -amount)
    | st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0])
)
LABEL_VALUES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from('"\\\n{}=, '),
    max_size=6,
)
LABEL_NAMES = st.sampled_from(["le_", "model", "rank", "tp_rank", "zone", "a"])
DOCUMENTATION = st.text(st.sampled_from('ab "\\\né#'), max_size=8)


@st.composite
def metrics(draw: st.DrawFn) -> list[Written]:
    """Return the metrics of the processes of a service, which differ in their values only."""
    found = []
    kinds = st.sampled_from(["counter", "gauge", "gauge", "histogram", "summary"])
    for number, kind in enumerate(draw(st.lists(kinds, min_size=1, max_size=5))):
        labels = draw(st.lists(LABEL_NAMES, unique=True, max_size=2))
        found.append(
            Written(
                type=kind,
                name=f"m{number}:{kind}",
                documentation=draw(DOCUMENTATION),
                mode=draw(st.sampled_from(MODES)),
                labels=labels,
                buckets=sorted(draw(st.sets(st.sampled_from([-1.0, 0.25, 1.0, 1e6, 2e7])))) or [1],
            )
        )
    return found


@st.composite
def processes(draw: st.DrawFn) -> list[list[Written]]:
    shapes = draw(metrics())
    found = []
    for _ in range(draw(st.integers(1, 3))):
        process = []
        for shape in shapes:
            action, amounts = {
                "counter": ("+", AMOUNTS),
                "gauge": ("=", VALUES),
                "histogram": ("o", VALUES.filter(lambda value: value == value)),
                "summary": ("o", AMOUNTS),
            }[shape.type]
            tuples = st.tuples(*[LABEL_VALUES for _ in shape.labels])
            acts = draw(st.lists(st.tuples(tuples, st.just(action), amounts), max_size=3))
            process.append(Written(**{**vars(shape), "actions": acts}))
        found.append(process)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(processes=processes(), dead=st.integers(0, 3))
def test_live_and_dead_processes_come_to_the_same_page(
    processes: list[list[Written]], dead: int
) -> None:
    path = Path(tempfile.mkdtemp())
    try:
        ours = MultiprocessDirectory(path)
        pids = []
        for process in processes:
            pids.append(write_process(path, process))
            assert_same_lines(ours.render(), peer_page(path))
        for pid in pids[:dead]:
            mark_process_dead(int(pid), str(path))
            assert_same_lines(ours.render(), peer_page(path))
        assert ours.errors == {}
        ours.close()
    finally:
        shutil.rmtree(path)


@pytest.mark.parametrize("mode", MODES)
def test_every_gauge_mode(mode: str, tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path)
    values = {
        "a": (3.0, 5.0, 1.0),
        "b": (-1.0, float("nan"), 7.0),
        "c": (float("nan"), 2.0, float("-inf")),
        "d": (-0.0, 0.0, -0.0),
        "e": (0.0, -0.0, 0.0),
    }
    for number in range(3):
        actions = [((label,), "=", of_process[number]) for label, of_process in values.items()]
        write_process(tmp_path, [Written("gauge", "g", mode=mode, labels=["of"], actions=actions)])
        assert_same_lines(ours.render(), peer_page(tmp_path))
    assert len(ours.render().splitlines()) > len(values)
    assert_parsers_accept(ours)


def test_a_mostrecent_gauge_that_nobody_has_set_has_no_sample(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path)
    write_process(tmp_path, [Written("gauge", "g", mode="mostrecent")])
    assert ours.render() == b"# HELP g A text.\n# TYPE g gauge\n"
    write_process(tmp_path, [Written("gauge", "g", mode="mostrecent", actions=[((), "=", 4.0)])])
    assert ours.render() == b"# HELP g A text.\n# TYPE g gauge\ng 4.0\n"


def test_a_service_of_all_types(tmp_path: Path) -> None:
    odd = 'quote " backslash \\ newline \n é 漢 🙂'
    metrics = [
        Written("counter", "c", labels=["x"], actions=[((odd,), "+", 1e7), (("",), "+", 0.5)]),
        Written("histogram", "h", labels=["x"], actions=[((odd,), "o", 0.7), ((odd,), "o", 99.0)]),
        Written("summary", "s", actions=[((), "o", 2.0)]),
        Written("gauge", "g", mode="all", labels=["pid"], actions=[(("mine",), "=", 2.0)]),
        Written("gauge", "m", mode="max", labels=["pid"], actions=[(("mine",), "=", 2.0)]),
    ]
    for _ in range(2):
        write_process(tmp_path, metrics)
    ours = MultiprocessDirectory(tmp_path)
    assert_same_lines(ours.render(), peer_page(tmp_path))
    assert_parsers_accept(ours)


def test_files_of_a_real_sglang() -> None:
    ours = MultiprocessDirectory(SAMPLE / "multiproc")
    assert_same_lines(ours.render(), (SAMPLE / "expected.prom").read_bytes())
    assert_parsers_accept(ours)
    assert ours.errors == {}


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
def test_promtool_reads_the_page(tmp_path: Path) -> None:
    actions: list[tuple[tuple[str, ...], str, float]] = [(('"\\\n',), "=", 2.0)]
    write_process(tmp_path, [Written("gauge", "g", labels=["x"], actions=actions)])
    shutil.copytree(SAMPLE / "multiproc", tmp_path / "engine")
    page = MultiprocessDirectory(tmp_path).render()
    found = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
    )
    # 3 is its opinion of names and help texts, 1 a page that it cannot read.
    assert found.returncode in (0, 3), found.stderr


def test_a_gauge_called_as_a_created_series_is_on_an_openmetrics_page(tmp_path: Path) -> None:
    write_process(tmp_path, [Written("gauge", "a_created", actions=[((), "=", 5.0)])])
    write_process(tmp_path, [Written("counter", "a", actions=[((), "+", 2.0)])])
    page = MultiprocessDirectory(tmp_path).render(openmetrics=True).decode()
    found = {sample.name: sample.value for one in parse_om(page) for sample in one.samples}
    assert found == {"a_created": 5, "a_total": 2}


def test_files_in_the_tree_below_count_together(tmp_path: Path) -> None:
    ours = MultiprocessDirectory(tmp_path)
    for name in ("", "one", "one/two"):
        (tmp_path / name).mkdir(exist_ok=True)
        write_process(tmp_path / name, [Written("counter", "c", actions=[((), "+", 1.0)])])
        assert_same_lines(ours.render(), peer_page(tmp_path))
    assert b"c_total 3.0\n" in ours.render()


@pytest.mark.parametrize("accumulate", [True, False], ids=["accumulated", "raw"])
def test_a_histograms_samples_come_in_prometheus_clients_order(
    accumulate: bool, tmp_path: Path
) -> None:
    """The sum, the buckets by their bounds, the count; one label set after the other."""
    observed = [((zone,), "o", amount) for zone in "ab" for amount in (0.7, 3.0, 99.0)]
    for _ in range(2):
        write_process(
            tmp_path,
            [Written("histogram", "h", labels=["zone"], actions=observed, buckets=[0.5, 2, 10])],
        )
    files = [str(file) for file in tmp_path.iterdir()]
    (ours,) = MultiProcessCollector.merge(files, accumulate=accumulate)
    (theirs,) = PeerCollector.merge(files, accumulate=accumulate)
    assert ours.samples == theirs.samples
    bounds = ["0.5", "2.0", "10.0", "+Inf"]
    names = ["h_sum", *[f"h_bucket {bound}" for bound in bounds], *["h_count"] * accumulate]
    assert [f"{s.name} {s.labels.get('le', '')}".strip() for s in ours.samples] == names * 2


@pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "OpenMetrics"])
def test_a_page_has_that_order_too(openmetrics: bool, tmp_path: Path) -> None:
    amounts = [((), "o", 0.7), ((), "o", 99.0)]
    write_process(tmp_path, [Written("histogram", "h", actions=amounts, buckets=[1.0])])
    ours = MultiprocessDirectory(tmp_path)
    page = ours.render(openmetrics=openmetrics).decode()
    assert [line for line in page.splitlines() if not line.startswith("#")] == [
        "h_sum 99.7",
        'h_bucket{le="1.0"} 1.0',
        'h_bucket{le="+Inf"} 2.0',
        "h_count 2.0",
    ]
    assert_parsers_accept(ours)
