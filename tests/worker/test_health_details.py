"""The members of a worker's `/health` about its engine's life."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TypedDict, cast

from stack import Answer, Stack, eventually, http

KEY = "sk-2f9c1a"
# The simulated engine logs the name of its model.
FLAGS = ("--engine", "mocker", "--model", f"api_key={KEY}", "--enable-metrics")


class Health(TypedDict, total=False):
    """The members of `/health` that these tests read."""

    status: str
    endpoints: dict[str, str]
    reasons: dict[str, str]
    state: str
    since: float
    reason: str
    last_exit: dict[str, object] | None
    attempts: list[str]
    log: list[str]


def members(answer: Answer) -> Health:
    return cast(Health, answer.json())


def test_health_shows_the_state_and_in_trouble_the_log_without_keys(tmp_path: Path) -> None:
    stack = Stack(tmp_path, tmp_path, tmp_path / "discovery")
    started = time.time()
    with stack.run_worker(*FLAGS, "--drain-delay", "60") as worker:
        worker.wait_until_ready()
        ready = members(http(f"{worker.system_url}/health"))
        assert (ready["state"], ready["reason"], ready["last_exit"]) == ("ready", "", None)
        assert started < ready["since"] <= time.time()
        assert (ready["status"], ready["endpoints"]) == ("ready", {"generate": "ready"})
        assert not {"log", "reasons"} & ready.keys()
        worker.process.signal(signal.SIGTERM)
        eventually(lambda: not worker.ready(), within=5, what="draining")
        answer = http(f"{worker.system_url}/health")
        body = members(answer)
        assert answer.status == 503
        assert (body["state"], body["reason"]) == ("draining", "the worker is ending")
        assert body["reasons"] == {"generate": "the worker is ending"}
        assert body["since"] > ready["since"]
        assert any("serving api_key=***" in line for line in body["log"])
        assert KEY not in answer.body.decode()
        assert "log" not in members(http(f"{worker.system_url}/live"))
        worker.process.signal(signal.SIGTERM)


def test_health_has_the_last_exit_and_the_attempts(tmp_path: Path) -> None:
    stack = Stack(tmp_path, tmp_path, tmp_path / "discovery")
    with stack.run_worker(*FLAGS) as worker:
        worker.wait_until_ready()

        def health() -> Health:
            return members(http(f"{worker.system_url}/health"))

        killed = time.time()
        worker.engine.kill()
        found: list[Health] = []

        def restarting() -> bool:
            found.append(health())
            return found[-1]["state"] == "restarting"

        eventually(restarting, within=1, what="the exit is known")
        body = found[-1]
        ended = body["last_exit"]
        assert ended is not None
        assert (ended["code"], ended["cause"]) == (-9, "signal")
        assert ended["process"]
        assert ended["reason"] == body["reason"] == body["reasons"]["generate"]
        assert killed < cast(float, ended["time"]) == body["since"]
        assert any("serving" in line for line in body["log"])
        eventually(lambda: health()["attempts"] != [], within=10, what="it is started again")
        assert health()["attempts"][0].endswith("the engine was started again")
        eventually(lambda: health()["state"] == "ready", within=20, what="ready again")
        assert health()["last_exit"] == ended
        assert "dynamometer_engine_last_exit_code{" in worker.page()
        assert 'reason="signal",worker_id=' in worker.page()
