"""The members of a worker's `/health` about its engine's life."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from stack import Stack, eventually, http

KEY = "sk-2f9c1a"
FLAGS = ("--engine", "mocker", "--model", "mock", "--enable-metrics", "--api-key", KEY)


def test_health_shows_the_state_and_in_trouble_the_log_without_keys(tmp_path: Path) -> None:
    stack = Stack(tmp_path, tmp_path, tmp_path / "discovery")
    started = time.time()
    with stack.run_worker(*FLAGS, "--drain-delay", "60") as worker:
        worker.wait_until_ready()
        ready = http(f"{worker.system_url}/health").json()
        assert (ready["state"], ready["reason"], ready["last_exit"]) == ("ready", "", None)
        assert started < ready["since"] <= time.time()
        assert (ready["status"], ready["endpoints"]) == ("ready", {"generate": "ready"})
        assert "log" not in ready
        assert "reasons" not in ready
        worker.process.signal(signal.SIGTERM)
        eventually(lambda: not worker.ready(), within=5, what="draining")
        answer = http(f"{worker.system_url}/health")
        body = answer.json()
        assert answer.status == 503
        assert body["state"] == "draining"
        assert body["since"] > ready["since"]
        assert body["reason"] == "the worker is ending"
        assert body["reasons"] == {"generate": "the worker is ending"}
        assert any("serving mock" in line for line in body["log"])
        assert KEY not in answer.body.decode()
        assert "log" not in http(f"{worker.system_url}/live").json()
        worker.process.signal(signal.SIGTERM)
