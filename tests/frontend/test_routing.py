from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace

import pytest

from dynamometer.frontend.routing import AVOID_SECONDS, Router, RouterMode
from dynamometer.runtime.fleet import Fleet
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


def prefill(number: int, **changes: object) -> Record:
    return replace(worker(number, mode="prefill", bootstrap=f"127.0.0.1:{number}"), **changes)  # type: ignore[arg-type]


def decode(number: int, **changes: object) -> Record:
    return replace(worker(number, mode="decode"), **changes)  # type: ignore[arg-type]


def router(mode: RouterMode = RouterMode.ROUND_ROBIN) -> Router:
    made = Router(mode, Fleet())
    made.fleet.update([worker(1), worker(2), worker(3)])
    return made


def chosen(table: Router, **options: object) -> int:
    record = table.choose("m", **options)  # type: ignore[arg-type]
    assert record is not None
    return record.id


def test_round_robin_takes_turns() -> None:
    table = router()
    assert Counter(chosen(table) for _ in range(9)) == {1: 3, 2: 3, 3: 3}


def test_second_choices_take_no_turn_and_reach_all() -> None:
    table = router()
    seconds: Counter[int] = Counter()
    for _ in range(100):
        assert [chosen(table) for _ in range(2)] == [1, 2]
        seconds[chosen(table, without={1})] += 1
        assert chosen(table) == 3
    assert set(seconds) == {2, 3}


def test_random_reaches_all() -> None:
    table = router(RouterMode.RANDOM)
    assert {chosen(table) for _ in range(200)} == {1, 2, 3}


def test_least_loaded_takes_the_one_with_the_fewest_requests_in_flight() -> None:
    table = router(RouterMode.LEAST_LOADED)
    with table.carrying(worker(1)), table.carrying(worker(1)), table.carrying(worker(3)):
        assert {chosen(table) for _ in range(5)} == {2}
        with table.carrying(worker(2)):
            assert {chosen(table) for _ in range(6)} == {2, 3}
    assert Counter(chosen(table) for _ in range(9)) == {1: 3, 2: 3, 3: 3}


def test_late_report_of_a_worker_that_has_left_is_ignored() -> None:
    table = router(RouterMode.LEAST_LOADED)
    others = [worker(2), worker(3)]
    table.fleet.update(others)
    table.report(1, 50.0)
    table.fleet.update([worker(1), *others])  # a successor of the same id
    assert Counter(chosen(table) for _ in range(6)) == {1: 2, 2: 2, 3: 2}


def test_least_loaded_adds_what_others_have_there() -> None:
    table = router(RouterMode.LEAST_LOADED)
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
    table = router(RouterMode.LEAST_LOADED)
    table.report(1, 50.0)
    table.fleet.update([worker(2), worker(3)])
    table.fleet.update([worker(1), worker(2), worker(3)])
    assert {chosen(table) for _ in range(9)} == {1, 2, 3}


@pytest.mark.parametrize("mode", [RouterMode.ROUND_ROBIN, RouterMode.RANDOM])
def test_reports_do_not_matter_to_other_modes(mode: RouterMode) -> None:
    table = router(mode)
    table.report(1, 50.0)
    assert {chosen(table) for _ in range(200)} == {1, 2, 3}


def test_an_instance_that_was_tried_is_not_chosen_again() -> None:
    table = router()
    assert {chosen(table, without={1, 3}) for _ in range(5)} == {2}
    assert table.choose("m", without={1, 2, 3}) is None


@pytest.mark.parametrize("state", sorted(set(State) - {State.READY}))
def test_only_ready_workers_are_chosen(state: State) -> None:
    table = router()
    table.fleet.update([worker(1, state=state), worker(2, "other"), worker(4, role=Role.FRONTEND)])
    assert table.choose("m") is None


@pytest.mark.parametrize("mode", RouterMode)
@pytest.mark.parametrize("phase", ["prefill", "decode", "encode"])
def test_a_worker_that_cannot_answer_alone_is_not_chosen(mode: RouterMode, phase: str) -> None:
    table = router(mode)
    table.fleet.update([worker(1, mode=phase), worker(2), worker(3, mode=phase)])
    assert {chosen(table) for _ in range(20)} == {2}
    table.fleet.update([worker(1, mode=phase)])
    assert table.choose("m") is None


@pytest.mark.parametrize("mode", RouterMode)
def test_workers_that_come_and_go_are_chosen_while_they_are_there(mode: RouterMode) -> None:
    table = router(mode)
    table.fleet.update([worker(2), worker(3), worker(4)])
    assert {chosen(table) for _ in range(100)} == {2, 3, 4}
    table.fleet.update([])
    assert table.choose("m") is None
    table.fleet.update([worker(1)])
    assert {chosen(table) for _ in range(3)} == {1}


@pytest.mark.parametrize("mode", RouterMode)
def test_a_choice_without_all_but_one_finds_that_one(mode: RouterMode) -> None:
    table = router(mode)
    for left in (1, 2, 3):
        assert {chosen(table, without={1, 2, 3} - {left}) for _ in range(20)} == {left}
    assert table.choose("m", without={1, 2, 3}) is None
    assert {chosen(table) for _ in range(100)} == {1, 2, 3}


@pytest.mark.parametrize("mode", RouterMode)
def test_avoided_worker_is_chosen_only_without_another(mode: RouterMode) -> None:
    table = router(mode)
    table.avoid(worker(1))
    assert {chosen(table) for _ in range(200)} == {2, 3}
    assert {chosen(table, without={2}) for _ in range(20)} == {3}
    assert {chosen(table, without={2, 3}) for _ in range(20)} == {1}
    assert table.choose("m", without={1, 2, 3}) is None
    table.avoid(worker(3))
    assert {chosen(table) for _ in range(20)} == {2}
    table.avoid(worker(2))
    assert {chosen(table) for _ in range(200)} == {1, 2, 3}


def test_round_robin_takes_turns_when_all_workers_are_avoided() -> None:
    table = router()
    for number in (1, 2, 3):
        table.avoid(worker(number))
    assert Counter(chosen(table) for _ in range(9)) == {1: 3, 2: 3, 3: 3}


@pytest.mark.parametrize("mode", [RouterMode.ROUND_ROBIN, RouterMode.RANDOM])
def test_turns_of_an_avoided_worker_are_shared_by_all_others(mode: RouterMode) -> None:
    table = Router(mode, Fleet())
    table.fleet.update([worker(number) for number in range(1, 5)])
    table.avoid(worker(1))
    counts = Counter(chosen(table) for _ in range(3000))
    assert counts.keys() == {2, 3, 4}
    assert min(counts.values()) > 800


@pytest.mark.parametrize("mode", RouterMode)
@pytest.mark.parametrize("end", ["time", "another record", "a new process", "a new worker"])
def test_avoidance_ends(mode: RouterMode, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    table = router(mode)
    others = [worker(2), worker(3)]
    table.avoid(worker(1))
    now += AVOID_SECONDS / 2
    table.avoid(worker(1))  # and the second starts again
    now += AVOID_SECONDS * 0.9
    table.fleet.update([worker(1), *others, worker(4, "other")])
    assert {chosen(table) for _ in range(50)} == {2, 3}
    if end == "time":
        now += AVOID_SECONDS / 2
    elif end == "another record":
        table.fleet.update([worker(1, since=2.0), *others])
    elif end == "a new process":
        table.fleet.update(others)
        table.fleet.update([worker(1), *others])
    else:
        table.fleet.update([worker(5), *others])
    assert len({chosen(table) for _ in range(200)}) == 3


@pytest.mark.parametrize("mode", RouterMode)
def test_late_refusal_of_an_earlier_record_avoids_no_worker(mode: RouterMode) -> None:
    table = router(mode)
    others = [worker(2), worker(3)]
    table.fleet.update(others)
    table.avoid(worker(1))
    table.fleet.update([worker(1, since=2.0), *others])
    table.avoid(worker(1))
    assert {chosen(table) for _ in range(200)} == {1, 2, 3}


@pytest.mark.parametrize("mode", ["aggregated", "prefill", "decode"])
def test_least_loaded_is_exact_among_many(mode: str) -> None:
    """Compare with a plain search, over requests that start and end, and reports."""
    chance = random.Random(7)
    table = Router(RouterMode.LEAST_LOADED, Fleet())
    workers = [replace(worker(number), mode=mode, bootstrap="h:1") for number in range(1, 41)]
    others_side = {"prefill": [decode(101)], "decode": [prefill(101)]}.get(mode, [])
    table.fleet.update([*workers, *others_side])
    loads = {record.id: 0.0 for record in workers}
    others: dict[int, float] = {}
    open_requests: list[tuple[int, ExitStack]] = []
    for _ in range(3000):
        action = chance.random()
        if action < 0.1:
            id_, load = chance.randint(1, 40), float(chance.randint(0, 5))
            loads[id_] += load - others.get(id_, 0.0)
            others[id_] = load
            table.report(id_, load)
        elif action < 0.5 and open_requests:
            id_, request = open_requests.pop(chance.randrange(len(open_requests)))
            request.close()
            loads[id_] -= 1
        else:
            without = set(chance.sample(range(1, 41), chance.choice((0, 0, 1))))
            record = table.choose("m", mode, without=without)
            assert record is not None
            assert record.id not in without
            least = min(load for id_, load in loads.items() if id_ not in without)
            assert loads[record.id] == least
            request = ExitStack()
            request.enter_context(table.carrying(record))
            open_requests.append((record.id, request))
            loads[record.id] += 1
    for _, request in open_requests:
        request.close()


def test_equals_take_turns_when_one_of_them_ends_its_request() -> None:
    table = router(RouterMode.LEAST_LOADED)
    first = []
    for _ in range(6):
        record = table.choose("m")
        assert record is not None
        with table.carrying(record):
            first.append(record.id)
    assert sorted(first[:3]) == sorted(first[3:]) == [1, 2, 3]


def test_a_worker_with_two_models_has_one_load() -> None:
    table = Router(RouterMode.LEAST_LOADED, Fleet())
    both, other = worker(1, "m", "n"), worker(2, "n")
    table.fleet.update([both, other])
    assert {record.id for _ in range(2) if (record := table.choose("n"))} == {1, 2}
    with table.carrying(both):
        assert {record.id for _ in range(4) if (record := table.choose("n"))} == {2}
    assert {record.id for _ in range(2) if (record := table.choose("n"))} == {1, 2}


def test_a_lora_adapter_is_a_model_of_its_workers() -> None:
    table = router()
    table.fleet.update([worker(1), worker(2, "m", "m-lora")])
    record = table.choose("m-lora")
    assert record is not None
    assert record.id == 2
    assert list(table.fleet.models) == ["m", "m-lora"]


def sides(mode: RouterMode, prefills: int, decodes: int, *, processes: int = 1) -> Router:
    """Return a router with prefill workers from number 1, and decode workers from number 101."""
    made = Router(mode, Fleet(), processes=processes)
    made.fleet.update(
        [
            *(prefill(number) for number in range(1, prefills + 1)),
            *(decode(number) for number in range(101, decodes + 101)),
        ]
    )
    return made


def chosen_pair(table: Router, without: Collection[int] = ()) -> tuple[Record, Record]:
    last = table.choose("m", "decode", without=without)
    assert last is not None
    first = table.choose("m", "prefill", without=without, fitting=last)
    assert first is not None
    return first, last


@pytest.mark.parametrize("mode", RouterMode)
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize(("prefills", "decodes"), [(1, 1), (1, 3), (3, 1), (2, 2), (3, 2)])
def test_pairs_reach_all_workers_of_both_sides(
    mode: RouterMode, processes: int, prefills: int, decodes: int
) -> None:
    table = sides(mode, prefills, decodes, processes=processes)
    assert table.choose("m") is None
    counts: Counter[int] = Counter()
    for _ in range(600):
        first, last = chosen_pair(table)
        assert (first.mode, last.mode) == ("prefill", "decode")
        counts.update((first.id, last.id))
    for number, workers in ((prefills, range(1, 101)), (decodes, range(101, 201))):
        found = [counts[id_] for id_ in workers if counts[id_]]
        assert len(found) == number
        if mode is not RouterMode.RANDOM:
            assert set(found) == {600 // number}


def test_each_side_is_chosen_by_its_own_load() -> None:
    table = sides(RouterMode.LEAST_LOADED, 2, 2)
    table.report(1, 2.0)
    table.report(102, 3.0)
    with table.carrying(prefill(2)):
        assert {chosen_pair(table) for _ in range(6)} == {(prefill(2), decode(101))}
        with table.carrying(prefill(2)), table.carrying(decode(101)):
            assert Counter(first.id for first, _ in (chosen_pair(table) for _ in range(8))) == {
                1: 4,
                2: 4,
            }
            assert {chosen_pair(table)[1].id for _ in range(6)} == {101}
    table.report(102, None)
    assert {chosen_pair(table)[1].id for _ in range(6)} == {101, 102}


@pytest.mark.parametrize("mode", RouterMode)
@pytest.mark.parametrize("avoided", [1, 101])
def test_avoidance_of_one_side_leaves_the_other(mode: RouterMode, avoided: int) -> None:
    table = sides(mode, 2, 2)
    table.avoid(prefill(1) if avoided == 1 else decode(101))
    pairs = [chosen_pair(table) for _ in range(300)]
    assert {worker.id for pair in pairs for worker in pair} == {1, 2, 101, 102} - {avoided}
    table.avoid(prefill(2) if avoided == 1 else decode(102))
    pairs = [chosen_pair(table) for _ in range(300)]
    assert {worker.id for pair in pairs for worker in pair} == {1, 2, 101, 102}


@pytest.mark.parametrize("mode", RouterMode)
def test_a_pair_without_a_tried_worker_has_another_one(mode: RouterMode) -> None:
    table = sides(mode, 2, 2)
    assert {chosen_pair(table, {1})[0].id for _ in range(20)} == {2}
    assert {chosen_pair(table, {1})[1].id for _ in range(200)} == {101, 102}
    assert {chosen_pair(table, {1, 102}) for _ in range(20)} == {(prefill(2), decode(101))}
    assert table.choose("m", "decode", without={101, 102}) is None
    assert table.choose("m", "prefill", without={1, 2}) is None
    assert table.choose("m", "decode", without={1, 2}) is None


@pytest.mark.parametrize("mode", RouterMode)
def test_workers_of_a_pair_fit(mode: RouterMode) -> None:
    """Three prefill workers of one namespace, one of another, and decode workers of both."""
    table = Router(mode, Fleet())
    here, there = {"namespace": "a"}, {"namespace": "b"}
    table.fleet.update(
        [
            *(prefill(number, **here) for number in (1, 3, 4)),
            prefill(2, **there),
            decode(101, **here),
            decode(102, **there),
            decode(103, namespace="c"),
        ]
    )
    pairs = [chosen_pair(table) for _ in range(600)]
    assert {(first.id, last.id) for first, last in pairs} == {
        (1, 101), (3, 101), (4, 101), (2, 102),
    }  # fmt: skip
    if mode is RouterMode.ROUND_ROBIN:
        assert Counter(first.id for first, _ in pairs) == {1: 100, 2: 300, 3: 100, 4: 100}
    # A decode worker whose prefill worker was tried or is avoided can serve no request.
    assert {chosen_pair(table, {2})[1].id for _ in range(20)} == {101}
    table.avoid(prefill(2, **there))
    assert {chosen_pair(table)[1].id for _ in range(20)} == {101}
    assert {chosen_pair(table, {101}) for _ in range(20)} == {
        (prefill(2, **there), decode(102, **there))
    }


@pytest.mark.parametrize("mode", RouterMode)
def test_a_model_with_an_aggregated_worker_is_not_served_in_pairs(mode: RouterMode) -> None:
    table = sides(mode, 1, 1)
    both = [prefill(1), decode(101)]
    table.fleet.update([*both, worker(50)])
    assert table.choose("m", "decode") is table.choose("m", "prefill") is None
    assert chosen(table) == 50
    table.fleet.update(both)
    assert table.choose("m") is None
    assert chosen_pair(table) == (prefill(1), decode(101))


@pytest.mark.parametrize("mode", [RouterMode.ROUND_ROBIN, RouterMode.LEAST_LOADED])
def test_first_choices_of_many_processes_reach_all_workers(mode: RouterMode) -> None:
    found = set()
    for _ in range(100):
        table = Router(mode, Fleet(), processes=2)
        table.fleet.update([worker(1), worker(2), worker(3)])
        found.add(chosen(table))
    assert found == {1, 2, 3}


def test_other_processes_start_as_many_requests_since_the_report() -> None:
    table = Router(RouterMode.LEAST_LOADED, Fleet(), processes=4)
    first, second = worker(1), worker(2)
    table.fleet.update([first, second])
    table.report(1, 0.0)
    table.report(2, 6.0)
    assert chosen(table) == 1
    with table.carrying(first), table.carrying(first):  # as 8 requests of 4 processes
        assert chosen(table) == 2
        table.report(1, 0.0)  # the report has these 2 requests only
        assert chosen(table) == 1
    assert chosen(table) == 1  # never below 0
    table.report(2, None)
    table.report(1, None)
    with table.carrying(first):
        assert chosen(table) == 2


def largest_excess(processes: int, workers: int, rate: float, *, assumed: int) -> float:
    """Return the mean over time of the largest load of a worker above the mean load.

    Requests take one second on average, and reports are one second apart.

    Args:
        processes: the number of routers, among which requests are distributed at random.
        workers: the number of workers.
        rate: the requests per second.
        assumed: the number of processes that each router assumes.
    """
    chance = random.Random(11)
    tables = [Router(RouterMode.LEAST_LOADED, Fleet(), processes=assumed) for _ in range(processes)]
    records = [worker(number) for number in range(1, workers + 1)]
    for table in tables:
        table.fleet.update(records)
    loads = Counter({record.id: 0 for record in records})
    excesses = []
    ends: list[tuple[float, int, int, ExitStack]] = []
    now, next_report, count = 0.0, 1.0, 0
    while now < 20:
        now += chance.expovariate(rate)
        count += 1
        while ends and ends[0][0] < now:
            *_, id_, request = heapq.heappop(ends)
            loads[id_] -= 1
            request.close()
        if now > next_report:
            next_report += 1
            for table in tables:
                for id_, load in loads.items():
                    table.report(id_, load - table.in_flight(id_))
        table = chance.choice(tables)
        record = table.choose("m")
        assert record is not None
        request = ExitStack()
        request.enter_context(table.carrying(record))
        loads[record.id] += 1
        heapq.heappush(ends, (now + chance.expovariate(1), count, record.id, request))
        if now > 3:
            excesses.append(max(loads.values()) - loads.total() / workers)
    for *_, request in ends:
        request.close()
    return sum(excesses) / len(excesses)


def test_many_processes_choose_nearly_as_well_as_one() -> None:
    one = largest_excess(1, 8, 400, assumed=1)
    several = largest_excess(8, 8, 400, assumed=8)
    assert one < 2
    assert several < 5
    assert largest_excess(8, 8, 400, assumed=1) > 4 * several
