"""The states of an engine: every event in every state, and the rules of restarts."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from dynamometer.runtime.lifecycle import EngineExit, ExitCause, Lifecycle, RestartPolicy
from dynamometer.runtime.record import State

STARTING, READY, UNRESPONSIVE = State.STARTING, State.READY, State.UNRESPONSIVE
RESTARTING, DRAINING, FAILED = State.RESTARTING, State.DRAINING, State.FAILED

KILLED = EngineExit(
    code=-9, cause=ExitCause.SIGNAL, description="killed by signal 9", process="sglang::scheduler"
)
EXITED = EngineExit(code=1, cause=ExitCause.EXIT, description="exit code 1")


class Clock:
    """A steady clock that the tests move."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def engine(state: State = STARTING, *, limit: int = 5, clock: Clock | None = None) -> Lifecycle:
    """Return an engine in a state that was entered at the time 100."""
    life = Lifecycle(0.0, RestartPolicy(limit=limit), steady_clock=clock or Clock())
    life.note_started(1.0)
    if state in (STARTING, FAILED):
        life.since = 100.0
        if state is FAILED:
            life.note_exit(100.0, KILLED)
        return life
    life.note_ready(100.0)
    match state:
        case State.UNRESPONSIVE:
            life.note_silent(100.0, "rank 1 does not answer")
        case State.RESTARTING:
            life.note_exit(100.0, KILLED)
        case State.DRAINING:
            life.drain(100.0, "drained")
    return life


def started(life: Lifecycle) -> None:
    life.note_started(200.0)


def ready(life: Lifecycle) -> None:
    life.note_ready(200.0)


def silent(life: Lifecycle) -> None:
    life.note_silent(200.0, "does not answer")


def ended(life: Lifecycle) -> None:
    life.note_exit(200.0, KILLED)


def drained(life: Lifecycle) -> None:
    life.drain(200.0, "drained")


def undrained(life: Lifecycle) -> None:
    life.undrain(200.0)


EVENTS: tuple[Callable[[Lifecycle], None], ...] = (
    started, ready, silent, ended, drained, undrained,
)  # fmt: skip
# The state after each event, in the order of EVENTS. The engine that is drained was ready.
TABLE = {
    STARTING: (STARTING, READY, STARTING, FAILED, DRAINING, STARTING),
    READY: (STARTING, READY, UNRESPONSIVE, RESTARTING, DRAINING, READY),
    UNRESPONSIVE: (STARTING, READY, UNRESPONSIVE, RESTARTING, DRAINING, UNRESPONSIVE),
    RESTARTING: (RESTARTING, RESTARTING, RESTARTING, RESTARTING, DRAINING, RESTARTING),
    DRAINING: (DRAINING, DRAINING, DRAINING, DRAINING, DRAINING, READY),
    FAILED: (STARTING, FAILED, FAILED, FAILED, FAILED, FAILED),
}


@pytest.mark.parametrize(
    ("before", "event", "after"),
    [
        pytest.param(before, event, after, id=f"{before}-{event.__name__}")
        for before, row in TABLE.items()
        for event, after in zip(EVENTS, row, strict=True)
    ],
)
def test_transitions(before: State, event: Callable[[Lifecycle], None], after: State) -> None:
    life = engine(before)
    assert (life.state, life.since) == (before, 100.0)
    event(life)
    assert life.state is after
    assert life.since == (100.0 if after is before else 200.0)


def test_the_table_has_every_state() -> None:
    assert set(TABLE) == set(State)


@pytest.mark.parametrize(
    ("event", "hidden"),
    [(silent, UNRESPONSIVE), (ended, RESTARTING), (ready, READY), (started, STARTING)],
)
def test_events_of_a_drained_engine_are_shown_after_it(
    event: Callable[[Lifecycle], None], hidden: State
) -> None:
    life = engine(DRAINING)
    event(life)
    assert (life.state, life.reason, life.since) == (DRAINING, "drained", 100.0)
    assert life.engine_state is hidden
    life.undrain(300.0)
    assert (life.state, life.since) == (hidden, 300.0)


def test_a_drained_engine_that_is_given_up_has_failed() -> None:
    life = engine(DRAINING, limit=0)
    ended(life)
    assert (life.state, life.reason) == (FAILED, KILLED.description)


def test_an_engine_that_was_never_ready_is_not_started_again() -> None:
    life = engine(STARTING)
    assert life.note_exit(200.0, EXITED) is None
    assert (life.state, life.reason) == (FAILED, "exit code 1")


def test_the_loss_of_another_node_is_not_a_fault_of_this_engines_start() -> None:
    life = engine(STARTING, limit=1)
    lost = EngineExit(code=None, cause=ExitCause.NODE_LOST, description="node 1 is lost")
    assert life.note_exit(200.0, lost) is not None
    assert life.state is RESTARTING
    life.note_started(201.0)
    assert life.note_exit(202.0, lost) is None
    assert (life.state, life.reason) == (FAILED, "node 1 is lost")


def test_an_engine_that_fails_while_it_restarts_is_started_again() -> None:
    life = engine(RESTARTING)
    life.note_started(101.0)
    assert life.note_exit(102.0, EXITED) is not None
    assert life.state is RESTARTING


def test_a_restarted_engine_is_restarting_until_it_answers() -> None:
    life = engine(RESTARTING)
    life.note_started(101.0)
    life.note_silent(102.0, "the connection is refused")
    assert (life.state, life.since, life.reason) == (RESTARTING, 100.0, "killed by signal 9")
    life.note_ready(103.0)
    assert (life.state, life.since, life.reason) == (READY, 103.0, "")


def test_a_late_answer_of_an_engine_that_ended_is_ignored() -> None:
    life = engine(RESTARTING)
    life.note_ready(100.5)
    assert life.state is RESTARTING


def test_pauses_grow_up_to_the_longest() -> None:
    life = engine(RESTARTING, limit=9)  # the first pause is over
    pauses = []
    for moment in range(200, 208):
        life.note_started(moment)
        life.note_ready(moment)
        pauses.append(life.note_exit(moment, KILLED))
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]


def test_an_engine_may_be_started_again_any_number_of_times() -> None:
    life = engine(READY, limit=10_000)
    assert exits(life, *range(101, 2101))[-1] == 60


def exits(life: Lifecycle, *moments: float, clock: Clock | None = None) -> list[float | None]:
    """Kill the engine at these times; it is ready from the moment of its restart."""
    pauses = []
    for moment in moments:
        if clock is not None:
            clock.seconds = moment
        pauses.append(life.note_exit(moment, KILLED))
        if pauses[-1] is not None:
            life.note_started(moment)
            life.note_ready(moment)
    return pauses


def test_too_many_exits_are_given_up() -> None:
    assert exits(engine(READY, limit=2), 101, 102, 103) == [1, 2, None]


def test_no_restart_with_the_limit_0() -> None:
    assert exits(engine(READY, limit=0), 101) == [None]
    assert exits(engine(READY, limit=0), 10_000) == [None]


def test_ten_minutes_of_ready_forget_earlier_exits() -> None:
    for moments, pauses in (
        ((101, 102, 702, 703, 704), [1, 2, 1, 2, None]),
        ((101, 102, 701), [1, 2, None]),
    ):
        clock = Clock()
        assert exits(engine(READY, limit=2, clock=clock), *moments, clock=clock) == pauses


def test_a_clock_that_is_set_does_not_change_durations() -> None:
    life = engine(READY, limit=2)
    assert exits(life, 101, 102, 100_000) == [1, 2, None]  # set forward
    clock = Clock()
    life = engine(READY, limit=2, clock=clock)
    assert exits(life, 101, 102) == [1, 2]
    clock.seconds = 600
    assert exits(life, 0) == [1]  # set back
    assert (life.since, life.state_seconds) == (0, 0)
    clock.seconds = 610
    assert life.state_seconds == 10


def test_ten_minutes_of_silence_are_not_ready() -> None:
    clock = Clock()
    life = engine(READY, limit=1, clock=clock)
    assert exits(life, 101, clock=clock) == [1]
    clock.seconds = 102
    life.note_silent(102, "does not answer")
    clock.seconds = 1000
    life.note_ready(1000)
    assert exits(life, 1100, clock=clock) == [None]


def test_ready_before_the_silence_counts() -> None:
    clock = Clock()
    life = engine(READY, limit=1, clock=clock)
    assert exits(life, 101, clock=clock) == [1]
    clock.seconds = 701
    life.note_silent(701, "does not answer")
    assert life.note_exit(800, KILLED) == 1


def test_restarts_are_counted_by_the_cause_when_they_happen() -> None:
    life = engine(READY)
    assert life.restarts == dict.fromkeys(ExitCause, 0)
    life.note_exit(101, KILLED)
    assert life.restarts[ExitCause.SIGNAL] == 0
    life.note_started(102)
    assert life.restarts == {**dict.fromkeys(ExitCause, 0), ExitCause.SIGNAL: 1}


def test_an_engine_that_another_program_restarts_is_counted() -> None:
    life = engine(READY, limit=0)
    life.note_exit(101, EXITED)
    life.note_started(102)
    assert (life.state, life.restarts[ExitCause.EXIT], life.started_at) == (STARTING, 1, 102)


def test_the_first_reason_of_a_failed_engine_is_kept() -> None:
    life = engine(FAILED)
    life.note_exit(200.0, EXITED)
    assert (life.reason, life.last_exit, life.last_exit_at) == (KILLED.description, KILLED, 100.0)


def test_the_reason_of_an_unresponsive_engine_is_the_last_one() -> None:
    life = engine(UNRESPONSIVE)
    silent(life)
    assert (life.reason, life.since) == ("does not answer", 100.0)


def test_attempts_belong_to_the_present_trouble_and_are_bounded() -> None:
    life = engine(UNRESPONSIVE)
    for number in range(12):
        life.note_attempt(0.0, f"asked rank {number}")
    assert len(life.attempts) == 10
    assert life.attempts[-1] == "1970-01-01T00:00:00+00:00 asked rank 11"
    life.note_ready(200.0)
    assert life.attempts
    silent(life)
    assert not life.attempts


def test_a_reason_is_given_before_the_first_answer() -> None:
    life = Lifecycle(0.0)
    assert life.reason == "the engine is not started yet"
    life.note_started(1.0)
    assert life.reason == "the engine has not answered yet"


def test_a_report_is_json_with_every_member() -> None:
    assert json.loads(json.dumps(engine(READY).report())) == {
        "state": "ready", "since": 100.0, "reason": "", "last_exit": None, "attempts": [],
    }  # fmt: skip
    life = engine(RESTARTING)
    life.note_attempt(101.0, "waited for memory")
    assert json.loads(json.dumps(life.report())) == {
        "state": "restarting",
        "since": 100.0,
        "reason": "killed by signal 9",
        "last_exit": {
            "code": -9,
            "cause": "signal",
            "process": "sglang::scheduler",
            "reason": "killed by signal 9",
            "time": 100.0,
        },
        "attempts": ["1970-01-01T00:01:41+00:00 waited for memory"],
    }


def test_every_text_of_a_report_is_cleaned() -> None:
    life = engine(RESTARTING)
    life.note_attempt(101.0, "used the key")
    text = json.dumps(life.report(lambda _: "clean"))
    assert KILLED.description not in text
    assert KILLED.process not in text
    assert "the key" not in text
