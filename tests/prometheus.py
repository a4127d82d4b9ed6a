"""A real Prometheus that tests start: Debian's package `prometheus`."""

from __future__ import annotations

import contextlib
import json
import shutil
import urllib.error
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from dynamometer.http.addresses import free_port
from dynamometer.observability import configuration
from dynamometer.observability.configuration import Targets
from processes import Process, running
from stack import eventually, http

needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus")


class QueryError(Exception):
    """A query that Prometheus has refused, with its reason."""


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus.

    Attributes:
        url: the address of its API.
    """

    url: str
    process: Process

    def ask(self, path: str, **query: str) -> Any:
        """Return the `data` of an answer of the API, such as of `targets` or `rules`.

        Raises:
            QueryError: Prometheus has refused the query.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        answer = cast(Mapping[str, Any], http(url).json())
        if answer["status"] != "success":
            raise QueryError(answer["error"])
        return answer["data"]

    def query(self, expression: str) -> Sequence[Mapping[str, Any]]:
        """Return the series of an instant query: `metric` and `value` of each."""
        return cast(Sequence[Mapping[str, Any]], self.ask("query", query=expression)["result"])

    def values(self, expression: str, label: str = "instance") -> Mapping[str, float]:
        """Return the values of an instant query by one label."""
        found = self.query(expression)
        return {one["metric"].get(label, ""): float(one["value"][1]) for one in found}

    def wait_for(self, expression: str, *, within: float = 30) -> Sequence[Mapping[str, Any]]:
        """Wait until an instant query returns series, and return them."""
        found: Sequence[Mapping[str, Any]] = ()

        def returns() -> bool:
            nonlocal found
            found = self.query(expression)
            return bool(found)

        eventually(returns, within=within, what=f"a result of {expression}\n{self.process.log}")
        return found


def written_configuration(targets: Targets) -> dict[str, Any]:
    """Return the prometheus.yml that `dyno observe` writes, without rules, and with less waiting.

    Args:
        targets: the pages; scraped every second, whatever the interval is.
    """
    files = configuration.files(Path("/"), targets, prometheus_url="http://127.0.0.1")
    written: dict[str, Any] = yaml.safe_load(files[configuration.PROMETHEUS_FILE])
    written["global"] = {"scrape_interval": "1s", "evaluation_interval": "500ms"}
    written["rule_files"] = []
    for job in written["scrape_configs"]:
        for listed in job["http_sd_configs"]:
            listed["refresh_interval"] = "1s"
    return written


@contextlib.contextmanager
def running_prometheus(content: Mapping[str, Any] | str, place: Path) -> Iterator[Prometheus]:
    """Run Prometheus on a free loopback port until the context ends.

    Args:
        content: the content of prometheus.yml: YAML, or an object.
        place: a directory for the configuration, the data and the log.
    """
    place.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (place / "prometheus.yml").write_text(text)  # JSON is YAML
    url = f"http://127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={place / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={place / 'tsdb'}"]
    command += [f"--web.listen-address={url.removeprefix('http://')}"]

    def ready() -> bool:
        assert process.running, process.log
        try:
            return http(f"{url}/-/ready").status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    with running(command, place / "prometheus.log", {}) as process:
        eventually(ready, within=30, what=f"Prometheus ready\n{process.log}")
        yield Prometheus(url, process)
