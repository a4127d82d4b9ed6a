"""The records of discovery as Prometheus' targets, and as NVIDIA Dynamo's list."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from conftest import ROOT
from dynamometer.runtime.discovery.interface import Processes
from dynamometer.runtime.record import VERSION, Record, Role, State
from dynamometer.runtime.scrape_targets import metrics_endpoints, target_groups

WORKER = Record(
    role=Role.WORKER,
    id=0xAB,
    namespace="prod",
    component="backend",
    endpoint="generate",
    models=("Qwen/Qwen3-8B", "tiny"),
    engine="sglang",
    request_url="http://127.0.0.1:30000",
    system_url="http://127.0.0.1:8081",
    state=State.READY,
)
META = {
    "__meta_dynamometer_role": "worker",
    "__meta_dynamometer_id": "00000000000000ab",
    "__meta_dynamometer_namespace": "prod",
    "__meta_dynamometer_component": "backend",
    "__meta_dynamometer_endpoint": "generate",
    "__meta_dynamometer_mode": "aggregated",
    "__meta_dynamometer_engine": "sglang",
    "__meta_dynamometer_models": ",Qwen/Qwen3-8B,tiny,",
}


def groups(*live: Record, vanished: tuple[Record, ...] = ()) -> Any:
    return target_groups(Processes(frozenset(live), vanished))


def addresses(*live: Record, vanished: tuple[Record, ...] = ()) -> list[str]:
    return [address for group in groups(*live, vanished=vanished) for address in group["targets"]]


def test_a_group_has_the_address_and_all_known_properties() -> None:
    assert groups(WORKER) == [{"targets": ["127.0.0.1:8081"], "labels": META}]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("role", Role)
def test_a_process_of_every_role_and_state_is_a_target(role: Role, state: State) -> None:
    assert addresses(replace(WORKER, role=role, state=state)) == ["127.0.0.1:8081"]


@pytest.mark.parametrize("mode", ["aggregated", "prefill", "decode", "encode"])
def test_a_worker_of_every_mode_is_a_target(mode: str) -> None:
    (group,) = groups(replace(WORKER, mode=mode))
    assert group["labels"]["__meta_dynamometer_mode"] == mode


@pytest.mark.parametrize(
    "changes",
    [
        {"version": VERSION + 1, "role": "router"},
        {"version": VERSION + 1, "state": "hibernating"},
        {"min_version": VERSION + 1},
        {"engine": "another"},
        {"request_url": None},
    ],
    ids=str,
)
def test_a_process_that_gets_no_requests_is_a_target(changes: dict[str, Any]) -> None:
    assert addresses(replace(WORKER, **changes)) == ["127.0.0.1:8081"]


def test_all_nodes_of_both_sides_are_targets() -> None:
    workers = [
        replace(
            WORKER,
            id=number,
            mode=mode,
            nodes=2,
            node_rank=rank,
            group=mode,
            request_url=None if rank else WORKER.request_url,
            system_url=f"http://127.0.0.1:{8081 + number}",
        )
        for number, (mode, rank) in enumerate(
            [("prefill", 0), ("prefill", 1), ("decode", 0), ("decode", 1)]
        )
    ]
    found = groups(*workers)
    assert [group["labels"]["__meta_dynamometer_mode"] for group in found] == [
        "prefill", "prefill", "decode", "decode",
    ]  # fmt: skip
    assert [group["targets"] for group in found] == [
        [f"127.0.0.1:{port}"] for port in (8081, 8082, 8083, 8084)
    ]
    assert len(metrics_endpoints(Processes(frozenset(workers)))["data"]) == 4  # type: ignore[index, call-overload, arg-type]


def test_a_process_without_a_system_server_is_not_a_target() -> None:
    assert groups(replace(WORKER, system_url=None)) == []


@pytest.mark.parametrize(
    ("url", "path", "target", "labels"),
    [
        ("http://10.0.0.7:8081", "/metrics", "10.0.0.7:8081", {}),
        ("http://[::1]:8081", "/metrics", "[::1]:8081", {}),
        ("http://[fe80::1%eth0]:9", "/metrics", "[fe80::1%eth0]:9", {}),
        ("http://node-3", "/metrics", "node-3:80", {}),
        ("https://node-3", "/metrics", "node-3:443", {"__scheme__": "https"}),
        ("https://node-3:8081", "/metrics", "node-3:8081", {"__scheme__": "https"}),
        ("http://a:1", "/own/metrics", "a:1", {"__metrics_path__": "/own/metrics"}),
        ("http://a:1/worker/7", "/metrics", "a:1", {"__metrics_path__": "/worker/7/metrics"}),
    ],
)
def test_address_path_and_scheme_are_those_of_the_page(
    url: str, path: str, target: str, labels: dict[str, str]
) -> None:
    record = replace(WORKER, system_url=url, metrics_path=path)
    assert groups(record) == [{"targets": [target], "labels": META | labels}]


def test_unknown_properties_are_omitted() -> None:
    exporter = Record(
        role=Role.EXPORTER, id=7, namespace="prod", component="engine", system_url="http://a:1"
    )
    (group,) = groups(exporter)
    assert group["labels"] == {
        "__meta_dynamometer_role": "exporter",
        "__meta_dynamometer_id": "0000000000000007",
        "__meta_dynamometer_namespace": "prod",
        "__meta_dynamometer_component": "engine",
    }


@pytest.mark.parametrize(("namespace", "shown"), [("", "dynamo"), ("prod", "prod")])
def test_a_frontend_of_all_namespaces_belongs_to_the_default_one(
    namespace: str, shown: str
) -> None:
    frontend = Record(
        role=Role.FRONTEND, id=7, namespace=namespace, component="frontend", system_url="http://a:1"
    )
    (group,) = groups(frontend)
    assert group["labels"]["__meta_dynamometer_namespace"] == shown


def test_targets_are_ordered_by_role_and_id() -> None:
    records = [
        replace(WORKER, role=role, id=id_, system_url=f"http://{role}:{id_}")
        for role in Role
        for id_ in (3, 1, 2)
    ]
    expected = [f"{role}:{id_}" for role in sorted(Role) for id_ in (1, 2, 3)]
    assert addresses(*records) == expected


def test_a_vanished_process_stays_a_target() -> None:
    gone = replace(WORKER, id=2, system_url="http://127.0.0.1:8082")
    assert addresses(WORKER, vanished=(gone,)) == ["127.0.0.1:8082", "127.0.0.1:8081"]


def test_a_process_that_returns_at_its_address_is_one_target() -> None:
    first, second = replace(WORKER, id=2), replace(WORKER, id=3)
    for live, vanished, id_ in [
        ((WORKER,), (first, second), WORKER.id),
        ((), (first, second), second.id),
    ]:
        (group,) = groups(*live, vanished=vanished)
        assert group["labels"]["__meta_dynamometer_id"] == f"{id_:016x}"


def test_the_list_has_the_form_of_nvidia_dynamo() -> None:
    frontend = Record(
        role=Role.FRONTEND, id=7, namespace="", component="frontend",
        system_url="http://[::1]:8000", metrics_path="/own/metrics",
    )  # fmt: skip
    worker = replace(WORKER, gpu_uuids=("GPU-1", "GPU-2"))
    no_page = replace(WORKER, id=9, system_url=None)
    assert metrics_endpoints(Processes(frozenset({worker, frontend, no_page}))) == {
        "object": "list",
        "data": [
            {
                "namespace": "dynamo",
                "instance_id": "7",
                "url": "http://[::1]:8000/own/metrics",
                "gpu_uuids": [],
            },
            {
                "namespace": "prod",
                "instance_id": "ab",
                "url": "http://127.0.0.1:8081/metrics",
                "gpu_uuids": ["GPU-1", "GPU-2"],
            },
        ],
    }


def labels_by_section() -> Mapping[str, set[str]]:
    """Return the labels of the families in docs/metrics.md, by section of the page."""
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return {
        title: {
            label
            for row in re.findall(r"^\| `[^|]+\|[^|]+\|([^|]+)\|.*\|.*\|.*\|$", text, re.MULTILINE)
            for label in re.findall(r"`(\w+)`", row)
        }
        for title, text in sections
    }


def test_no_page_has_the_labels_that_the_documented_rules_give_to_targets() -> None:
    found = labels_by_section()
    assert {"worker_id", "model", "endpoint", "tp_rank"} <= set().union(*found.values())
    for labels in found.values():
        assert not labels & {"role", "instance", "job"}
    for of_frontends in ("The frontend", "Every process"):
        assert found[of_frontends]
        assert "dynamo_namespace" not in found[of_frontends]
