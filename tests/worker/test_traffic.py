"""A worker accepts requests while its engine is ready and the worker is not out of traffic."""

from __future__ import annotations

import time

import pytest

from dynamometer.process.signals import InFlight
from dynamometer.runtime.lifecycle import EngineExit, ExitCause, Lifecycle
from dynamometer.runtime.record import State
from dynamometer.worker.traffic import Traffic

EXIT = EngineExit(code=1, cause=ExitCause.EXIT, description="the engine ended")


@pytest.fixture
def lifecycle() -> Lifecycle:
    found = Lifecycle(0)
    found.note_started(1)
    return found


def test_requests_are_accepted_while_the_engine_is_ready(lifecycle: Lifecycle) -> None:
    traffic = Traffic(lifecycle, InFlight(), delay=0)
    accepted = [traffic.accepts]
    lifecycle.note_ready(2)
    accepted.append(traffic.accepts)
    lifecycle.note_silent(3, "silent")
    accepted.append(traffic.accepts)
    lifecycle.note_ready(4)
    accepted.append(traffic.accepts)
    lifecycle.note_exit(5, EXIT)
    accepted.append(traffic.accepts)
    assert accepted == [False, True, False, True, False]


def test_a_drained_worker_accepts_none_and_all_again_after_the_undo(lifecycle: Lifecycle) -> None:
    lifecycle.note_ready(2)
    traffic = Traffic(lifecycle, InFlight(), delay=0)
    traffic.drain("why")
    assert (traffic.accepts, traffic.drained, traffic.ending) == (False, True, False)
    assert (traffic.state, traffic.reason) == (State.DRAINING, "why")
    traffic.restore()
    assert (traffic.accepts, traffic.drained, traffic.state) == (True, False, State.READY)


def test_requests_are_accepted_for_the_delay(
    lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle.note_ready(2)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    traffic = Traffic(lifecycle, InFlight(), delay=5)
    traffic.drain("first")
    assert (traffic.state, traffic.accepts, traffic.delay_left) == (State.DRAINING, True, 5)
    now = 104.0
    traffic.end("second")  # the delay does not begin again
    assert (traffic.accepts, traffic.delay_left, traffic.reason) == (True, 1, "second")
    now = 105.0
    assert (traffic.accepts, traffic.delay_left) == (False, 0)
    traffic.restore()
    assert (traffic.accepts, traffic.drained, traffic.state) == (False, True, State.DRAINING)


def test_a_worker_whose_engine_does_not_answer_waits_for_no_delay(lifecycle: Lifecycle) -> None:
    traffic = Traffic(lifecycle, InFlight(), delay=60)
    traffic.end("why")
    assert (traffic.accepts, traffic.delay_left) == (False, 0)


def test_an_engine_that_gets_ready_meanwhile_changes_nothing(lifecycle: Lifecycle) -> None:
    traffic = Traffic(lifecycle, InFlight(), delay=0)
    traffic.drain("why")
    lifecycle.note_ready(2)
    assert (traffic.accepts, traffic.state) == (False, State.DRAINING)
    traffic.restore()
    assert (traffic.accepts, traffic.state) == (True, State.READY)
