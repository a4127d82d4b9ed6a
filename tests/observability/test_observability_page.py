"""The commands of docs/observability.md and docs/troubleshooting.md, with a real Prometheus.

A frontend, a worker with a simulated engine and `dyno observe` run. Commands run as they stand in
the pages, except for ports, the number of a process, and a host name.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from observing import DYNO, frontend, observing, prometheus_of, worker

from conftest import ROOT
from prometheus import needs_prometheus
from stack import eventually, http

pytestmark = needs_prometheus

OBSERVABILITY, TROUBLESHOOTING = (
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("observability.md", "troubleshooting.md")
)


def blocks(page: str, language: str) -> Sequence[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def lines(page: str) -> Sequence[str]:
    return [line for block in blocks(page, "sh") for line in block.splitlines()]


WRITE, *COMMANDS = lines(OBSERVABILITY)
# Each question to Prometheus has its answer in the next block.
EXAMPLES = re.findall(
    r"^```sh\n(curl [^\n]*/api/v1/[^\n]*)\n```\n\n```json\n(.*?)^```$",
    OBSERVABILITY,
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Running:
    """A frontend, a worker and a Prometheus, and a directory for commands.

    Attributes:
        ports: the port of each process, by its default port.
    """

    directory: Path
    ports: Mapping[str, str]

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a command of a page."""
        for default, port in self.ports.items():
            text = re.sub(rf"\b{default}\b", port, text)
        text = text.replace("/proc/PID/", "/proc/self/")
        dyno = f'dyno() {{ {" ".join(DYNO)} "$@"; }}\npython3() {{ {DYNO[0]} "$@"; }}\n'
        return subprocess.run(
            ["bash", "-c", dyno + text],
            cwd=self.directory,
            env=os.environ | {"HOME": str(self.directory)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("pages")
    with (
        frontend(place) as (url, sd_url),
        worker(place) as page,
        observing(place / "observe", "--sd-url", sd_url) as process,
    ):
        prometheus = prometheus_of(process)
        for count in (1, 2):
            body = {"model": "mock", "prompt": "hi", "max_tokens": 16, "stream": True}
            assert http(f"{url}/v1/completions", body).status == 200
            for expression in (
                f'dynamo_frontend_requests_total{{status="success"}} >= {count}',
                f"dynamometer_engine_generation_tokens_total >= {16 * count}",
            ):
                prometheus.wait_for(expression)
        addresses = {
            "8000": url,
            "8002": sd_url.removesuffix("/sd"),
            "8081": page,
            "9090": prometheus.url,
        }
        ports = {default: address.rpartition(":")[2] for default, address in addresses.items()}
        stand = Running(place / "commands", ports)
        stand.directory.mkdir()
        assert stand.run(WRITE).returncode == 0
        yield stand


@pytest.mark.parametrize(("command", "documented"), EXAMPLES)
def test_an_answer_of_prometheus_has_the_documented_form(
    stand: Running, command: str, documented: str
) -> None:
    expected = form(json.loads(documented))

    def answers() -> bool:
        return form(json.loads(stand.run(command).stdout)) == expected

    eventually(answers, within=10, what=documented)


def form(answer: Mapping[str, Any]) -> object:
    """Return the type of an answer, and of each series the role, labels and kinds of values."""
    series = answer["data"]["result"]
    forms = [(one["metric"].get("role", ""), sorted(one["metric"]), sorted(one)) for one in series]
    return answer["status"], answer["data"]["resultType"], sorted(forms)


@pytest.mark.parametrize("block", blocks(OBSERVABILITY, "yaml"))
def test_prometheus_takes_a_configuration_of_the_page(stand: Running, block: str) -> None:
    (stand.directory / "prometheus.yml").write_text(block, encoding="utf-8")
    done = stand.run("promtool check config prometheus.yml")
    assert done.returncode == 0, done.stderr


def test_the_configuration_of_the_page_is_the_written_one(stand: Running) -> None:
    (shown,) = [block for block in blocks(OBSERVABILITY, "yaml") if "http_sd_configs" in block]
    written = (stand.directory / "monitoring/prometheus/prometheus.yml").read_text("utf-8")
    (job,) = yaml.safe_load(shown)["scrape_configs"]
    (wanted,) = yaml.safe_load(written)["scrape_configs"]
    assert job == {name: value for name, value in wanted.items() if value != []}


def test_the_written_directory_has_the_files_that_the_page_names(stand: Running) -> None:
    named = set(re.findall(r"`(monitoring/[\w./-]+)`", OBSERVABILITY))
    assert "monitoring/prometheus/prometheus.yml" in named
    assert {name for name in named if (stand.directory / name).exists()} == named


@pytest.mark.parametrize("command", [*COMMANDS, *lines(TROUBLESHOOTING)])
def test_a_command_of_a_page_runs(stand: Running, command: str) -> None:
    if "check config" in command:
        (stand.directory / "prometheus.yml").write_text("scrape_configs: []\n")
    done = stand.run(command)
    assert not done.stderr, done.stderr
    # No line matches where a query or a search looks for a fault that is not there.
    assert done.returncode in (0, 1 if "grep" in command else 0)


def test_the_package_has_the_files_that_the_page_names(stand: Running) -> None:
    (command,) = [command for command in COMMANDS if "importlib" in command]
    directory = Path(stand.run(command).stdout.strip())
    for name in ("alertmanager.yml", "rules/alerts.yml", "dashboards/dynamometer-engine.json"):
        assert (directory / name).is_file()


@pytest.mark.parametrize("page", [OBSERVABILITY, TROUBLESHOOTING], ids=["observe", "trouble"])
def test_links_of_a_page_lead_to_headings(page: str) -> None:
    for name, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page):
        target = (ROOT / "docs" / name).read_text(encoding="utf-8") if name else page
        headings = re.findall(r"^#+ (.+)$", target, re.MULTILINE)
        assert anchor in {slug(heading) for heading in headings}, (name, anchor)


def slug(heading: str) -> str:
    """Return the anchor of a heading, as forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
