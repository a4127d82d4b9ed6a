"""The index of the processes in discovery."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynamometer.runtime.fleet import Change, Fleet
from dynamometer.runtime.record import VERSION, Json, Record, Role, State


def worker(number: int, *models: str, **changes: object) -> Record:
    made = Record(
        role=Role.WORKER,
        id=number,
        namespace="dynamo",
        component="backend",
        models=models or ("m",),
        request_url=f"http://127.0.0.1:{number}",
        state=State.READY,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def ids(records: tuple[Record, ...]) -> list[int]:
    return [record.id for record in records]


def test_processes_of_every_role_and_state_are_there() -> None:
    fleet = Fleet()
    others = [
        worker(2, state=State.STARTING),
        worker(3, role=Role.EXPORTER),
        worker(4, role=Role.FRONTEND),
        worker(5, role="planner", version=VERSION + 1),
        worker(6, min_version=VERSION + 1),
    ]
    fleet.update([worker(1), *others])
    assert set(fleet.records) == {1, 2, 3, 4, 5, 6}
    assert ids(fleet.ready) == [1]


@pytest.mark.parametrize("state", sorted(set(State) - {State.READY}))
def test_only_models_of_ready_workers_are_served(state: State) -> None:
    fleet = Fleet()
    fleet.update([worker(1)])
    fleet.update([worker(1, state=state), worker(2, "other"), worker(4, role=Role.FRONTEND)])
    assert fleet.models == {"other": {"id": "other", "object": "model"}}
    assert fleet.workers("m") == ()
    assert fleet.resolve("m") == "m"
    assert fleet.resolve("n") is None


def test_a_models_card_is_its_workers() -> None:
    fleet = Fleet()
    card = {"id": "m", "max_model_len": 2048}
    fleet.update([worker(1, model_info={"m": card})])
    assert fleet.models == {"m": card}


@pytest.mark.parametrize("card", [None, 5, "text", []])
def test_a_card_that_is_not_an_object_is_not_shown(card: Json) -> None:
    fleet = Fleet()
    fleet.update([worker(1, model_info={"m": card})])
    assert fleet.models["m"] == {"id": "m", "object": "model"}


def test_a_namespace_does_not_serve_the_workers_of_others() -> None:
    fleet = Fleet(namespace="mine")
    fleet.update([worker(1), worker(2, namespace="mine")])
    assert ids(fleet.ready) == [2]
    assert set(fleet.records) == {1, 2}


def test_workers_are_indexed_by_model_and_mode() -> None:
    fleet = Fleet()
    fleet.update([worker(3), worker(1), worker(2, mode="prefill"), worker(4, "n", mode="decode")])
    assert ids(fleet.workers("m")) == [1, 3]
    assert ids(fleet.workers("m", "prefill")) == [2]
    assert fleet.workers("m", "decode") == ()
    assert ids(fleet.workers("n", "decode")) == [4]
    assert list(fleet.models) == ["m"]


def test_an_index_that_did_not_change_is_the_same_object() -> None:
    fleet = Fleet()
    fleet.update([worker(1), worker(2)])
    before = fleet.workers("m")
    fleet.update([worker(1), worker(2), worker(3, "n")])
    assert fleet.workers("m") is before


def test_consumers_are_called_with_what_changed() -> None:
    fleet = Fleet()
    changes: list[Change] = []
    fleet.on_change(changes.append)
    fleet.update([worker(1), worker(2, "n", state=State.STARTING)])
    fleet.update([worker(1), worker(2, "n", state=State.STARTING)])
    fleet.update([worker(1), worker(2, "n")])
    fleet.update([worker(2, "n", engine_info={"max_sequences": 8}), worker(3, role="exporter")])
    first, second, third = changes
    assert sorted(record.id for record in first.joined) == [1, 2]
    assert first.models == first.served == {"m"}
    assert ids(second.changed) == [2]
    assert second.models == second.served == {"n"}
    assert second.unserved == set()
    assert (ids(third.joined), ids(third.changed), ids(third.left)) == ([3], [2], [1])
    assert third.models == {"m", "n"}
    assert third.unserved == {"m"}
    assert third.served == set()


@pytest.mark.parametrize(
    ("registered", "asked", "found"),
    [
        (["base"], "base", "base"),
        (["base"], "base:adapter", "base"),
        (["base"], "base:a:b", "base"),
        (["base"], "base:", "base"),
        (["base"], "other:adapter", None),
        (["base"], ":base", None),
        (["base"], "bas", None),
        (["base"], "", None),
        (["s3://x/y"], "s3://x/y", "s3://x/y"),
        (["s3://x/y"], "s3://x/y:adapter", "s3://x/y"),
        (["s3://x/y"], "s3", None),
        (["a", "a:b"], "a:b", "a:b"),
        (["a", "a:b"], "a:b:c", "a:b"),
        (["a", "a:b"], "a:c", "a"),
        (["adapter", "base"], "adapter", "adapter"),
    ],
)
def test_a_name_means_the_longest_registered_one(
    registered: list[str], asked: str, found: str | None
) -> None:
    fleet = Fleet()
    fleet.update([worker(1, *registered)])
    assert fleet.resolve(asked) == found


@pytest.mark.parametrize(
    ("modes", "reason"),
    [
        ([], "no worker serves 'm' now"),
        (["prefill"], "'m' has only prefill workers, which cannot answer a request alone"),
        (
            ["decode", "prefill", "decode"],
            "'m' has only decode and prefill workers, which cannot answer a request alone",
        ),
    ],
)
def test_a_model_that_is_not_served_has_a_reason(modes: list[str], reason: str) -> None:
    fleet = Fleet()
    fleet.update([worker(1), worker(2, "n")])
    others = [worker(number, mode=mode) for number, mode in enumerate(modes, 3)]
    fleet.update([worker(2, "n"), *others])
    assert fleet.missing_reason("m") == reason


def test_a_reason_names_the_states_of_workers_that_are_not_ready() -> None:
    fleet = Fleet()
    fleet.update([worker(1)])
    states = (State.STARTING, State.FAILED, State.STARTING)
    fleet.update([worker(number, state=state) for number, state in enumerate(states, 2)])
    assert fleet.missing_reason("m") == "no worker serves 'm' now (1 failed, 2 starting)"
    assert fleet.missing_reason("n") == "no worker serves 'n' now"
    assert fleet.missing_reason(None) == "no worker is ready (1 failed, 2 starting)"


def test_a_fleet_without_workers_that_answer_has_a_reason() -> None:
    fleet = Fleet()
    assert fleet.missing_reason(None) == "no worker is ready"
    fleet.update([worker(1, mode="prefill")])
    assert fleet.missing_reason(None) == (
        "this deployment has only prefill workers, which cannot answer a request alone"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": "planner"}, "its role 'planner' is unknown"),
        ({"state": "sleeping"}, "its state 'sleeping' is unknown"),
        ({"min_version": VERSION + 1},
         f"its record needs a reader of version {VERSION + 1}, not {VERSION}"),
        ({"engine": "unheard-of"}, "its engine 'unheard-of' is unknown"),
    ],
)  # fmt: skip
def test_a_process_that_this_version_cannot_use_is_there_and_gets_no_requests(
    changes: dict[str, object], reason: str
) -> None:
    fleet = Fleet(engines={"sglang"})
    record = worker(1, version=VERSION + 1, **changes)
    fleet.update([record, worker(2, "n", engine="sglang"), worker(3, "o")])
    assert fleet.records[1] == record
    assert fleet.unusable_reason(record) == reason
    assert ids(fleet.ready) == [2, 3]
    assert fleet.workers("m") == ()
