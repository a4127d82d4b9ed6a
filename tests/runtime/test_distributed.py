"""The runtime of a user's own process: levels, and the system server."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator

import pytest

from dynamometer.errors import AddressError, ArgumentError, SettingsError
from dynamometer.runtime import DistributedRuntime
from stack import http


@pytest.fixture
def runtime() -> DistributedRuntime:
    return DistributedRuntime()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert "system" not in {thread.name for thread in threading.enumerate()}


def health(url: str | None, path: str = "/health") -> tuple[int, dict[str, object]]:
    answer = http(f"{url}{path}")
    body = answer.json()
    reasons = body.pop("reasons", {})
    assert isinstance(reasons, dict)
    assert all("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS" in why for why in reasons.values())
    uptime = body.pop("uptime")
    assert isinstance(uptime, dict)
    assert uptime.keys() == {"secs", "nanos"}
    return answer.status, body


@pytest.mark.parametrize("deadline", ["x", None, -1, 0, float("nan"), float("inf"), True, [1]])
def test_an_invalid_deadline_is_refused_at_once(deadline: float) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"deadline={deadline!r}: must be a number")):
        DistributedRuntime(deadline=deadline)


@pytest.mark.parametrize("instance_id", ["x", -1, 2**64, 1.5])
def test_an_invalid_instance_number_is_refused_at_once(instance_id: int) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"instance_id={instance_id!r}: must be")):
        DistributedRuntime(instance_id=instance_id)


def test_one_call_serves_page_and_health(runtime: DistributedRuntime) -> None:
    runtime.namespace("n").metrics.create_counter("requests", "came").inc(3)
    with runtime.serve(port=0) as server:
        page = http(f"{server.url}/metrics").body.decode()
        assert 'dynamo_component_requests_total{dynamo_namespace="n"} 3.0' in page
        assert "dynamo_component_uptime_seconds" in page
        assert "process_cpu_seconds_total" in page
        assert health(server.url) == (200, {"status": "ready", "endpoints": {}})
        assert health(server.url, "/live") == (200, {"status": "live", "endpoints": {}})
    with pytest.raises(OSError, match="refused"):
        http(f"{server.url}/metrics")
    server.close()


def test_health_follows_the_endpoints(runtime: DistributedRuntime) -> None:
    endpoint = runtime.namespace("n").component("c").endpoint("generate")
    assert runtime.namespace("n").component("c").endpoint("generate") is endpoint
    endpoint.ready = False
    with runtime.serve(port=0) as server:
        assert health(server.url) == (503, {"status": "notready", "endpoints": {}})
        assert health(server.url, "/live") == (200, {"status": "live", "endpoints": {}})
        endpoint.ready = True
        ready = {"status": "ready", "endpoints": {"generate": "ready"}}
        assert health(server.url) == (200, ready)
        endpoint.ready = False
        broken = {"status": "notready", "endpoints": {"generate": "notready"}}
        assert health(server.url) == (503, broken)


def test_an_endpoint_counts_as_ready_before_the_first_scrape(runtime: DistributedRuntime) -> None:
    endpoint = runtime.namespace("n").component("c").endpoint("generate")
    with runtime.serve(port=0) as server:
        endpoint.ready = False
        broken = {"status": "notready", "endpoints": {"generate": "notready"}}
        assert health(server.url) == (503, broken)


def test_namesakes_in_two_components_must_both_be_ready(runtime: DistributedRuntime) -> None:
    for component in ("prefill", "decode"):
        runtime.namespace("n").component(component).endpoint("generate")
    with runtime.serve(port=0) as server:
        assert health(server.url)[0] == 200
        runtime.namespace("n").component("prefill").endpoint("generate").ready = False
        broken = {"status": "notready", "endpoints": {"generate": "notready"}}
        assert health(server.url) == (503, broken)


@pytest.mark.parametrize("port", [65536, -5, "x"])
def test_an_invalid_port_is_an_error(runtime: DistributedRuntime, port: int) -> None:
    with pytest.raises(ArgumentError, match=f"port={port!r}: must be a port"):
        runtime.serve(port=port)


def test_a_mistyped_variable_is_pointed_out(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_HEALT_PATH", "/x")
    with runtime.serve(port=0):
        assert "did you mean DYN_SYSTEM_HEALTH_PATH?" in caplog.text


def test_only_required_endpoints_decide_about_health(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", '["generate"]')
    component = runtime.namespace("n").component("c")
    with runtime.serve(port=0) as server:
        waiting = {"status": "notready", "endpoints": {"generate": "notready"}}
        assert health(server.url) == (503, waiting)
        component.endpoint("generate")
        component.endpoint("other").ready = False
        found = {"status": "ready", "endpoints": {"generate": "ready"}}
        assert health(server.url) == (200, found)
        component.endpoint("other").ready = True
        component.endpoint("other").ready = False
        found = {"status": "ready", "endpoints": {"generate": "ready", "other": "notready"}}
        assert health(server.url) == (200, found)


def test_a_required_endpoint_can_be_ready_before_it_exists(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", '["generate"]')
    monkeypatch.setenv("DYN_SYSTEM_STARTING_HEALTH_STATUS", "ready")
    ready = (200, {"status": "ready", "endpoints": {"generate": "ready"}})
    broken = (503, {"status": "notready", "endpoints": {"generate": "notready"}})
    with runtime.serve(port=0) as server:
        assert "reasons" not in http(f"{server.url}/health").json()
        assert health(server.url) == ready
        endpoint = runtime.namespace("n").component("c").endpoint("generate")
        endpoint.ready = False
        assert health(server.url) == ready
        endpoint.ready = True
        assert health(server.url) == ready
        endpoint.ready = False
        assert health(server.url) == broken


def test_an_endpoint_that_comes_later_starts_then(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without endpoints is ready; an endpoint that is not ready makes it starting."""
    monkeypatch.setenv("DYN_SYSTEM_STARTING_HEALTH_STATUS", "ready")
    component = runtime.namespace("n").component("c")
    with runtime.serve(port=0) as server:
        assert health(server.url) == (200, {"status": "ready", "endpoints": {}})
        component.endpoint("first").ready = False
        assert health(server.url) == (200, {"status": "ready", "endpoints": {}})
        component.endpoint("first").ready = True
        component.endpoint("second").ready = False
        both = {"status": "ready", "endpoints": {"first": "ready"}}
        assert health(server.url) == (200, both)
        component.endpoint("first").ready = False
        broken = {"status": "notready", "endpoints": {"first": "notready"}}
        assert health(server.url) == (503, broken)


def test_what_was_shown_as_ready_has_been_ready(runtime: DistributedRuntime) -> None:
    """An endpoint that `/health` has shown as ready is not starting when it becomes unready."""
    with runtime.serve(port=0) as server:
        endpoint = runtime.namespace("n").component("c").endpoint("generate")
        assert health(server.url)[0] == 200
        endpoint.ready = False
        broken = {"status": "notready", "endpoints": {"generate": "notready"}}
        assert health(server.url) == (503, broken)


def test_a_process_may_be_called_ready_while_it_starts(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_STARTING_HEALTH_STATUS", "ready")
    endpoint = runtime.namespace("n").component("c").endpoint("generate")
    endpoint.ready = False
    with runtime.serve(port=0) as server:
        assert health(server.url)[0] == 200
        endpoint.ready = True
        assert health(server.url)[0] == 200
        endpoint.ready = False
        assert health(server.url)[0] == 503


def test_the_environment_sets_the_paths_of_health(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_HEALTH_PATH", "/custom/health")
    monkeypatch.setenv("DYN_SYSTEM_LIVE_PATH", "/custom/live")
    monkeypatch.setenv("DYN_SYSTEM_PORT", "0")
    with runtime.serve() as server:
        assert health(server.url, "/custom/health")[0] == 200
        assert health(server.url, "/custom/live")[0] == 200
        assert http(f"{server.url}/health").status == 404
        assert http(f"{server.url}/live").status == 404


def test_a_port_of_minus_one_starts_no_server(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_PORT", "-1")
    with runtime.serve() as server:
        assert server.url is None


def test_a_port_in_use_is_an_error(runtime: DistributedRuntime) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(
            AddressError, match=r"is already in use.*serve\(port=...\), DYN_SYSTEM_PORT"
        ):
            runtime.serve(port=taken.getsockname()[1])


@pytest.mark.parametrize("host", ["300.1.1.1", "192.0.2.1"])
@pytest.mark.parametrize("port", [0, None])
def test_a_host_of_another_machine_is_an_error(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch, host: str, port: int | None
) -> None:
    says = re.escape(
        f"serve(host=...), DYN_SYSTEM_HOST: {host!r} must be an address or a name of this machine"
    )
    with pytest.raises(ArgumentError, match=says):
        runtime.serve(host=host, port=port)
    monkeypatch.setenv("DYN_SYSTEM_HOST", host)
    with pytest.raises(SettingsError, match=says):
        runtime.serve(port=port)


def test_a_wrong_variable_is_an_error(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_STARTING_HEALTH_STATUS", "perhaps")
    with pytest.raises(SettingsError, match="'perhaps': must be ready or notready"):
        runtime.serve(port=0)


def test_a_broken_callback_affects_nothing_else_on_a_served_page(
    runtime: DistributedRuntime,
) -> None:
    def broken() -> None:
        raise OSError

    runtime.metrics.register_callback(broken)
    runtime.metrics.create_gauge("depth", "of a queue").set(1)
    with runtime.serve(port=0) as server:
        assert b"dynamo_component_depth 1.0" in http(f"{server.url}/metrics").body
