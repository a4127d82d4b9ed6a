"""Only `names.py` and `sglang_names.py` spell out names, and the names are NVIDIA Dynamo's."""

from __future__ import annotations

import ast
import csv
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamometer import names
from dynamometer.engines import sglang_names
from dynamometer.errors import ArgumentError

SOURCE = Path(__file__).parent.parent / "src" / "dynamometer"
OF_NAMES = {"names.py", "sglang_names.py"}
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.name not in OF_NAMES)
OURS = re.compile(r"(sglang:|dynamo_|dynamometer_)[a-zA-Z0-9_]+")
# A member of an answer's usage that is spelled like a family, a field of a record that is spelled
# like a label, and the name of a variable.
FIELDS = {"cached_tokens", "node_rank", names.frontend_service.METRICS_PREFIX_ENV}
# Classes whose constants are names of families; the others hold labels, their values, prefixes.
FAMILIES = {
    "frontend_service",
    "frontend_perf",
    "frontend_resilience",
    "frontend_processes",
    "request_plane",
    "work_handler",
    "kvstats",
    "model_info",
    "distributed_runtime",
    "process",
    "scrape",
    "engine_state",
    "engine_load",
    "fleet",
    "build",
}


def constants(name: str) -> set[str]:
    return values(getattr(names, name))


def values(of: type) -> set[str]:
    return {value for key, value in vars(of).items() if key.isupper()}


def spelled(path: Path) -> Iterator[tuple[int, str]]:
    """Return the strings of a module except docstrings, and each part of an f-string."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, described) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            value = node.value
            if isinstance(value, str):
                yield node.lineno, value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_name_is_spelled_anywhere_else(path: Path) -> None:
    families = {name for group in FAMILIES for name in constants(group) if "_" in name}
    families |= values(sglang_names.sglang)
    families |= {name for name in constants("labels") if "_" in name}
    families -= FIELDS
    for line, text in spelled(path):
        assert not OURS.fullmatch(text), f"line {line}: {text!r} belongs into names.py"
        assert text not in families, f"line {line}: {text!r} is a constant of names.py"


def test_every_class_is_known_to_this_test() -> None:
    classes = {name for name, _ in inspect.getmembers(names, inspect.isclass)} - {"ArgumentError"}
    others = {"name_prefix", "labels", "request_type", "status", "error_type", "worker_type"}
    others |= {"failure_class", "failure_reason", "retry_reason"}
    assert classes == FAMILIES | others | {"component_error_type", "phase"}


def test_families_have_the_names_of_nvidia_dynamo() -> None:
    """Full names, joined as their classes document, are on the pages of a real NVIDIA Dynamo."""
    with (Path(__file__).parent / "samples" / "dynamo-metrics.tsv").open(encoding="utf-8") as file:
        theirs = {row["name"] for row in csv.DictReader(file, delimiter="\t")}
    prefixes = {
        "frontend_service": names.name_prefix.FRONTEND,
        "frontend_perf": names.name_prefix.FRONTEND,
        "request_plane": names.name_prefix.REQUEST_PLANE,
        "work_handler": names.name_prefix.COMPONENT,
        "kvstats": names.name_prefix.COMPONENT,
        "model_info": names.name_prefix.COMPONENT,
        "distributed_runtime": names.name_prefix.COMPONENT,
    }
    ours = {f"{prefix}_{name}" for group, prefix in prefixes.items() for name in constants(group)}
    not_theirs = {
        "dynamo_component_error_type",  # a label's name
        "dynamo_component_time_to_first_response_seconds",  # has another prefix: below
        "dynamo_component_kv_cache_hit_rate",  # has a header without series
        "dynamo_frontend_DYN_METRICS_PREFIX",
        "dynamo_frontend_model_rejection_total",  # appears when it first counts
        "dynamo_frontend_model_workers",  # of earlier releases of NVIDIA Dynamo
    }
    stages = {f"dynamo_frontend_{stage}" for stage in ("preprocess", "route", "dispatch")}
    assert ours - theirs - not_theirs == stages | {"dynamo_frontend_transport_roundtrip"}
    first_response = names.work_handler.TIME_TO_FIRST_RESPONSE_SECONDS
    assert f"{names.name_prefix.WORK_HANDLER}_{first_response}" in theirs


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("requests_total", "requests_total"),
        ("my-counter", "my_counter"),
        ("a:b", "a:b"),
        ("2fast", "_2fast"),
        (":x", "_:x"),
        ("__x", "__x"),
        ("späť", "sp__"),
    ],
)
def test_a_metric_name_is_made_valid(raw: str, clean: str) -> None:
    assert names.sanitize_prometheus_name(raw) == clean


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("model", "model"),
        ("a:b", "a_b"),
        ("1st", "_1st"),
        (":x", "_x"),
        ("_x", "_x"),
        ("__test", "test"),
        ("__label__suffix", "label__suffix"),
        ("__1st", "_1st"),
        # NVIDIA Dynamo returns __1label and __x for these, which Prometheus reserves.
        ("___1label", "_1label"),
        ("___x", "x"),
    ],
)
def test_a_label_name_is_made_valid(raw: str, clean: str) -> None:
    assert names.sanitize_prometheus_label(raw) == clean


@pytest.mark.parametrize("raw", ["", "-", "___", "€"])
def test_a_name_without_valid_characters_is_refused(raw: str) -> None:
    for sanitize in (names.sanitize_prometheus_name, names.sanitize_prometheus_label):
        with pytest.raises(ArgumentError, match="needs a letter or a digit"):
            sanitize(raw)
    assert names.sanitize_frontend_prometheus_prefix(raw) == names.name_prefix.FRONTEND


def test_a_component_metric_has_its_prefix_once() -> None:
    whole = names.build_component_metric_name("requests_total")
    assert whole == "dynamo_component_requests_total"
    assert names.build_component_metric_name(whole) == whole
    assert names.build_component_metric_name(":leading") == "dynamo_component__:leading"
