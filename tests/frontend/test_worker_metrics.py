"""The families of models, from the records of their workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from dynamometer.frontend.worker_metrics import WorkerMetrics
from dynamometer.runtime.fleet import Fleet
from dynamometer.runtime.record import Json, Record, Role, State

INFO: Mapping[str, Json] = {
    "version": "0.5.23",
    "context_length": 2048,
    "total_kv_blocks": 512,
    "kv_block_size": 16,
    "max_sequences": 8,
    "max_batched_tokens": 4096,
}
SHOWN = {
    "model_ready": 1,
    "model_workers": 1,
    "model_migration_limit": 0,
    "model_context_length": 2048,
    "model_total_kv_blocks": 512,
    "model_kv_cache_block_size": 16,
    "model_max_num_seqs": 8,
    "model_max_num_batched_tokens": 4096,
}


def worker(number: int, info: Mapping[str, Json] = INFO, **cards: Json) -> Record:
    models = cards or {"m": {"id": "m"}}
    return Record(
        role=Role.WORKER,
        id=number,
        namespace="dynamo",
        component="backend",
        models=tuple(models),
        model_info=models,
        engine_info=info,
        request_url="http://127.0.0.1:1",
        state=State.READY,
    )


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def fleet(registry: CollectorRegistry) -> Fleet:
    """A fleet whose models and workers are shown in `registry`."""
    made = Fleet()
    metrics = WorkerMetrics(registry)
    made.on_change(lambda change: metrics.update(made, change))
    return made


def shown(registry: CollectorRegistry, model: str = "m") -> dict[str, float]:
    return {
        sample.name.removeprefix("dynamo_frontend_"): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.labels == {"model": model}
    }


def states(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    return {
        (sample.labels["model"], sample.labels["mode"], sample.labels["state"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "dynamometer_frontend_workers"
    }


def test_workers_are_counted_by_model_mode_and_state(
    registry: CollectorRegistry, fleet: Fleet
) -> None:
    prefill = replace(worker(3), mode="prefill")
    both = worker(4, m={}, adapter={})
    fleet.update([worker(1), replace(worker(2), state=State.STARTING), prefill, both])
    assert states(registry) == {
        ("m", "aggregated", "ready"): 2,
        ("m", "aggregated", "starting"): 1,
        ("m", "prefill", "ready"): 1,
        ("adapter", "aggregated", "ready"): 1,
    }


def test_decode_workers_that_a_prefill_worker_fits_answer_for_a_model(
    registry: CollectorRegistry, fleet: Fleet
) -> None:
    prefill = replace(worker(1, {**INFO, "max_sequences": 2}), mode="prefill", bootstrap="h:1")
    decode = replace(worker(2), mode="decode")
    other = replace(worker(3, {**INFO, "kv_block_size": 1}), mode="decode")
    fleet.update([prefill, decode, other])
    assert shown(registry) == SHOWN
    assert states(registry) == {("m", "prefill", "ready"): 1, ("m", "decode", "ready"): 2}
    fleet.update([prefill, replace(decode, state=State.RESTARTING)])
    assert shown(registry) == {"model_ready": 0, "model_workers": 0}
    assert states(registry) == {
        ("m", "prefill", "ready"): 1,
        ("m", "decode", "ready"): 0,
        ("m", "decode", "restarting"): 1,
    }


def test_each_ready_worker_of_a_pair_has_last_values_once_they_are_set(
    registry: CollectorRegistry,
) -> None:
    fleet, metrics = Fleet(), WorkerMetrics(registry)
    fleet.on_change(lambda change: metrics.update(fleet, change))
    prefill = replace(worker(1), mode="prefill", bootstrap="h:1")
    fleet.update([prefill, replace(worker(2), mode="decode")])
    last = metrics.last_values(2)
    assert last is not None
    last.set(0.5, 0.25, 7)
    series = [
        sample.labels["worker_id"]
        for family in registry.collect()
        for sample in family.samples
        if "worker_last" in sample.name
    ]
    assert series == ["2"] * 3
    fleet.update([prefill])
    assert metrics.last_values(2) is None


def test_state_that_occurred_once_is_shown_at_0(registry: CollectorRegistry, fleet: Fleet) -> None:
    assert states(registry) == {}
    fleet.update([replace(worker(1), state=State.STARTING)])
    assert states(registry) == {("m", "aggregated", "starting"): 1}
    fleet.update([worker(1)])
    assert states(registry) == {("m", "aggregated", "starting"): 0, ("m", "aggregated", "ready"): 1}
    fleet.update([])
    assert states(registry) == {("m", "aggregated", "starting"): 0, ("m", "aggregated", "ready"): 0}


def test_processes_that_get_no_requests_of_this_frontend_are_not_counted(
    registry: CollectorRegistry,
) -> None:
    fleet, metrics = Fleet(namespace="dynamo", engines=("sglang",)), WorkerMetrics(registry)
    fleet.on_change(lambda change: metrics.update(fleet, change))
    fleet.update(
        [
            replace(worker(1), namespace="other"),
            replace(worker(2), role=Role.EXPORTER),
            replace(worker(3), request_url=None),
            replace(worker(4), engine="of a later release"),
            replace(worker(5), state="of a later release"),
        ]
    )
    assert states(registry) == {}


def test_a_model_is_what_its_worker_tells(registry: CollectorRegistry, fleet: Fleet) -> None:
    fleet.update([worker(1)])
    assert shown(registry) == SHOWN


def test_of_several_workers_the_leading_one_tells(
    registry: CollectorRegistry, fleet: Fleet
) -> None:
    second = worker(2, {**INFO, "total_kv_blocks": 7, "max_sequences": 3})
    fleet.update([worker(1), second])
    assert shown(registry) == SHOWN | {"model_workers": 2}
    fleet.update([second])
    assert shown(registry) == SHOWN | {"model_total_kv_blocks": 7, "model_max_num_seqs": 3}


def test_a_model_whose_workers_are_gone_is_not_ready_and_nothing_else(
    registry: CollectorRegistry, fleet: Fleet
) -> None:
    fleet.update([worker(1)])
    fleet.update([])
    assert shown(registry) == {"model_ready": 0, "model_workers": 0}
    fleet.update([worker(2, other={})])
    assert shown(registry) == {"model_ready": 0, "model_workers": 0}
    fleet.update([worker(3)])
    assert shown(registry) == SHOWN


def test_what_is_learned_later_is_shown_then(registry: CollectorRegistry, fleet: Fleet) -> None:
    fleet.update([worker(1, {})])
    assert shown(registry) == {"model_ready": 1, "model_workers": 1, "model_migration_limit": 0}
    fleet.update([worker(1)])
    assert shown(registry) == SHOWN


def test_a_leading_worker_that_does_not_tell_leaves_it_to_the_next(
    registry: CollectorRegistry, fleet: Fleet
) -> None:
    fleet.update([worker(1, {}), worker(2)])
    assert shown(registry) == SHOWN | {"model_workers": 2}


def test_a_models_own_context_length_comes_first(registry: CollectorRegistry, fleet: Fleet) -> None:
    fleet.update([worker(1, base={"max_model_len": 4096}, adapter={"max_model_len": None})])
    assert shown(registry, "base")["model_context_length"] == 4096
    assert shown(registry, "adapter")["model_context_length"] == 2048


@pytest.mark.parametrize("card", [None, "x", [], {"max_model_len": "many"}, {"max_model_len": []}])
def test_a_card_that_is_nonsense_tells_nothing(
    registry: CollectorRegistry, fleet: Fleet, card: Json
) -> None:
    fleet.update([worker(1, {}, m=card)])
    assert "model_context_length" not in shown(registry)


def test_numbers_that_are_none_are_not_shown(registry: CollectorRegistry, fleet: Fleet) -> None:
    nonsense: dict[str, Json] = {"total_kv_blocks": "many", "max_sequences": 10**400}
    fleet.update([worker(1, {**INFO, **nonsense})])
    expected = dict(SHOWN)
    del expected["model_total_kv_blocks"], expected["model_max_num_seqs"]
    assert shown(registry) == expected
