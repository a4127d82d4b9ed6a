"""`register_engine_metrics_callback` and `get_prometheus_expfmt`, as in NVIDIA Dynamo."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar
from unittest.mock import MagicMock

import pytest
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    Summary,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.errors import ArgumentError
from dynamometer.exposition.families import Family
from dynamometer.metrics import get_prometheus_expfmt, register_engine_metrics_callback
from dynamometer.multiprocess import MultiProcessCollector, MultiprocessDirectory
from dynamometer.runtime import DistributedRuntime, Endpoint
from parsing import parse as parse_families

SAMPLE = Path(__file__).parent.parent / "samples" / "sglang-0.5.23" / "multiproc"


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("sglang:requests", "of SGLang", ("model",), registry=made).labels("own").inc(2)
    Histogram("sglang:latency_seconds", "of SGLang", buckets=(1,), registry=made).observe(0.5)
    Gauge("lmcache:usage", "of LMCache", registry=made).set(0.25)
    Gauge("python_gc", "of Python", registry=made).set(1)
    return made


@pytest.fixture
def endpoint() -> Endpoint:
    runtime = DistributedRuntime(instance_id=0xABC)
    return runtime.namespace("dynamo").component("backend").endpoint("generate")


def samples(text: str) -> dict[str, dict[str, str]]:
    return {
        sample.name: {name: value for name, value in sample.labels.items() if name != "le"}
        for family in parse(text)
        for sample in family.samples
        if sample.name.startswith(("sglang:", "lmcache:", "python_", "trtllm"))
        and not sample.name.endswith("_created")
    }


def page(endpoint: Endpoint) -> str:
    return endpoint.metrics.render().decode()


def test_without_arguments_the_whole_registry_is_on_the_page(
    endpoint: Endpoint, registry: CollectorRegistry
) -> None:
    register_engine_metrics_callback(endpoint, registry)
    assert samples(page(endpoint)) == samples(generate_latest(registry).decode())


def test_several_prefixes_and_exclusion_first(
    endpoint: Endpoint, registry: CollectorRegistry
) -> None:
    register_engine_metrics_callback(
        endpoint, registry, ["sglang:", "lmcache:"], exclude_prefixes=["sglang:lat", "python_"]
    )
    assert samples(page(endpoint)).keys() == {"sglang:requests_total", "lmcache:usage"}


def test_a_histogram_is_never_split(endpoint: Endpoint, registry: CollectorRegistry) -> None:
    register_engine_metrics_callback(endpoint, registry, "sglang:latency_seconds")
    text = page(endpoint)
    lines = text[text.index("# HELP sglang:latency_seconds") :].splitlines()
    assert lines[:6] == [
        "# HELP sglang:latency_seconds of SGLang",
        "# TYPE sglang:latency_seconds histogram",
        'sglang:latency_seconds_bucket{le="1.0"} 1.0',
        'sglang:latency_seconds_bucket{le="+Inf"} 1.0',
        "sglang:latency_seconds_count 1.0",
        "sglang:latency_seconds_sum 0.5",
    ]


def test_injected_labels_never_override(
    endpoint: Endpoint, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The series' own label wins, then the runtime's, then the user's."""
    with caplog.at_level(logging.WARNING):
        register_engine_metrics_callback(
            endpoint,
            registry,
            ["sglang:req", "lmcache:"],
            inject_custom_labels={"lora": "a", "dynamo_namespace": "mine"},
            namespace_name="prod",
            component_name="worker",
            model_name="tiny",
        )
    runtimes = {
        "dynamo_namespace": "prod",
        "dynamo_component": "worker",
        "dynamo_endpoint": "generate",
        "worker_id": "0000000000000abc",
        "model_name": "tiny",
        "lora": "a",
    }
    assert samples(page(endpoint)) == {
        "sglang:requests_total": runtimes | {"model": "own"},
        "lmcache:usage": runtimes | {"model": "tiny"},
    }
    assert "sets the label dynamo_namespace to 'prod': 'mine'" in caplog.text


@pytest.fixture
def utf8_registry() -> CollectorRegistry:
    """Create a registry whose names have a dot, which is not in the legacy character set."""
    registry = CollectorRegistry()
    Counter("http.requests", "r", registry=registry).inc()
    Histogram("http.lat", "l", buckets=(1,), registry=registry).observe(1)
    Summary("http.size", "s", registry=registry).observe(1)
    return registry


def families_of(text: str) -> dict[str, set[str]]:
    """Return the names of the families of a text page with the names of their samples."""
    return {
        family.metadata.text_name: set(family.sample_names)
        for family in parse_families(text.encode())
    }


def test_utf8_names_have_no_created_series(
    endpoint: Endpoint, utf8_registry: CollectorRegistry
) -> None:
    register_engine_metrics_callback(endpoint, utf8_registry, [""])
    for text in (get_prometheus_expfmt(utf8_registry, [""]), page(endpoint)):
        assert "http_requests_total" in text
        assert "_created" not in text


@pytest.mark.parametrize("prefix", ["http.", "http_", "http"])
def test_a_prefix_selects_utf8_names_in_either_spelling(
    utf8_registry: CollectorRegistry, prefix: str
) -> None:
    whole = get_prometheus_expfmt(utf8_registry)
    assert get_prometheus_expfmt(utf8_registry, [prefix]) == whole
    assert get_prometheus_expfmt(utf8_registry, exclude_prefixes=[prefix]) == ""


@pytest.mark.parametrize("prefix", ["http.", "http_"])
def test_a_prefix_replaces_the_filter_of_utf8_names(
    utf8_registry: CollectorRegistry, prefix: str
) -> None:
    text = get_prometheus_expfmt(utf8_registry, [prefix], add_prefix="z_")
    assert families_of(text) == {
        "z_requests_total": {"z_requests_total"},
        "z_lat": {"z_lat_bucket", "z_lat_count", "z_lat_sum"},
        "z_size": {"z_size_count", "z_size_sum"},
    }


def test_a_utf8_name_clashes_with_its_spelling_on_the_page(
    utf8_registry: CollectorRegistry,
) -> None:
    runtime = DistributedRuntime()
    endpoint = runtime.namespace("n").component("c").endpoint("e")
    register_engine_metrics_callback(endpoint, utf8_registry, ["http."])
    Gauge("http_lat", "g", registry=runtime.registry).set(3)
    text = page(endpoint)
    assert text.count("# TYPE http_lat ") == 1
    assert 'scrape_errors_total{reason="type_conflict",source="http"} 1.0' in text


def test_without_names_the_runtime_adds_no_labels(
    endpoint: Endpoint, registry: CollectorRegistry
) -> None:
    register_engine_metrics_callback(endpoint, registry, "lmcache:", model_name="tiny")
    assert samples(page(endpoint)) == {"lmcache:usage": {}}


def test_a_prefix_is_added_once_in_place_of_the_filters(
    endpoint: Endpoint, registry: CollectorRegistry
) -> None:
    Gauge("trtllm:up", "has it already", registry=registry)
    register_engine_metrics_callback(
        endpoint, registry, ["sglang:", "trtllm:"], add_prefix="trtllm:"
    )
    names = {"trtllm:requests_total", "trtllm:up", "trtllm:latency_seconds_bucket"}
    names |= {"trtllm:latency_seconds_count", "trtllm:latency_seconds_sum"}
    assert samples(page(endpoint)).keys() == names
    assert "# TYPE trtllm:requests_total counter" in page(endpoint)
    assert samples(get_prometheus_expfmt(registry, "python_", add_prefix="trtllm_")).keys() == {
        "trtllm_gc"
    }


@pytest.fixture
def twins() -> CollectorRegistry:
    """Two families that get the same name when a prefix replaces theirs."""
    registry = CollectorRegistry()
    for name in ("vllm:b", "lm:b"):
        Gauge(name, "of one", registry=registry).set(1)
    return registry


def test_a_prefix_that_makes_one_family_of_two_is_an_error_that_names_both(
    twins: CollectorRegistry,
) -> None:
    for _ in range(2):
        with pytest.raises(
            ArgumentError, match=r"gives (lm:b and vllm:b|vllm:b and lm:b) the same name x_b"
        ):
            get_prometheus_expfmt(twins, ["vllm:", "lm:"], add_prefix="x_")
    Counter("lm:c", "its text has the name", registry=twins)
    Gauge("vllm:c_total", "that this one has", registry=twins)
    with pytest.raises(ArgumentError, match="the same name x_c_total"):
        get_prometheus_expfmt(twins, ["vllm:", "lm:"], ["lm:b"], add_prefix="x_")
    assert "x_b 1.0" in get_prometheus_expfmt(twins, "vllm:", ["vllm:c"], add_prefix="x_")


class Several:
    """Several registries as one: prometheus_client refuses names that clash in OpenMetrics."""

    def __init__(self, *registries: CollectorRegistry) -> None:
        self.registries = registries

    def collect(self) -> Iterable[Metric]:
        return [metric for registry in self.registries for metric in registry.collect()]


def test_names_that_clash_without_the_prefix_too_are_not_its_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    Gauge("go_alloc_bytes", "now", registry=one).set(1)
    Counter("go_alloc_bytes", "ever; both are on a text page", registry=other).inc(2)
    Counter("jobs", "its text has the name", registry=one).inc(3)
    Gauge("jobs_total", "that this one has", registry=other).set(4)
    for _ in range(2):
        text = get_prometheus_expfmt(Several(one, other), add_prefix="app_")
        values = {sample.name: sample.value for family in parse(text) for sample in family.samples}
        assert values["app_go_alloc_bytes"] == 1
        assert values["app_go_alloc_bytes_total"] == 2
        assert values["app_jobs_total"] == 3
    assert [record.getMessage() for record in caplog.records] == [
        "app_jobs_total is omitted from the text (type_conflict): another family has the name"
    ]


def test_a_prefix_omits_one_family_from_the_text_of_a_dynamo_endpoint(
    twins: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = DynamosEndpoint()
    Gauge("vllm:c", "of one", registry=twins).set(2)
    register_engine_metrics_callback(endpoint, twins, ["vllm:", "lm:"], add_prefix="x_")
    for _ in range(2):
        text = endpoint.callbacks[0]()
        assert text.count("\nx_b 1.0") == 1
        assert "x_c 2.0" in text
    assert caplog.text.count("x_b is omitted from the text (overlap)") == 1


def test_a_family_that_a_prefix_hides_is_counted(
    endpoint: Endpoint, twins: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    register_engine_metrics_callback(endpoint, twins, ["vllm:", "lm:"], add_prefix="x_")
    text = page(endpoint)
    assert text.count("x_b 1.0") == 1
    assert 'reason="overlap",source="vllm"} 1.0' in text
    assert "x_b of vllm is not on the page (overlap)" in caplog.text


@pytest.mark.parametrize("prefix", ["x y", "é", "5x", 5, ["x"], b"x"])
def test_an_invalid_prefix_is_refused_at_once(
    endpoint: Endpoint, registry: CollectorRegistry, prefix: str
) -> None:
    with pytest.raises(ArgumentError, match="cannot begin a metric's name"):
        register_engine_metrics_callback(endpoint, registry, add_prefix=prefix)
    with pytest.raises(ArgumentError, match="cannot begin a metric's name"):
        get_prometheus_expfmt(registry, add_prefix=prefix)


@pytest.mark.parametrize("labels", [[("a", "b")], "a", 5])
def test_labels_that_are_not_a_mapping_are_refused_at_once(
    endpoint: Endpoint, registry: CollectorRegistry, labels: dict[str, str]
) -> None:
    with pytest.raises(ArgumentError, match="must be a mapping"):
        register_engine_metrics_callback(endpoint, registry, inject_custom_labels=labels)
    with pytest.raises(ArgumentError, match="must be a mapping"):
        get_prometheus_expfmt(registry, inject_custom_labels=labels)


@pytest.mark.parametrize("prefixes", [5, [5], b"vllm:"])
def test_prefixes_that_are_not_strings_are_refused_at_once(
    endpoint: Endpoint, registry: CollectorRegistry, prefixes: list[str]
) -> None:
    for filters in ({"metric_prefix_filters": prefixes}, {"exclude_prefixes": prefixes}):
        with pytest.raises(ArgumentError, match="a string or a list of strings"):
            register_engine_metrics_callback(endpoint, registry, **filters)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="a string or a list of strings"):
            get_prometheus_expfmt(registry, **filters)  # type: ignore[arg-type]


def test_families_of_this_process_in_two_sources_are_not_an_error(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """prometheus_client's default registry and the runtime both have the `process_*` families."""
    for _ in range(2):
        register_engine_metrics_callback(endpoint, REGISTRY)
    page(endpoint)
    text = page(endpoint)
    assert text.count("\nprocess_resident_memory_bytes ") == 1
    assert text.count("\npython_info{") == 1
    assert "overlap" not in text + caplog.text


def test_another_process_families_in_the_place_of_this_ones_are_counted(
    endpoint: Endpoint,
) -> None:
    class Other:
        name = owner = "other"
        errors: ClassVar[dict[str, int]] = {}
        shown = parse_families(b"# TYPE process_open_fds gauge\nprocess_open_fds 7\n")

        def families(self) -> Sequence[Family]:
            return self.shown

    endpoint.metrics.register_source(Other())
    assert 'reason="overlap",source="other"} 1.0' in page(endpoint)


@pytest.mark.parametrize("label", ["le", "quantile", "a-b", "__x", ""])
def test_a_label_that_cannot_be_injected_is_refused_at_once(
    endpoint: Endpoint, registry: CollectorRegistry, label: str
) -> None:
    with pytest.raises(ValueError, match="label") as raised:
        register_engine_metrics_callback(endpoint, registry, inject_custom_labels={label: "x"})
    assert isinstance(raised.value, ArgumentError)
    with pytest.raises(ArgumentError):
        get_prometheus_expfmt(registry, inject_custom_labels={label: "x"})


def test_two_registries_of_one_name_are_two_sources(endpoint: Endpoint) -> None:
    """The second source loses the series that the first one has, which is counted."""
    for value in (1, 2):
        registry = CollectorRegistry()
        Gauge("vllm:running", "of vLLM", registry=registry).set(value)
        register_engine_metrics_callback(endpoint, registry, ["vllm:"])
    text = page(endpoint)
    assert "vllm:running 1.0" in text
    assert 'dynamometer_engine_scrape_errors_total{reason="overlap",source="vllm 2"} 1.0' in text
    assert 'reason="overlap",source="vllm 2"} 2.0' in page(endpoint)


@pytest.mark.parametrize("registry", [None, "registry"])
def test_an_object_without_collect_is_refused_at_once(endpoint: Endpoint, registry: Broken) -> None:
    with pytest.raises(ArgumentError, match="is not a registry"):
        register_engine_metrics_callback(endpoint, registry)


class Broken:
    def collect(self) -> Iterable[Metric]:
        raise OSError("no such directory")


def test_an_error_is_raised_to_the_page_which_counts_it(endpoint: Endpoint) -> None:
    endpoint.metrics.create_counter("own", "ours").inc()
    register_engine_metrics_callback(endpoint, Broken(), "sglang:")
    page(endpoint)
    text = page(endpoint)
    count = 'dynamometer_engine_scrape_errors_total{reason="failed",source="sglang"} '
    assert f"{count}2.0" in text
    assert "dynamo_component_own_total{" in text
    with pytest.raises(OSError, match="no such directory"):
        get_prometheus_expfmt(Broken(), "sglang:")


class DynamosEndpoint:
    """The part of an NVIDIA Dynamo endpoint that the function uses: text callbacks."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], str]] = []

    @property
    def metrics(self) -> DynamosEndpoint:
        return self

    def register_prometheus_expfmt_callback(self, function: Callable[[], str], /) -> None:
        self.callbacks.append(function)

    def connection_id(self) -> int:
        return 0xC6554D44C8D12F4C


def test_an_endpoint_with_text_callbacks_gets_the_text(registry: CollectorRegistry) -> None:
    endpoint = DynamosEndpoint()
    register_engine_metrics_callback(
        endpoint, registry, ["lmcache:"], namespace_name="dynamo", component_name="backend"
    )
    (callback,) = endpoint.callbacks
    text = callback()
    assert isinstance(text, str)
    assert samples(text)["lmcache:usage"]["worker_id"] == "c6554d44c8d12f4c"


def test_a_doubled_endpoint_of_dynamos_own_tests_gets_the_text(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A mock has every attribute; only this package's metrics take families directly."""
    endpoint = MagicMock()
    register_engine_metrics_callback(
        endpoint, registry, ["lmcache:"], namespace_name="dynamo", component_name="backend"
    )
    endpoint.metrics.register_prometheus_expfmt_callback.assert_called_once()
    callback = endpoint.metrics.register_prometheus_expfmt_callback.call_args[0][0]
    labels = {"dynamo_namespace": "dynamo", "dynamo_component": "backend"}
    labels |= {"dynamo_endpoint": "generate"}
    assert samples(callback()) == {"lmcache:usage": labels}
    assert "the label worker_id is omitted" in caplog.text


@pytest.mark.parametrize("connection_id", [None, lambda: 1 / 0, lambda: "abc"])
def test_an_endpoint_without_a_number_omits_one_label(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, connection_id: object
) -> None:
    endpoint = DynamosEndpoint()
    endpoint.connection_id = connection_id  # type: ignore[assignment, method-assign]
    register_engine_metrics_callback(
        endpoint, registry, "lmcache:", namespace_name="n", component_name="c", model_name="m"
    )
    (labels,) = samples(endpoint.callbacks[0]()).values()
    assert labels.keys() == {
        "dynamo_namespace", "dynamo_component", "dynamo_endpoint", "model", "model_name"
    }  # fmt: skip
    assert "the label worker_id is omitted" in caplog.text


def test_simultaneous_calls_of_a_text_callback_return_the_same_text(
    registry: CollectorRegistry,
) -> None:
    endpoint = DynamosEndpoint()
    register_engine_metrics_callback(endpoint, registry, inject_custom_labels={"a": "b"})
    (callback,) = endpoint.callbacks
    with ThreadPoolExecutor(8) as pool:
        texts = set(pool.map(lambda _: callback(), range(200)))
    assert len(texts) == 1


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLE, tmp_path / "multiproc"))


def test_our_collector_and_theirs_give_the_same_text(files: Path) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    MultiProcessCollector(ours, str(files))
    TheirCollector(theirs, str(files))
    for prefixes in (None, ["sglang:num_"]):
        texts = [get_prometheus_expfmt(registry, prefixes) for registry in (ours, theirs)]
        assert sorted(texts[0].splitlines()) == sorted(texts[1].splitlines())
        assert texts[0].endswith("\n")


def test_unchanged_families_are_not_rendered_again(endpoint: Endpoint, files: Path) -> None:
    """The families of the reader reach the page as the same objects."""
    directory = MultiprocessDirectory(files)
    register_engine_metrics_callback(endpoint, directory, "sglang:")
    first = page(endpoint)
    assert first.count("# TYPE sglang:") > 50
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(files))
    labels = {"lora": "a"}
    one = get_prometheus_expfmt(registry, "sglang:", inject_custom_labels=labels)
    again = CollectorRegistry()  # created for each scrape, as in prometheus_client's docs
    MultiProcessCollector(again, str(files))
    assert get_prometheus_expfmt(again, "sglang:", inject_custom_labels=labels) == one
    assert all('lora="a"' in line for line in one.splitlines() if not line.startswith("#"))


@pytest.mark.parametrize(
    "reader", [MultiprocessDirectory, lambda path: MultiProcessCollector(None, str(path))]
)
def test_a_bad_file_is_counted_for_the_engine(
    endpoint: Endpoint, files: Path, reader: Callable[[Path], MultiprocessDirectory]
) -> None:
    (files / "counter_1.db").write_bytes(b"\xff" * 100)
    register_engine_metrics_callback(endpoint, reader(files), "sglang:")
    page(endpoint)
    text = page(endpoint)
    assert 'source="sglang"} 0.0' in text
    counted = [
        line for line in text.splitlines() if line.startswith("dynamometer_engine_scrape_errors")
    ]
    assert any(not line.endswith(" 0.0") for line in counted)


class Own:
    """A user's collector with an attribute `errors` of another meaning."""

    def __init__(self, errors: object) -> None:
        self.errors = errors

    def collect(self) -> Iterable[Metric]:
        yield from parse("own 1\n")


@pytest.mark.parametrize("own", [{"x": None}, ["boom"], 5, print, {"x": 3}, None])
def test_an_attribute_errors_of_a_users_collector_is_ignored(
    endpoint: Endpoint, own: object
) -> None:
    register_engine_metrics_callback(endpoint, Own(own))
    page(endpoint)
    text = page(endpoint)
    assert "\nown 1.0\n" in text
    counted = [line for line in text.splitlines() if line.startswith("dynamometer_engine_scrape")]
    assert {line.rpartition(" ")[2] for line in counted} == {"0.0"}


def test_families_that_cannot_be_written_are_counted_for_their_registry(
    endpoint: Endpoint,
) -> None:
    registry = CollectorRegistry()
    Gauge("vllm:odd", "half a \ud800", registry=registry)
    register_engine_metrics_callback(endpoint, registry, "vllm:")
    assert 'reason="invalid",source="vllm"} 1.0' in page(endpoint)
