"""The worker's page, compared with the engine's own page and checked by promtool."""

from __future__ import annotations

import re
import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from stack import Stack, Worker, http

pytestmark = pytest.mark.engine
RUNTIME_LABELS = {"dynamo_namespace", "dynamo_component", "dynamo_endpoint", "model", "worker_id"}
Series = tuple[str, frozenset[tuple[str, str]]]

# The messages of promtool's lint about SGLang's names, which this project does not choose. Messages
# about other names, and parse errors, fail the test.
LINT_OF_SGLANG = (
    "metric names should not contain ':'",
    "metric names should not contain abbreviated units",
    "metric name should not include type 'histogram'",
    'non-histogram and non-summary metrics should not have "_count" suffix',
    'non-histogram metrics should not have "le" label',
)


@pytest.fixture(scope="module", autouse=True)
def traffic(stack: Stack) -> None:
    for stream in (False, True):
        body = {
            "model": str(stack.model),
            "stream": stream,
            "max_tokens": 8,
            "messages": [{"role": "user", "content": "hi"}],
        }
        assert http(f"{stack.frontend_url}/v1/chat/completions", body).status == 200


@pytest.fixture
def worker(stack: Stack) -> Worker:
    assert stack.worker is not None
    return stack.worker


def series(page: str, *, without: set[str] = frozenset()) -> dict[Series, float]:  # type: ignore[assignment]
    return {
        (s.name, frozenset((k, v) for k, v in s.labels.items() if k not in without)): s.value
        for family in parse(page)
        for s in family.samples
        if s.name.startswith("sglang:")
    }


def test_at_least_79_families_after_the_first_requests(worker: Worker) -> None:
    types = re.findall(r"^# TYPE (sglang:\S+) ", worker.page(), re.MULTILINE)
    assert len(types) >= 79
    assert len(types) == len(set(types))


def test_the_samples_are_the_engines_own(worker: Worker) -> None:
    """Families that change without a request are excluded: CPU times, and times of scrapes."""
    http(f"{worker.engine_url}/metrics")  # the first scrape creates a series of its own
    own = series(http(f"{worker.engine_url}/metrics").body.decode())
    ours = series(worker.page(), without=RUNTIME_LABELS)
    assert ours.keys() == own.keys()
    moving = re.compile(r"cpu_seconds|idle_seconds|http_re|scheduler_stage|get_loads|throughput")
    still = {key for key in own if not moving.search(key[0])}
    assert len(still) > 500
    assert {key: str(ours[key]) for key in still} == {key: str(own[key]) for key in still}


def test_every_engine_series_has_the_runtimes_labels(worker: Worker, stack: Stack) -> None:
    for family in parse(worker.page()):
        if family.name.startswith("sglang:"):
            for sample in family.samples:
                assert sample.labels.keys() >= RUNTIME_LABELS
                assert sample.labels["dynamo_namespace"] == "dynamo"
                assert sample.labels["dynamo_component"] == "backend"
                assert sample.labels["dynamo_endpoint"] == "generate"
                assert sample.labels["model"] == str(stack.model)
                assert re.fullmatch("[0-9a-f]{16}", sample.labels["worker_id"])


def test_each_family_has_help_and_type_once(worker: Worker, stack: Stack) -> None:
    for page in (worker.page(), http(f"{stack.frontend_url}/metrics").body.decode()):
        for kind in ("HELP", "TYPE"):
            names = re.findall(rf"^# {kind} (\S+) ", page, re.MULTILINE)
            assert len(names) == len(set(names)) > 10


def test_the_page_has_no_created_series(worker: Worker, stack: Stack) -> None:
    assert "_created" not in worker.page()
    assert "_created" not in http(f"{stack.frontend_url}/metrics").body.decode()


def test_promtool_finds_no_fault_in_families_of_dynamometer(worker: Worker, stack: Stack) -> None:
    for page in (worker.page(), http(f"{stack.frontend_url}/metrics").body.decode()):
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=page,
            capture_output=True,
            text=True,
            check=False,
        )
        for line in (done.stdout + done.stderr).splitlines():
            name, _, message = line.partition(" ")
            assert name.startswith("sglang:"), line
            assert message in LINT_OF_SGLANG, line


def test_openmetrics_is_sent_where_it_is_requested(worker: Worker) -> None:
    answer = http(
        f"{worker.system_url}/metrics", Accept="application/openmetrics-text;version=1.0.0"
    )
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    families = list(parse_openmetrics(answer.body.decode()))
    assert sum(family.name.startswith("sglang:") for family in families) >= 79


def test_the_worker_is_small_and_imports_no_engine(worker: Worker) -> None:
    with open(f"/proc/{worker.process.pid}/maps") as maps:
        assert "torch" not in maps.read()
    with open(f"/proc/{worker.process.pid}/status") as status:
        resident = int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1])  # type: ignore[index]
    assert resident < 120 * 1024
