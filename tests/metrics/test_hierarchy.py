"""Metrics by level, on one page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.registry import Collector

from dynamometer.errors import ArgumentError, DynamometerError
from dynamometer.metrics import MetricsSource
from dynamometer.metrics.hierarchy import Metrics
from dynamometer.runtime import DistributedRuntime
from processes import true_in_fork


@pytest.fixture
def runtime() -> DistributedRuntime:
    return DistributedRuntime(instance_id=0xABC, deadline=0.3)


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def series(runtime: DistributedRuntime, name: str) -> dict[frozenset[tuple[str, str]], float]:
    return {
        frozenset(sample.labels.items()): sample.value
        for family in parse(runtime.metrics.render().decode())
        for sample in family.samples
        if sample.name == name
    }


def errors(runtime: DistributedRuntime, source: str, reason: str) -> float:
    key = frozenset({("source", source), ("reason", reason)})
    return series(runtime, "dynamometer_engine_scrape_errors_total")[key]


def test_series_have_the_labels_of_their_level(runtime: DistributedRuntime) -> None:
    namespace = runtime.namespace("dynamo")
    component = namespace.component("backend")
    endpoint = component.endpoint("generate")
    levels = (runtime.metrics, namespace.metrics, component.metrics, endpoint.metrics)
    for number, metrics in enumerate(levels, 1):
        metrics.create_gauge("depth", "of a level").set(number)
    of_namespace = {("dynamo_namespace", "dynamo")}
    of_component = of_namespace | {("dynamo_component", "backend")}
    assert series(runtime, "dynamo_component_depth") == {
        frozenset(): 1,
        frozenset(of_namespace): 2,
        frozenset(of_component): 3,
        frozenset(of_component | {("dynamo_endpoint", "generate")}): 4,
    }
    page = runtime.metrics.render().decode()
    assert page.count("# TYPE dynamo_component_depth gauge") == 1


def test_created_metrics_are_prometheus_clients_own(runtime: DistributedRuntime) -> None:
    metrics = runtime.namespace("n").component("c").endpoint("e").metrics
    counter = metrics.create_counter("requests", "came", ("kind",))
    gauge = metrics.create_gauge("depth", "of a queue")
    histogram = metrics.create_histogram("latency_seconds", "of one", buckets=(0.1, 1))
    assert (type(counter), type(gauge), type(histogram)) == (Counter, Gauge, Histogram)
    counter.labels("a").inc(2)
    counter.labels(kind="b").inc()
    gauge.set(7)
    histogram.observe(0.5)
    place = {("dynamo_namespace", "n"), ("dynamo_component", "c"), ("dynamo_endpoint", "e")}
    assert series(runtime, "dynamo_component_requests_total") == {
        frozenset(place | {("kind", "a")}): 2,
        frozenset(place | {("kind", "b")}): 1,
    }
    buckets = series(runtime, "dynamo_component_latency_seconds_bucket")
    assert {dict(key)["le"]: value for key, value in buckets.items()} == {
        "0.1": 0,
        "1.0": 1,
        "+Inf": 1,
    }


@pytest.mark.parametrize("name", ["requests", "requests_total", "dynamo_component_requests_total"])
def test_prefix_and_total_are_added_once(runtime: DistributedRuntime, name: str) -> None:
    runtime.metrics.create_counter(name, "came").inc()
    assert series(runtime, "dynamo_component_requests_total") == {frozenset(): 1}
    assert b"dynamo_component_requests_total_total" not in runtime.metrics.render()


def test_the_same_metric_twice_is_the_same_object(runtime: DistributedRuntime) -> None:
    def create() -> Histogram:
        metrics = runtime.namespace("n").component("c").endpoint("e").metrics
        return metrics.create_histogram(
            "x_seconds", "x", ("a",), buckets=[1, 2], const_labels={"region": "eu"}
        )

    assert create() is create()
    one = runtime.metrics.create_counter("requests", "came")
    assert runtime.metrics.create_counter("requests_total", "other words") is one


def test_other_constant_labels_are_another_series_of_the_family(
    runtime: DistributedRuntime,
) -> None:
    for number, region in enumerate(("eu", "us"), 1):
        runtime.metrics.create_counter("x", "x", const_labels={"region": region}).inc(number)
    assert series(runtime, "dynamo_component_x_total") == {
        frozenset({("region", "eu")}): 1,
        frozenset({("region", "us")}): 2,
    }


@pytest.mark.parametrize(
    ("create", "asked"),
    [
        (lambda m: m.create_gauge("requests", "came", ("kind",)), "a gauge with the labels (kind)"),
        (lambda m: m.create_gauge("requests_total", "came"), "a gauge without labels"),
        (
            lambda m: m.create_counter("requests", "came", ("model",)),
            "a counter with the labels (model)",
        ),
        (lambda m: m.create_counter("requests", "came"), "a counter without labels"),
        (
            lambda m: m.create_counter("requests", "came", ("kind",), const_labels={"a": "b"}),
            "a counter with the labels (kind, a=…)",
        ),
        (lambda m: m.create_histogram("requests", "came", buckets=(1,)), "buckets [1.0]"),
    ],
)
def test_another_shape_is_an_error_that_names_both(
    runtime: DistributedRuntime, create: Callable[[Metrics], object], asked: str
) -> None:
    runtime.namespace("n").metrics.create_counter("requests", "came", ("kind",))
    with pytest.raises(ArgumentError) as raised:
        create(runtime.metrics)
    cannot, _, known = str(raised.value).partition(": ")
    assert asked in cannot
    assert known.startswith("dynamo_component_requests is a counter with the labels (kind);")


def test_other_buckets_are_another_shape(runtime: DistributedRuntime) -> None:
    one = runtime.metrics.create_histogram("x_seconds", "x", buckets=(1, 2))
    with pytest.raises(ArgumentError, match=r"\[1.0, 3.0\].*\[1.0, 2.0\]"):
        runtime.metrics.create_histogram("x_seconds", "x", buckets=(1, 3))
    assert runtime.metrics.create_histogram("x_seconds", "x", buckets=(1, 2, float("inf"))) is one


def test_the_runtimes_own_family_cannot_be_created_again(runtime: DistributedRuntime) -> None:
    with pytest.raises(ArgumentError, match="a gauge with the labels"):
        runtime.metrics.create_counter("uptime_seconds", "mine")


@pytest.mark.parametrize("name", ["x", "x_total", "x_created"])
def test_the_name_of_an_instrument_in_the_registry_is_taken(
    runtime: DistributedRuntime, name: str
) -> None:
    """Both would be one family, which can have only one series with these labels."""
    registered = Gauge(f"dynamo_component_{name}", "mine", registry=runtime.registry)
    with pytest.raises(ArgumentError) as raised:
        runtime.namespace("n").metrics.create_counter("x", "x")
    assert "dynamo_component_x_total cannot be a counter without labels" in str(raised.value)
    assert f"gauge:dynamo_component_{name}, which is in the runtime's registry" in str(raised.value)
    runtime.registry.unregister(registered)
    runtime.metrics.create_counter("x", "x").inc()
    assert series(runtime, "dynamo_component_x_total") == {frozenset(): 1}


def test_an_instrument_registered_under_a_name_that_is_taken_is_counted(
    runtime: DistributedRuntime,
) -> None:
    """prometheus_client's registry has no levels."""
    runtime.metrics.create_counter("x", "x").inc()
    Counter("dynamo_component_x", "x", registry=runtime.registry).inc(5)
    assert errors(runtime, "runtime", "overlap") == 1
    assert series(runtime, "dynamo_component_x_total") == {frozenset(): 1}


@pytest.mark.parametrize(
    ("labelnames", "constant", "says"),
    [
        (("dynamo_namespace",), {}, "the runtime adds"),
        ((), {"dynamo_endpoint": "x"}, "the runtime adds"),
        (("a",), {"a": "b"}, "given twice"),
        (("a", "a"), {}, "given twice"),
        (("a-b",), {}, "is not a valid label name"),
        ((), {"__x": "y"}, "is not a valid label name"),
        ((), {"le": "1"}, "reserved for histograms and summaries"),
        ("kind", {}, "a list of names"),
    ],
)
def test_labels_that_are_not_allowed(
    runtime: DistributedRuntime, labelnames: tuple[str, ...], constant: dict[str, str], says: str
) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        runtime.metrics.create_counter("x", "x", labelnames, const_labels=constant)
    assert isinstance(raised.value, DynamometerError)
    assert b"component_x" not in runtime.metrics.render()


def test_an_invalid_histogram_leaves_nothing_behind(runtime: DistributedRuntime) -> None:
    nan = float("nan")
    bad: tuple[Any, ...] = (
        (2.0, 1.0),
        (1.0, 1.0),
        (),
        (nan,),
        (1.0, nan),
        "abc",
        0.5,
        (float("inf"), 1.0),
        (10**400,),
    )
    for labelnames, buckets in ((("le",), (1.0,)), *(((), buckets) for buckets in bad)):
        with pytest.raises(ArgumentError, match=r"dynamo_component_x|buckets of 'x' must be"):
            runtime.metrics.create_histogram("x", "x", labelnames, buckets=buckets)
    runtime.metrics.create_histogram("x", "x", buckets=(1.0, 2.0)).observe(1)
    assert series(runtime, "dynamo_component_x_count") == {frozenset(): 1}


@pytest.mark.parametrize("wrong", [None, 5, ["a"]])
def test_an_invalid_name_is_an_error(runtime: DistributedRuntime, wrong: str) -> None:
    with pytest.raises(ArgumentError, match="is not a valid name of a metric"):
        runtime.metrics.create_counter(wrong, "came")
    with pytest.raises(ArgumentError, match="is not a valid label name"):
        runtime.metrics.create_counter("x", "came", [wrong])
    with pytest.raises(ArgumentError, match="letters, digits"):
        runtime.namespace(wrong)
    with pytest.raises(ArgumentError, match="const_labels must map names to values"):
        runtime.metrics.create_counter("x", "came", const_labels=[("a", "b")])  # type: ignore[arg-type]


def test_odd_names_and_values_make_a_page_that_can_be_parsed(runtime: DistributedRuntime) -> None:
    runtime.metrics.create_gauge("my-depth", 'a "quoted"\nline', const_labels={"a": "x\ud800"})
    assert series(runtime, "dynamo_component_my_depth") == {frozenset({("a", "x?")}): 0}
    with pytest.raises(ArgumentError, match="letter or a digit"):
        runtime.metrics.create_gauge("-", "nothing")


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a/b"])
def test_a_level_has_a_plain_name(runtime: DistributedRuntime, name: str) -> None:
    with pytest.raises(ArgumentError, match="letters, digits"):
        runtime.namespace(name)
    with pytest.raises(ArgumentError, match="letters, digits"):
        runtime.namespace("n").component(name)
    with pytest.raises(ArgumentError, match="letters, digits"):
        runtime.namespace("n").component("c").endpoint(name)


def test_many_threads_create_and_count_the_same_metric(runtime: DistributedRuntime) -> None:
    metrics = runtime.namespace("n").metrics
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        for number in range(200):
            metrics.create_counter(f"requests_{number % 20}", "came").inc()
            if number % 50 == 0:
                runtime.metrics.render()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [series(runtime, f"dynamo_component_requests_{number}_total") for number in range(20)]
    assert [list(values.values()) for values in found] == [[80.0]] * 20


def test_a_callback_is_called_before_each_scrape(runtime: DistributedRuntime) -> None:
    gauge = runtime.metrics.create_gauge("depth", "of a queue")
    runtime.namespace("n").metrics.register_callback(gauge.inc)
    assert series(runtime, "dynamo_component_depth") == {frozenset(): 1}
    assert series(runtime, "dynamo_component_depth") == {frozenset(): 2}


def test_a_callback_that_raises_or_hangs_affects_only_itself(
    runtime: DistributedRuntime, never: threading.Event
) -> None:
    def raises() -> None:
        raise OSError("no such thing")

    def hangs() -> None:
        never.wait()

    gauge = runtime.metrics.create_gauge("depth", "of a queue")
    for function in (raises, hangs, gauge.inc):
        runtime.metrics.register_callback(function)
    assert series(runtime, "dynamo_component_depth") == {frozenset(): 1}
    source = "callback test_a_callback_that_raises_or_hangs_affects_only_itself.<locals>."
    assert errors(runtime, f"{source}raises", "failed") == 2
    assert errors(runtime, f"{source}hangs", "timeout") >= 2


@pytest.mark.parametrize("source", [5, None, "engine", object()])
def test_an_object_that_is_not_a_source_is_refused_at_once(
    runtime: DistributedRuntime, source: MetricsSource
) -> None:
    for register in (runtime.metrics.register_source, runtime.page.add):
        with pytest.raises(ArgumentError, match=re.escape(f"source={source!r} is not a Metrics")):
            register(source)


def test_two_callbacks_of_one_name_are_counted_apart(runtime: DistributedRuntime) -> None:
    def broken() -> None:
        raise OSError

    runtime.metrics.register_callback(broken)
    runtime.metrics.register_callback(broken)
    runtime.metrics.render()
    source = "callback test_two_callbacks_of_one_name_are_counted_apart.<locals>.broken"
    assert errors(runtime, source, "failed") == 2
    assert errors(runtime, f"{source} 2", "failed") == 3


def test_text_of_a_callback_is_on_the_page(runtime: DistributedRuntime) -> None:
    wrong = ["a{", "a \ud800\n", 7, 0, False, [], {}]
    texts = iter(["# TYPE a gauge\na 1\n", b"# TYPE a gauge\na 2\n", "", None, *wrong, "b 3\n"])
    runtime.metrics.register_prometheus_expfmt_callback(lambda: next(texts))  # type: ignore[arg-type,return-value]
    assert [series(runtime, "a") for _ in range(4 + len(wrong))] == [
        {frozenset(): 1},
        {frozenset(): 2},
        *[{}] * (2 + len(wrong)),
    ]
    assert series(runtime, "b") == {frozenset(): 3}
    counted = series(runtime, "dynamometer_engine_scrape_errors_total")
    (source,) = {dict(key)["source"] for key in counted} - {"runtime"}
    assert errors(runtime, source, "invalid") == len(wrong)


def test_text_that_cannot_be_parsed_affects_only_its_callback(runtime: DistributedRuntime) -> None:
    def broken() -> str:
        return "# TYPE a gauge\na 1\na{"

    def whole() -> str:
        return (
            '# TYPE b counter\nb_total{x="1"} 1\nb_created{x="1"} 1.7e9\n'
            "# HELP b_created mine\n# TYPE b_created gauge\nb_created 5\n"
            '# TYPE w histogram\nw_bucket{le="1.0"} 1\nw_bucket{le="+Inf"} 1\nw_count 1\nw_sum 1\n'
        )

    for function in (broken, whole):
        runtime.metrics.register_prometheus_expfmt_callback(function)
    assert series(runtime, "b_total") == {frozenset({("x", "1")}): 1}
    assert series(runtime, "b_created") == {frozenset(): 5}
    assert series(runtime, "a") == {}
    names = {family.name for family in parse_openmetrics(runtime.metrics.render(True).decode())}
    assert {"b_total", "b_created", "w", "dynamometer_engine_scrape_errors"} <= names
    source = "callback test_text_that_cannot_be_parsed_affects_only_its_callback.<locals>."
    assert errors(runtime, f"{source}broken", "invalid") == 5
    assert errors(runtime, f"{source}whole", "invalid") == 0


def test_two_families_of_a_text_with_one_name_are_the_first_and_a_count(
    runtime: DistributedRuntime,
) -> None:
    def function() -> str:
        return "# TYPE a_sum gauge\na_sum 2\n# TYPE a summary\na_count 1\n# TYPE b gauge\nb 3\n"

    runtime.metrics.register_prometheus_expfmt_callback(function)
    assert series(runtime, "a_sum") == {frozenset(): 2}
    assert series(runtime, "a_count") == {}
    assert series(runtime, "b") == {frozenset(): 3}
    where = "test_two_families_of_a_text_with_one_name_are_the_first_and_a_count.<locals>."
    assert errors(runtime, f"callback {where}function", "type_conflict") == 4


def test_a_counter_of_a_text_keeps_its_name(runtime: DistributedRuntime) -> None:
    text = "# TYPE a counter\na 1\n# TYPE a_total gauge\na_total 2\n"
    runtime.metrics.register_prometheus_expfmt_callback(lambda: text)
    assert b"# TYPE a counter\na 1\n" in runtime.metrics.render()
    assert series(runtime, "a_total") == {frozenset(): 2}


async def coroutine() -> None:
    pass


@pytest.mark.parametrize("function", [None, "name", coroutine])
def test_a_callback_must_be_callable(
    runtime: DistributedRuntime, function: Callable[[], None]
) -> None:
    with pytest.raises(ArgumentError, match=r"cannot be called|coroutine function"):
        runtime.metrics.register_callback(function)
    with pytest.raises(ArgumentError, match=r"cannot be called|coroutine function"):
        runtime.metrics.register_prometheus_expfmt_callback(function)


def test_render_gives_both_formats(runtime: DistributedRuntime) -> None:
    runtime.metrics.create_counter("x", "x").inc()
    assert b"# TYPE dynamo_component_x_total counter" in runtime.metrics.render()
    page = runtime.metrics.render(openmetrics=True)
    assert b"# TYPE dynamo_component_x counter" in page
    assert page.endswith(b"# EOF\n")


def test_an_instrument_that_fails_affects_only_itself(runtime: DistributedRuntime) -> None:
    """A function raises, unpaired surrogates make two series one, or a collector raises."""

    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise OSError("no such thing")

    runtime.metrics.create_gauge("broken", "b").set_function(lambda: 1 / 0)
    odd = runtime.metrics.create_counter("odd", "o", ("path",))
    for path in ("caf\udce9", "caf\udce8"):
        odd.labels(path).inc()
    runtime.registry.register(Broken())
    runtime.metrics.create_gauge("fine", "f").set(3)
    assert series(runtime, "dynamo_component_fine") == {frozenset(): 3}
    assert series(runtime, "dynamo_component_broken") == {}
    assert errors(runtime, "runtime", "failed") == 2 * 3
    assert errors(runtime, "runtime", "invalid") == 4


def test_an_unpaired_surrogate_in_a_label_becomes_a_question_mark(
    runtime: DistributedRuntime,
) -> None:
    counter = runtime.metrics.create_counter("odd", "o", ("path",))
    counter.labels("caf\udce9").inc()
    counter.labels("tea").inc(2)
    Gauge("odd_too", "o", ("path",), registry=runtime.registry).labels("\ud800").set(3)
    assert series(runtime, "dynamo_component_odd_total") == {
        frozenset({("path", "caf?")}): 1,
        frozenset({("path", "tea")}): 2,
    }
    assert series(runtime, "odd_too") == {frozenset({("path", "?")}): 3}
    assert errors(runtime, "runtime", "invalid") == 0


def test_an_attribute_errors_of_a_registered_collector_is_ignored(
    runtime: DistributedRuntime,
) -> None:
    class Own(Collector):
        errors = ("boom",)

        def collect(self) -> Iterator[Metric]:
            yield from parse("own 1\n")

    runtime.registry.register(Own())
    runtime.metrics.render()
    assert series(runtime, "own") == {frozenset(): 1}
    counted = series(runtime, "dynamometer_engine_scrape_errors_total")
    assert set(counted.values()) == {0}
    assert not [key for key in counted if ("reason", "boom") in key]


@pytest.mark.parametrize("documentation", [None, 5])
def test_a_documentation_must_be_a_string(runtime: DistributedRuntime, documentation: str) -> None:
    with pytest.raises(ArgumentError, match="the documentation must be a string"):
        runtime.metrics.create_gauge("x", documentation)
    runtime.metrics.create_gauge("x", "half a \ud800").set(1)
    assert series(runtime, "dynamo_component_x") == {frozenset(): 1}


def test_a_callback_may_render_the_page_as_it_last_was(runtime: DistributedRuntime) -> None:
    seen: list[bytes] = []
    runtime.metrics.create_gauge("fine", "f").set(3)
    runtime.metrics.register_callback(lambda: seen.append(runtime.metrics.render()))
    runtime.metrics.render()
    page = runtime.metrics.render()
    assert b"dynamo_component_fine 3.0" in seen[1]
    assert b'reason="timeout"' in page
    assert not re.search(rb'reason="timeout".* [1-9]', page)


def test_a_callback_that_returns_a_coroutine_is_an_error(runtime: DistributedRuntime) -> None:
    runtime.metrics.register_callback(lambda: coroutine())
    runtime.metrics.render()
    source = "callback test_a_callback_that_returns_a_coroutine_is_an_error.<locals>.<lambda>"
    assert errors(runtime, source, "failed") == 2


def test_a_child_of_fork_renders_its_own_page(runtime: DistributedRuntime) -> None:
    runtime.metrics.create_gauge("fine", "f").set(3)
    runtime.metrics.render()

    def child() -> bool:
        return b"dynamo_component_fine 3.0" in runtime.metrics.render()

    assert true_in_fork(child, within=10)


def test_values_in_files_are_refused() -> None:
    """prometheus_client's files have no levels, so that levels would share the values."""
    script = "from dynamometer.runtime import DistributedRuntime; DistributedRuntime()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SettingsError: PROMETHEUS_MULTIPROC_DIR was set" in done.stderr


def test_a_users_own_registries_keep_their_created_series(runtime: DistributedRuntime) -> None:
    own = CollectorRegistry()
    Counter("mine", "m", registry=own)
    assert "mine_created" in {s.name for family in own.collect() for s in family.samples}
    runtime.metrics.create_counter("x", "x").inc()
    assert b"_created" not in runtime.metrics.render()
