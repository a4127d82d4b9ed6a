"""The answers of `/health` in each state."""

from __future__ import annotations

import pytest

from dynamometer.runtime.lifecycle import Lifecycle
from dynamometer.runtime.record import State
from dynamometer.runtime.system import SystemStatus
from dynamometer.settings import HealthSettings

WAITS = HealthSettings(endpoints=("generate",))
WAITS_READY = HealthSettings(endpoints=("generate",), ready_at_start=True)
AT_ONCE = HealthSettings(ready_at_start=True)


@pytest.mark.parametrize(
    ("state", "endpoint", "health", "ready"),
    [
        (State.STARTING, State.STARTING, HealthSettings(), False),
        (State.STARTING, State.STARTING, AT_ONCE, True),
        (State.READY, State.READY, HealthSettings(), True),
        (State.READY, State.READY, WAITS, True),
        (State.READY, State.FAILED, WAITS, False),
        (State.FAILED, State.READY, WAITS, True),
        (State.FAILED, State.FAILED, AT_ONCE, False),
        (State.STARTING, State.STARTING, WAITS, False),
        (State.STARTING, State.STARTING, WAITS_READY, True),
        (State.STARTING, State.FAILED, WAITS_READY, False),
        (State.STARTING, State.READY, WAITS, True),
        (State.DRAINING, State.READY, WAITS, False),
        (State.DRAINING, State.DRAINING, AT_ONCE, False),
    ],
)
def test_ready_follows_the_state_and_the_required_endpoints(
    state: State, endpoint: State, health: HealthSettings, ready: bool
) -> None:
    status = SystemStatus(lambda: state, lambda: {"generate": endpoint}, health=health)
    assert status.ready is ready
    called = status.body("")["endpoints"]
    if health.endpoints and state is not State.DRAINING:
        assert called == {"generate": "ready" if ready else "notready"}


def test_a_missing_required_endpoint_is_reported() -> None:
    status = SystemStatus(lambda: State.READY, dict, health=WAITS)
    body = status.body("notready")
    assert not status.ready
    assert body["endpoints"] == {"generate": "notready"}
    assert "no such endpoint" in str(body["reasons"])


def test_a_missing_required_endpoint_has_the_starting_status() -> None:
    status = SystemStatus(lambda: State.READY, dict, health=WAITS_READY)
    body = status.body("ready")
    assert status.ready
    assert body["endpoints"] == {"generate": "ready"}
    assert "reasons" not in body


@pytest.mark.parametrize("state", set(State) - {State.STARTING, State.READY})
def test_a_misspelled_endpoint_keeps_no_process_ready_that_is_in_trouble(state: State) -> None:
    status = SystemStatus(lambda: state, dict, health=WAITS_READY)
    assert not status.ready


def test_health_has_the_state_and_its_details() -> None:
    life = Lifecycle(5.0)
    status = SystemStatus(lambda: life.state, lambda: {"generate": life.state}, details=life.report)
    body = status.health_body()
    assert body["status"] == "notready"
    assert (body["state"], body["since"], body["last_exit"]) == ("starting", 5.0, None)
    assert body["uptime"]
    assert "since" not in status.body("live")


def test_a_missing_required_endpoint_is_not_ready_after_another_failed() -> None:
    """A misspelled name must not keep a process ready whose engines are all dead."""
    states = {"sglang-30000": State.FAILED}
    status = SystemStatus(lambda: State.FAILED, lambda: states, health=WAITS_READY)
    body = status.body("notready")
    assert not status.ready
    assert body["endpoints"] == {"generate": "notready", "sglang-30000": "notready"}
    assert "no such endpoint" in str(body["reasons"])
