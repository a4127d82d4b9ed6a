"""Series per tenant, from a gateway's header to the page, with the real engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from stack import Stack, Worker, http

pytestmark = pytest.mark.engine

MODEL, KEPT = "tenants", 3
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
GENERATE = {"model": MODEL, "text": "hi", "sampling_params": {"max_new_tokens": 2}}


@pytest.fixture(scope="module")
def worker(stack: Stack) -> Iterator[Worker]:
    flags = ("--model", str(stack.model), "--served-model-name", MODEL, "--enable-metrics")
    labels = ("--tokenizer-metrics-allowed-custom-labels", "tenant")
    bound = ("--max-label-values", str(KEPT), "--restart-limit", "0")
    with stack.run_worker(*flags, *labels, *bound) as started:
        yield started.wait_until_ready()


def requests(worker: Worker) -> Counter[str]:
    """Return the number of requests of each tenant on the worker's page."""
    counts: Counter[str] = Counter()
    for family in parse(worker.page()):
        for sample in family.samples:
            if sample.name == "sglang:num_requests_total":
                counts[sample.labels["tenant"]] += int(sample.value)
    return counts


def tokens(worker: Worker, family: str) -> float:
    """Return the sum of a family's series on the worker's page."""
    samples = [sample for found in parse(worker.page()) for sample in found.samples]
    return sum(sample.value for sample in samples if sample.name == family)


def ask(url: str, tenant: str) -> int:
    header = {"X-Custom-Labels": f'{{"tenant": "{tenant}"}}'}
    return http(f"{url}/v1/chat/completions", CHAT, **header).status


def test_clients_set_no_label_through_a_frontend(stack: Stack, worker: Worker) -> None:
    """In SGLang 0.5.23, a label in a body that its flag does not allow ends the engine."""
    before = requests(worker).total()
    assert ask(stack.frontend_url, "forged") == 200
    for labels in ({"tenant": "forged"}, {"unknown": "x"}):
        body = GENERATE | {"custom_labels": labels}
        assert http(f"{stack.frontend_url}/generate", body).status == 200
    counts = requests(worker)
    assert counts.total() == before + 3
    assert "forged" not in counts
    assert worker.ready()


def test_tenants_of_a_gateway_are_counted_and_bounded(stack: Stack, worker: Worker) -> None:
    with stack.run_frontend("--forward-custom-labels") as (_, url):
        for tenant, count in {"acme": 2, "zoo": 1, "third": 1, "fourth": 2}.items():
            for _ in range(count):
                assert ask(url, tenant) == 200
        before = requests(worker)
        assert (
            http(f"{url}/generate", GENERATE | {"custom_labels": {"tenant": "acme"}}).status == 200
        )
    counts = requests(worker)
    assert {tenant: counts[tenant] for tenant in counts if tenant} == {
        "acme": 2,
        "zoo": 1,
        "third": 1,
        "other": 2,
    }
    assert counts.total() == before.total() + 1
    total = tokens(worker, "dynamometer_engine_generation_tokens_total")
    assert total == tokens(worker, "sglang:generation_tokens_total") > 0


def test_a_variable_allows_the_header_in_all_processes(
    stack: Stack, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_FORWARD_CUSTOM_LABELS", "1")
    before = requests(worker)["acme"]
    with stack.run_frontend("--processes", "2") as (_, url):
        assert [ask(url, "acme") for _ in range(4)] == [200] * 4
    assert requests(worker)["acme"] == before + 4


def test_the_workers_own_port_passes_the_header_on(worker: Worker) -> None:
    before = requests(worker)["acme"]
    assert ask(worker.request_url, "acme") == 200
    assert requests(worker)["acme"] == before + 1
