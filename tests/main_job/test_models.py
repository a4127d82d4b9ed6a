"""The frontend shows the facts about a model that the real engine reports."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from stack import Stack, eventually
from stack import http as fetch

pytestmark = pytest.mark.engine

# The values of a real NVIDIA Dynamo 1.6.1 with the tiny model and the same flags.
EXPECTED = {
    "dynamo_frontend_model_context_length": 2048,
    "dynamo_frontend_model_total_kv_blocks": 8192,
    "dynamo_frontend_model_kv_cache_block_size": 1,
    "dynamo_frontend_model_max_num_seqs": 8,
    "dynamo_frontend_model_max_num_batched_tokens": 16384,
    "dynamo_frontend_model_migration_limit": 0,
    "dynamo_frontend_model_ready": 1,
    "dynamo_frontend_model_workers": 1,
}


def test_a_models_gauges_are_those_that_its_engine_reports(stack: Stack) -> None:
    def shown() -> dict[str, float]:
        return {
            sample.name: sample.value
            for family in parse(fetch(f"{stack.frontend_url}/metrics").body.decode())
            for sample in family.samples
            if sample.labels == {"model": str(stack.model)} and sample.name in EXPECTED
        }

    eventually(lambda: shown() == EXPECTED, within=10, what=f"{EXPECTED}, not {shown()}")


def test_a_request_for_an_adapter_is_answered_as_the_engine_answers_it(stack: Stack) -> None:
    """The tiny model has no adapters; the request reaches a worker."""
    assert stack.worker is not None
    body = {"model": f"{stack.model}:adapter", "prompt": "hi", "max_tokens": 2, "temperature": 0}
    directly = fetch(f"{stack.worker.request_url}/v1/completions", body)
    by_frontend = fetch(f"{stack.frontend_url}/v1/completions", body)
    assert by_frontend.status == directly.status
    assert fetch(f"{stack.frontend_url}/v1/models/{stack.model}:adapter").status == 200
    other = {**body, "model": "unheard-of:adapter"}
    assert fetch(f"{stack.frontend_url}/v1/completions", other).status == 404
