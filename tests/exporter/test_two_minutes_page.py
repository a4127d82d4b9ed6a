"""Every command of docs/two-minutes.md, in its order, with a real SGLang and a real Prometheus.

What stands in the page is run as it is, in a copy of this checkout and a home directory of its
own, but for: ports, the host name of the container, its directory, and a shorter scrape interval.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import ROOT
from dynamometer.exporter import finder
from dynamometer.http.addresses import free_port
from dynamometer.observability.dashboards import DASHBOARDS
from dynamometer.panels import Page, Panel
from exporting import Exporter, Sglang, sglang
from processes import Process, running
from recipes import unit_settings, with_a_containers_rights, with_the_units_rights
from stack import eventually, http

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PAGE = (ROOT / "docs/two-minutes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [text.strip() for language, text in BLOCKS if language == "sh"]
(CONFIGURATION,) = [text for language, text in BLOCKS if language == "yaml"]
# What stays up until it is ended; the rest ends by itself.
INSTALL, EXPORTER, *_ = COMMANDS
(PROMETHEUS,) = [command for command in COMMANDS if command.startswith("prometheus ")]
(OBSERVE,) = [command for command in COMMANDS if " observe " in command]
OTHER_EXPORTERS = [command for command in COMMANDS if command.startswith(f"{EXPORTER} ")]
QUESTIONS = [
    command
    for command in COMMANDS
    if command not in (INSTALL, EXPORTER, PROMETHEUS, OBSERVE, *OTHER_EXPORTERS)
]
(LINKED,) = re.findall(r"\]\(\.\./(\S+/dashboards/(\S+)\.json)\)", PAGE)
(DASHBOARD,) = [one for one in DASHBOARDS if one.uid == LINKED[1]]
PANELS = [panel for row in DASHBOARD.always for panel in row.panels if Page.EXPORTER in panel.pages]


@dataclass(frozen=True)
class Shell:
    """The place where the page's commands run, and the replacements in them."""

    home: Path
    checkout: Path
    system_port: int
    prometheus_port: int
    engine_port: int
    multiproc: str
    volume: str

    def substituted(self, text: str) -> str:
        for pattern, word in (
            (r"\b8081\b", str(self.system_port)),
            (r"\b9090\b", str(self.prometheus_port)),
            (r"\b(30000|8000)\b", str(self.engine_port)),
            (r"\b30001\b", str(free_port())),
            (r"http://engine:", "http://127.0.0.1:"),
            (r" /multiproc\b", f" {self.volume}"),
            (r"scrape_interval: 5s", "scrape_interval: 1s"),
        ):
            text = re.sub(pattern, word, text)
        return text

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache/pip")),
            "PYTHONPATH": "",  # the package that the page has installed, not the checkout
            "DYN_SYSTEM_PORT": str(self.system_port),
            "DYN_FILE_KV": str(self.home / "instances"),
        }

    def run(self, text: str) -> str:
        """Run commands that end by themselves and succeed; return their output."""
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", self.substituted(text)],
            cwd=self.checkout,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def start(self, text: str, before: Sequence[str] = ()) -> Iterator[Process]:
        """Run a command until the context ends; `before` is a prefix such as unshare's words."""
        words = f"cd {self.checkout} && exec {self.substituted(text)}"
        number = len(list(self.home.glob("*.log")))
        log = self.home / f"{number}.log"
        with running([*before, "bash", "-c", words], log, self.environment) as process:
            yield process

    @contextlib.contextmanager
    def start_exporter(self, text: str, before: Sequence[str] = ()) -> Iterator[Exporter]:
        with self.start(text, before) as process:
            url = process.wait_for(r"metrics and health: (\S+)/metrics", within=20)[1]
            assert url == f"http://127.0.0.1:{self.system_port}"
            yield Exporter(process, url)
            if "unshare" in before:  # which takes no signal itself while its child runs
                for child in process.descendants():
                    child.terminate()


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sglang]:
    """Start an engine by its own command line."""
    directory = tmp_path_factory.mktemp("engine")
    with sglang(tiny_model, directory / "engine.log") as found:
        yield found


@pytest.fixture(scope="module")
def shell(engine: Sglang, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    directory = tmp_path_factory.mktemp("two-minutes")
    home, checkout = directory / "home", directory / "checkout"
    home.mkdir()
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "src", checkout / "src", ignore=shutil.ignore_patterns("__pycache__"))
    processes = [psutil.Process(engine.process.pid), *engine.process.descendants()]
    volume = directory / "volume"
    (multiproc,) = finder.files_of(processes).directories
    return Shell(home, checkout, free_port(), free_port(), engine.port, multiproc, str(volume))


@pytest.fixture(scope="module")
def installed(shell: Shell) -> Shell:
    shell.run(INSTALL)
    return shell


@pytest.fixture(scope="module")
def exporter(installed: Shell, engine: Sglang) -> Iterator[Exporter]:
    with installed.start_exporter(EXPORTER) as found:
        yield found.wait_until_ready(engine.name)


@pytest.fixture(scope="module")
def prometheus(installed: Shell, exporter: Exporter, engine: Sglang) -> Iterator[str]:
    """Yield the URL of a Prometheus that has scraped before and after some requests."""
    configuration = installed.substituted(CONFIGURATION)
    (installed.checkout / "prometheus.yml").write_text(configuration, encoding="utf-8")
    url = f"http://127.0.0.1:{installed.prometheus_port}"
    with installed.start(PROMETHEUS) as process:
        process.wait_for("Server is ready", within=30)
        count = f"sum(sglang:num_requests_total{worker(exporter, engine)})"
        eventually(lambda: query(url, "sglang:num_running_reqs"), within=30, what="a scrape")
        engine.complete(2, tokens=16)
        stream(engine)
        stream(engine)
        eventually(lambda: query(url, f"{count} >= 4"), within=30, what="scraped again")
        engine.complete(2, tokens=16)
        stream(engine)
        stream(engine)
        eventually(lambda: query(url, f"{count} >= 8"), within=30, what="and once more")
        yield url


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """Return the series and values that answer an instant query."""
    answer = http(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}").json()
    assert answer["status"] == "success", answer
    data = answer["data"]
    assert isinstance(data, dict)
    result = data["result"]
    assert isinstance(result, list)
    return result


def worker(exporter: Exporter, engine: Sglang) -> str:
    """Return a selector of this engine's series: other engines may run on this machine."""
    (up,) = re.findall(rf'_up{{engine="{engine.name}",(worker_id="\w+")}}', exporter.page())
    return f"{{{up}}}"


def stream(engine: Sglang) -> None:
    """Send a streamed request, whose prompt is long enough for the cache.

    Only streams have a time between tokens.
    """
    prompt = "Why is the sky blue? " * 8
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "ignore_eos": True, "stream": True}
    assert http(f"{engine.url}/v1/completions", body).status == 200


def test_the_running_engine_is_found(exporter: Exporter, engine: Sglang) -> None:
    assert f"{engine.name}: process {engine.process.pid} (SGLang)" in exporter.log
    assert f"{engine.name}: reading its files in " in exporter.log
    assert "sglang:num_running_reqs{" in exporter.page()


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_command_of_the_page_answers(installed: Shell, prometheus: str, question: str) -> None:
    answer = installed.run(question)
    assert re.search(r'"endpoints"|SUCCESS|model_name=', answer), answer


def test_the_whole_page_has_been_taken_apart() -> None:
    """A command that no test here runs is noticed by its first word."""
    words = [command.split()[0] for command in QUESTIONS]
    assert words == ["curl", "promtool", "promtool"]
    assert len(OTHER_EXPORTERS) == 4


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_of_the_dashboard_has_data(prometheus: str, panel: Panel) -> None:
    found = []
    for asked in panel.queries:
        filled = asked.expr.replace("$__rate_interval", "1m").replace("$__range", "15m")
        filled = re.sub(r"\$(model|instance|rank)\b", ".*", filled)
        assert "$" not in filled
        found += query(prometheus, filled)
    assert [one for one in found if one["value"][1] not in ("NaN", "+Inf")], panel.queries


def test_the_dashboard_that_it_links_is_there() -> None:
    assert (ROOT / LINKED[0]).is_file()


def test_one_command_replaces_prometheus_and_its_configuration(
    installed: Shell, exporter: Exporter
) -> None:
    with installed.start(f"{OBSERVE} --prometheus-port 0") as process:
        process.wait_for(f"exporter localhost:{installed.system_port} is up", within=60)


def test_what_the_panels_say_is_what_happened(
    prometheus: str, exporter: Exporter, engine: Sglang
) -> None:
    (generated,) = query(
        prometheus, f"sum(sglang:generation_tokens_total{worker(exporter, engine)})"
    )
    assert float(generated["value"][1]) == 8 * 16
    (up,) = query(prometheus, f"dynamometer_engine_up{{engine='{engine.name}'}}")
    assert up["value"][1] == "1"


@pytest.mark.parametrize("command", OTHER_EXPORTERS)
def test_another_start_of_the_page_serves_the_engine(
    installed: Shell, engine: Sglang, command: str
) -> None:
    elsewhere = replace(installed, system_port=free_port())
    before: Sequence[str] = ()
    if "/multiproc" in command:  # a container's
        before = with_a_containers_rights(installed.multiproc, installed.volume)
    with elsewhere.start_exporter(command, before) as other:
        eventually(
            lambda: "ready" in other.health()[1]["endpoints"].values(), within=20, what=other.log
        )
        if "vllm:" in command:
            assert "sglang:" not in other.page()
        else:
            shown = "sglang:num_running_reqs{"
            eventually(lambda: shown in other.page(), within=20, what=other.log)
        if "b=" in command:  # the second one does not run
            status, body = other.health()
            assert (status, body["endpoints"]["a"]) == (503, "ready")
            assert "a" not in body["reasons"]
            assert "b" in body["reasons"]


def test_the_service_finds_the_engine_with_the_rights_that_it_has(
    installed: Shell, engine: Sglang, tmp_path: Path
) -> None:
    variables = dict(text.split("=", 1) for text in unit_settings()["Environment"])
    variables |= {"DYN_SYSTEM_PORT": "0", "PYTHONPATH": ""}
    program = [str(installed.home / "dyno/bin/dyno"), "exporter"]
    with running([*with_the_units_rights(), *program], tmp_path / "log", variables) as process:
        url = process.wait_for(r"metrics and health: (\S+)/metrics", within=20)[1]
        service = Exporter(process, url).wait_until_ready(engine.name)
        assert f"{installed.multiproc}\n" in service.log
        assert "no permission" not in service.log
        eventually(
            lambda: "sglang:num_running_reqs{" in service.page(), within=10, what=service.log
        )
