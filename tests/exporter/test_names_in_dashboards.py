"""The names of SGLang that a real Prometheus stores, and the documented rules for older names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from email.message import Message
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from conftest import ROOT
from dynamometer.exposition import choose_format
from dynamometer.multiprocess import MultiprocessDirectory
from page_server import Page, serving
from prometheus import needs_prometheus, running_prometheus
from stack import eventually

pytestmark = needs_prometheus

FILES = ROOT / "tests/samples/sglang-0.5.23/multiproc"
PAGE = (ROOT / "docs/two-minutes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:yaml|yml)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
JOBS = re.findall(r"job_name: ([\w-]+)", "".join(BLOCKS))


def page_of(path: str, headers: Message) -> Page:
    """The exporter's page at `/ours/metrics`, and the page of SGLang's own server."""
    accept = headers.get("Accept", "")
    if path.startswith("/ours/"):
        found = choose_format(accept)
        with MultiprocessDirectory(FILES) as directory:
            return found.content_type, directory.render(openmetrics=found.openmetrics)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(FILES))
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(registry)


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with serving(page_of) as address:
        yield address


@pytest.fixture(scope="module")
def stored(target: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, set[str]]:
    """The names that Prometheus stores, by job: the documented ones, and SGLang's page as it is."""
    place = tmp_path_factory.mktemp("prometheus")
    (interval, _, jobs), *others = [block.partition("scrape_configs:\n") for block in BLOCKS]
    text = f"{interval}scrape_configs:\n{jobs}" + "".join(other for _, _, other in others)
    text = text.replace("scrape_interval: 5s", "scrape_interval: 1s")
    text = text.replace('targets: ["localhost:8081"]}]', f'targets: ["{target}"]}}]', 2)
    text = re.sub(r"(job_name: (?:dynamometer|sglang-underscores))(,|\n)", _at_our_page, text)
    text = text.replace("localhost:30000", target)
    text += f'  - {{job_name: as-it-is, static_configs: [{{targets: ["{target}"]}}]}}\n'
    with running_prometheus(text, place) as server:

        def all_scraped() -> bool:
            return len(server.query("scrape_samples_scraped > 0")) == len(JOBS) + 1

        eventually(all_scraped, within=30, what="all scraped")
        found: dict[str, set[str]] = {}
        for one in server.query('{__name__=~"sglang.*"}'):
            found.setdefault(one["metric"]["job"], set()).add(one["metric"]["__name__"])
        return found


def _at_our_page(match: re.Match[str]) -> str:
    separator = ", " if match[2] == "," else "\n    "
    return f"{match[1]}{separator}metrics_path: /ours/metrics{match[2]}"


def test_our_names_have_colons_and_sglangs_own_page_underscores(
    stored: Mapping[str, set[str]],
) -> None:
    assert "sglang:num_running_reqs" in stored["dynamometer"]
    assert "sglang_num_running_reqs" in stored["as-it-is"]
    assert all(name.startswith("sglang:") for name in stored["dynamometer"])
    assert all(name.startswith("sglang_") for name in stored["as-it-is"])


def test_the_documented_jobs_have_the_names_of_the_other_kind(
    stored: Mapping[str, set[str]],
) -> None:
    assert stored["sglang-underscores"] == stored["as-it-is"]
    assert stored["sglang-own-page"] == stored["dynamometer"]
    assert len(stored["dynamometer"]) > 20


def test_promtool_takes_the_documented_jobs(tmp_path: Path) -> None:
    for number, block in enumerate(BLOCKS):
        path = tmp_path / f"{number}.yml"
        path.write_text(block)
        subprocess.run(["promtool", "check", "config", path], check=True, capture_output=True)
