"""A scanner's requests make thousands of series in an engine; an exporter's page stays small."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.engines.kinds import DEFAULT
from exporting import Page, exporter
from stack import eventually

VALUES, KEPT = 17_700, 20
REQUESTS, RESPONSES = "sglang:http_requests_total", "sglang:http_responses_total"
ACTIVE = "sglang:http_requests_active"
VALUE = {REQUESTS: 2.0, RESPONSES: 1.0, ACTIVE: 1.0}


def write(path: Path, entries: list[tuple[object, float]]) -> None:
    texts = [(json.dumps(key).encode(), value) for key, value in entries]
    parts = [
        struct.pack("=i", len(text))
        + text
        + b" " * (8 - (len(text) + 4) % 8)
        + struct.pack("=dd", value, 0)
        for text, value in texts
    ]
    content = b"".join(parts)
    path.write_bytes(struct.pack("=ii", 8 + len(content), 0) + content)


def write_file(directory: Path) -> None:
    entries: list[tuple[object, float]] = []
    for number in range(VALUES):
        labels = {"endpoint": f"/.git/{number}", "method": "GET"}
        entries.append((["sglang:http_requests", REQUESTS, labels, "Requests."], 2.0))
        labels = labels | {"status_code": "404"}
        entries.append((["sglang:http_responses", RESPONSES, labels, "Responses."], 1.0))
    write(directory / "counter_1.db", entries)


def text_page() -> str:
    text = ""
    for name, kind in ((ACTIVE, "gauge"), (REQUESTS, "counter")):
        text += f"# TYPE {name} {kind}\n"
        text += "".join(
            f'{name}{{endpoint="/.git/{number}",method="GET"}} {VALUE[name]}\n'
            for number in range(VALUES)
        )
    return text


def by_endpoint(page: str, name: str) -> dict[str, float]:
    return {
        sample.labels["endpoint"]: sample.value
        for family in parse(page)
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.parametrize("source", ["files", "page"])
def test_17700_values_are_a_few_series_with_the_same_sum(tmp_path: Path, source: str) -> None:
    server = Page(0, text_page(), paths=("/metrics", DEFAULT.probe_path))
    flags = ["--engine-url", f"http://127.0.0.1:{server.server_address[1]}"]
    if source == "files":
        (tmp_path / "files").mkdir()
        write_file(tmp_path / "files")
        flags = ["--multiproc-dir", str(tmp_path / "files")]
    try:
        with exporter(tmp_path, *flags, "--max-label-values", str(KEPT)) as found:
            eventually(lambda: by_endpoint(found.page(), REQUESTS), within=30, what=f"{found.log}")
            page = found.page()
    finally:
        server.end()
    assert len(page) < 40_000
    for name in (REQUESTS, RESPONSES) if source == "files" else (REQUESTS, ACTIVE):
        kept = {f"/.git/{number}": VALUE[name] for number in range(KEPT)}
        expected = kept | {"other": VALUE[name] * (VALUES - KEPT)}
        assert by_endpoint(page, name) == expected


def test_a_page_that_is_too_large_has_its_smallest_families(tmp_path: Path) -> None:
    server = Page(0, text_page() + "sglang:small 5\n", paths=("/metrics", DEFAULT.probe_path))
    flags = ["--engine-url", f"http://127.0.0.1:{server.server_address[1]}"]
    limits = ["--max-label-values", "100000", "--max-page-bytes", "100000"]
    try:
        with exporter(tmp_path, *flags, *limits) as found:
            eventually(lambda: "sglang:small" in found.page(), within=30, what=f"{found.log}")
            page = found.page()
            assert "sglang:http_requests_active of " in found.log
    finally:
        server.end()
    assert len(page) <= 100_000
    assert "sglang:http" not in page
    assert 'reason="page_bytes"' in page
