from __future__ import annotations

from collections import Counter

import pytest

from dynamometer.frontend.routing import Instances, RouterMode
from dynamometer.runtime.record import Record, Role, State


def worker(number: int, *models: str, state: State = State.READY, **changes: object) -> Record:
    values: dict[str, object] = {
        "role": Role.WORKER,
        "id": number,
        "namespace": "dynamo",
        "component": "backend",
        "models": models or ("m",),
        "request_url": f"http://127.0.0.1:{number}",
        "state": state,
    }
    return Record(**(values | changes))  # type: ignore[arg-type]


def instances(mode: RouterMode = RouterMode.ROUND_ROBIN, namespace: str | None = None) -> Instances:
    made = Instances(mode, namespace)
    made.update([worker(1), worker(2), worker(3)])
    return made


def chosen(table: Instances, **options: object) -> int:
    record = table.choose("m", **options)  # type: ignore[arg-type]
    assert record is not None
    return record.id


def test_round_robin_takes_turns() -> None:
    table = instances()
    assert Counter(chosen(table) for _ in range(9)) == {1: 3, 2: 3, 3: 3}


def test_random_reaches_all() -> None:
    table = instances(RouterMode.RANDOM)
    assert {chosen(table) for _ in range(200)} == {1, 2, 3}


def test_least_loaded_takes_the_one_with_the_fewest_requests_in_flight() -> None:
    table = instances(RouterMode.LEAST_LOADED)
    with table.carrying(worker(1)), table.carrying(worker(1)), table.carrying(worker(3)):
        assert {chosen(table) for _ in range(5)} == {2}
        with table.carrying(worker(2)):
            assert {chosen(table) for _ in range(6)} == {2, 3}
    assert Counter(chosen(table) for _ in range(9)) == {1: 3, 2: 3, 3: 3}


def test_least_loaded_adds_what_others_have_there() -> None:
    table = instances(RouterMode.LEAST_LOADED)
    table.report(1, 2.0)
    table.report(2, 5.0)
    table.report(3, 1.0)
    with table.carrying(worker(3)):
        assert table.in_flight(3) == 1
        assert {chosen(table) for _ in range(6)} == {1, 3}  # 2 and 1 + 1
        with table.carrying(worker(3)):
            assert {chosen(table) for _ in range(6)} == {1}
    table.report(2, 0.0)  # no report: its own count alone
    assert {chosen(table) for _ in range(5)} == {2}


def test_a_worker_that_is_gone_takes_its_report_with_it() -> None:
    table = instances(RouterMode.LEAST_LOADED)
    table.report(1, 50.0)
    table.update([worker(2), worker(3)])
    table.update([worker(1), worker(2), worker(3)])
    assert {chosen(table) for _ in range(9)} == {1, 2, 3}


@pytest.mark.parametrize("mode", [RouterMode.ROUND_ROBIN, RouterMode.RANDOM])
def test_reports_do_not_matter_to_other_modes(mode: RouterMode) -> None:
    table = instances(mode)
    table.report(1, 50.0)
    assert {chosen(table) for _ in range(200)} == {1, 2, 3}


def test_an_instance_that_was_tried_is_not_chosen_again() -> None:
    table = instances()
    assert {chosen(table, without={1, 3}) for _ in range(5)} == {2}
    assert table.choose("m", without={1, 2, 3}) is None


@pytest.mark.parametrize("state", [State.STARTING, State.DRAINING, State.FAILED])
def test_only_ready_workers_are_chosen_and_listed(state: State) -> None:
    table = instances()
    table.update([worker(1, state=state), worker(2, "other"), worker(4, role=Role.FRONTEND)])
    assert table.choose("m") is None
    assert table.models() == {"other": {"id": "other", "object": "model"}}
    assert table.was_served("m")
    assert not table.was_served("n")


def test_a_namespace_keeps_others_out() -> None:
    table = Instances(RouterMode.ROUND_ROBIN, "mine")
    table.update([worker(1), worker(2, namespace="mine")])
    assert [record.id for record in table.ready] == [2]


def test_a_lora_adapter_is_a_model_of_its_workers() -> None:
    table = instances()
    table.update([worker(1), worker(2, "m", "m-lora")])
    record = table.choose("m-lora")
    assert record is not None
    assert record.id == 2
    assert list(table.models()) == ["m", "m-lora"]
