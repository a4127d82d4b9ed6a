"""The families about an engine's life, as the page shows them after each event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from dynamometer.exposition.families import Family
from dynamometer.exposition.merging import Source
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.runtime.engine_metrics import EngineMetrics, RequestTotals
from dynamometer.runtime.lifecycle import EngineExit, ExitCause, Lifecycle, RestartPolicy
from dynamometer.runtime.record import State
from parsing import parse

KILLED = EngineExit(code=-9, cause=ExitCause.SIGNAL, description="killed by signal 9")
TOTALS = RequestTotals(
    prefixes=("e:",), excluded=("e:http_",), parts={"e:realtime_total": 'mode="decode"'}
)


class Engine:
    """An engine whose life and sources a test changes, and its families."""

    def __init__(self, *, empty_at_start: bool = True, nodes: int = 1) -> None:
        self.life = Lifecycle(0.0, RestartPolicy(limit=1))
        self.sources: Sequence[Source] = ()
        self.now = 1000.0
        self.labels = {"model": "m", "worker_id": "7"}
        self.directories: Sequence[str] = ()
        self.metrics = EngineMetrics(
            "e",
            self.life,
            lambda: self.labels,
            lambda _: self.sources,
            totals=TOTALS,
            directories=lambda: self.directories,
            empty_at_start=empty_at_start,
            nodes=nodes,
            clock=lambda: self.now,
        )

    def shown(self, name: str, label: str = "") -> Mapping[str, float]:
        """Return the values of a family, by one of its labels."""
        return {
            sample.series.labels.get(label, ""): float(sample.value)
            for family in self.metrics.families()
            for sample in family.samples
            if sample.series.name == f"dynamometer_engine_{name}"
        }

    def show(self, text: str, source: str = "files") -> None:
        """Make the families in `text` those of a source; an unchanged family is the same object."""
        known = {s.name: s.families for s in self.sources}
        old = {(f.metadata, f.lines): f for f in known.get(source, ())}
        read = [old.get((f.metadata, f.lines), f) for f in parse(text.encode())]
        self.sources = [Source(name, f) for name, f in {**known, source: tuple(read)}.items()]

    @property
    def changed_at(self) -> float | None:
        return self.shown("last_change_timestamp_seconds").get("")


def states(engine: Engine) -> Mapping[str, float]:
    return engine.shown("state", "state")


def test_a_state_that_never_was_is_absent_and_one_is_1() -> None:
    engine = Engine()
    assert states(engine) == {"starting": 1}
    engine.life.note_started(1.0)
    engine.life.note_ready(2.0)
    assert states(engine) == {"starting": 0, "ready": 1}
    engine.life.note_silent(3.0, "does not answer")
    engine.life.note_ready(4.0)
    assert states(engine) == {"starting": 0, "ready": 1, "unresponsive": 0}


def test_the_space_of_the_metrics_files_is_shown_while_their_directory_exists(
    tmp_path: Path,
) -> None:
    engine = Engine()
    assert not engine.shown("metrics_directory_bytes")
    (tmp_path / "counter_1.db").write_bytes(b"x" * 4096)
    engine.directories = [str(tmp_path)]
    assert engine.shown("metrics_directory_bytes", "model").keys() == {"m"}
    assert engine.shown("metrics_directory_available_bytes", "model")["m"] > 0
    engine.directories = [str(tmp_path / "missing")]
    assert not engine.shown("metrics_directory_bytes")
    assert not engine.shown("metrics_directory_available_bytes")


def test_a_state_between_two_scrapes_was() -> None:
    engine = Engine()
    engine.life.note_started(1.0)
    engine.life.note_ready(2.0)
    engine.life.note_exit(3.0, KILLED)
    engine.life.note_started(4.0)
    engine.life.note_ready(5.0)
    assert states(engine) == {"starting": 0, "ready": 1, "restarting": 0}


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_shown(state: State) -> None:
    engine = Engine()
    life = engine.life
    life.note_started(1.0)
    if state is not State.STARTING:
        life.note_ready(2.0)
    match state:
        case State.UNRESPONSIVE:
            life.note_silent(3.0, "")
        case State.RESTARTING:
            life.note_exit(3.0, KILLED)
        case State.FAILED:
            life.note_exit(3.0, KILLED)
            life.note_exit(4.0, KILLED)
        case State.DRAINING:
            life.drain(3.0, "")
    found = states(engine)
    assert found[state] == 1
    assert sum(found.values()) == 1


def test_every_reason_of_a_restart_starts_at_0() -> None:
    engine = Engine()
    reasons = {"exit": 0, "signal": 0, "out_of_memory": 0, "hang": 0}
    assert engine.shown("restarts_total", "reason") == reasons
    engine.life.note_ready(1.0)
    engine.life.note_exit(2.0, KILLED)
    engine.life.note_started(3.0)
    assert engine.shown("restarts_total", "reason") == {**reasons, "signal": 1}


def test_only_an_engine_on_several_nodes_can_lose_one() -> None:
    assert "node_lost" not in Engine().shown("restarts_total", "reason")
    engine = Engine(nodes=2)
    assert engine.shown("restarts_total", "reason")["node_lost"] == 0
    engine.life.note_exit(
        2.0, EngineExit(code=None, cause=ExitCause.NODE_LOST, description="node 1 is lost")
    )
    engine.life.note_started(3.0)
    assert engine.shown("restarts_total", "reason")["node_lost"] == 1
    assert "last_exit_code" not in {f.name for f in engine.metrics.families()}


def test_values_that_are_unknown_are_absent() -> None:
    engine = Engine()
    names = {family.name for family in engine.metrics.families()}
    assert names == {"dynamometer_engine_state", "dynamometer_engine_restarts"}


def test_start_and_exit_are_those_of_the_last_process() -> None:
    engine = Engine()
    engine.life.note_started(1.5)
    engine.life.note_ready(2.0)
    engine.life.note_exit(3.0, KILLED)
    engine.life.note_started(4.5)
    assert engine.shown("start_time_seconds") == {"": 4.5}
    assert engine.shown("last_exit_code") == {"": -9}


def test_an_unknown_exit_code_is_absent() -> None:
    engine = Engine()
    engine.life.note_exit(3.0, EngineExit(code=None, cause=ExitCause.EXIT, description="ended"))
    assert engine.shown("last_exit_code") == {}


def test_progress_is_by_rank() -> None:
    engine = Engine()
    engine.metrics.note_progress("0", 10.0)
    engine.metrics.note_progress("1", 11.0)
    progress = engine.shown("last_progress_timestamp_seconds", "dp_rank")
    assert progress == {"0": 10.0, "1": 11.0}


def test_progress_after_the_clock_was_set_back_is_not_in_the_future() -> None:
    engine = Engine()
    engine.metrics.note_progress("0", 3600.0)
    engine.metrics.note_progress("0", 9.0)
    assert engine.shown("last_progress_timestamp_seconds", "dp_rank") == {"0": 9.0}


def test_all_series_have_the_labels_of_the_engine() -> None:
    engine = Engine()
    engine.metrics.note_progress("0", 10.0)
    for family in engine.metrics.families():
        for sample in family.samples:
            assert sample.series.labels.items() >= engine.labels.items()
    engine.labels = {"model": "later"}
    (sample, *_) = engine.metrics.families()[0].samples
    assert sample.series.labels["model"] == "later"


def test_unchanged_families_are_the_same_objects() -> None:
    engine = Engine()
    engine.metrics.note_progress("0", 10.0)
    before = engine.metrics.families()
    assert engine.metrics.families() is before
    engine.metrics.note_progress("0", 11.0)
    changed = [f.name for f in engine.metrics.families() if f not in before]
    assert changed == ["dynamometer_engine_last_progress_timestamp_seconds"]


TOKENS = "# TYPE e:tokens_total counter\ne:tokens_total 1\n"


def moved(text: str) -> str:
    return text.replace(" 1\n", " 2\n")


@pytest.mark.parametrize(
    ("family", "is_change"),
    [
        (TOKENS, True),
        ('# TYPE e:wait histogram\ne:wait_bucket{le="+Inf"} 1\ne:wait_count 1\n', True),
        ("# TYPE e:http_requests_total counter\ne:http_requests_total 1\n", False),
        ("# TYPE e:running gauge\ne:running 1\n", False),
        ('# TYPE e:realtime_total counter\ne:realtime_total{mode="decode"} 1\n', True),
        ('# TYPE e:realtime_total counter\ne:realtime_total{mode="prefill"} 1\n', False),
        ("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 1\n", False),
    ],
)
def test_only_totals_of_requests_count_as_a_change(family: str, is_change: bool) -> None:
    engine = Engine(empty_at_start=False)
    engine.show(family)
    assert engine.changed_at is None
    engine.now = 1010.0
    engine.show(moved(family))
    assert engine.changed_at == (1010.0 if is_change else None)
    engine.now = 1020.0
    assert engine.changed_at == (1010.0 if is_change else None)


def test_the_first_values_of_an_engine_that_was_just_started_are_a_change() -> None:
    engine = Engine()
    assert engine.changed_at is None
    engine.show(TOKENS)
    assert engine.changed_at == 1000.0


def test_the_first_values_of_an_engine_that_runs_already_are_not() -> None:
    engine = Engine(empty_at_start=False)
    assert engine.changed_at is None
    engine.show(TOKENS)
    assert engine.changed_at is None
    engine.show(TOKENS, "another source")
    assert engine.changed_at is None


def test_a_family_that_appears_later_is_a_change() -> None:
    engine = Engine(empty_at_start=False)
    engine.show(TOKENS)
    assert engine.changed_at is None
    engine.show(TOKENS + TOKENS.replace("tokens", "aborted"))
    assert engine.changed_at == 1000.0


def test_families_that_disappear_or_get_a_label_are_not_a_change() -> None:
    engine = Engine(empty_at_start=False)
    more = TOKENS + TOKENS.replace("tokens", "aborted")
    for text in (more, TOKENS, TOKENS.replace("total 1", 'total{model="m"} 1')):
        engine.show(text)
        assert engine.changed_at is None


def test_a_change_is_found_in_the_same_refresh_of_the_page() -> None:
    page = MetricsPage(InstrumentRegistry())

    class Files:
        name, owner = "files", "e"
        errors: Mapping[str, int] = MappingProxyType({})

        def __init__(self) -> None:
            self.text = TOKENS

        def families(self) -> Sequence[Family]:
            return tuple(parse(self.text.encode()))

    files = Files()
    metrics = EngineMetrics(
        "e", Lifecycle(0.0), dict, page.current_sources,
        totals=TOTALS, directories=lambda: (), empty_at_start=False, clock=lambda: 5.0,
    )  # fmt: skip
    page.add_derived(metrics)
    page.add(files)
    page.refresh()
    assert b"last_change" not in page.render()
    files.text = moved(TOKENS)
    page.refresh()
    assert b"dynamometer_engine_last_change_timestamp_seconds 5.0" in page.render()
    page.remove(metrics)
    page.refresh()
    assert b"dynamometer_engine_state" not in page.render()
