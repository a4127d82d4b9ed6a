"""deploy/compose.yaml: valid, and consistent with the files that it names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from conftest import ROOT
from dynamometer.http.addresses import free_port
from processes import PYTHON, running
from recipes import DEPLOY, checked_by, exporter_target, read, sglang_port

COMPOSE = read("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ENGINE, EXPORTER = SERVICES["engine"], SERVICES["exporter"]


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return the source of each mount by target, and whether the mount is read-only."""
    found = {}
    for volume in service["volumes"]:
        source, target, *mode = volume.split(":")
        found[target] = (source, mode == ["ro"])
    return found


def published(service: dict[str, Any]) -> int:
    (port,) = service["ports"]
    address, outside, inside = port.split(":")
    assert (address, outside) == ("127.0.0.1", inside)
    return int(inside)


def test_it_is_valid_by_the_compose_specification() -> None:
    checked_by(
        "check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"
    )


def test_a_compose_client_accepts_it() -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose; Debian's package has it, make setup installs it")
    command = ["docker-compose", "-f", str(DEPLOY / "compose.yaml"), "config"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert resolved["services"].keys() == SERVICES.keys()
    assert resolved["volumes"].keys() == COMPOSE["volumes"].keys()


def test_the_exporter_reads_only_what_the_engine_writes() -> None:
    directory = ENGINE["environment"]["PROMETHEUS_MULTIPROC_DIR"]
    target = exporter_target(EXPORTER["command"])
    written, read_only = mounts(ENGINE)[directory]
    assert not read_only
    assert [mounts(EXPORTER)[path] for path in target.directories] == [(written, True)]
    assert EXPORTER["user"] == ENGINE["user"]


def test_the_exporter_asks_the_engine_where_it_listens() -> None:
    url = urlsplit(str(exporter_target(EXPORTER["command"]).url))
    assert SERVICES[str(url.hostname)] is ENGINE
    assert url.port == sglang_port(ENGINE["command"]) == published(ENGINE)


def test_prometheus_scrapes_the_exporter_and_grafana_asks_prometheus() -> None:
    port = EXPORTER["environment"]["DYN_SYSTEM_PORT"]
    assert published(EXPORTER) == int(port)
    (job,) = read("prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"exporter:{port}"]}]
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == f"http://prometheus:{published(SERVICES['prometheus'])}"


def test_promtool_accepts_its_prometheus_configuration() -> None:
    command = ["promtool", "check", "config", str(DEPLOY / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_and_volume_that_it_names_is_there() -> None:
    assert (DEPLOY / EXPORTER["build"]["context"]).resolve() == ROOT
    assert (ROOT / EXPORTER["build"]["dockerfile"]).is_file()
    for service in SERVICES.values():
        for source, _ in mounts(service).values():
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        assert set(service.get("depends_on", ())) <= SERVICES.keys()


def test_grafana_finds_its_dashboard() -> None:
    (provider,) = read("grafana/provisioning/dashboards/sglang.yaml")["providers"]
    source, _ = mounts(SERVICES["grafana"])[provider["options"]["path"]]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (DEPLOY / source / home.name).is_file()
    assert str(home.parent) == provider["options"]["path"]


def test_the_exporters_health_check_succeeds_while_it_runs(tmp_path: Path) -> None:
    kind, _, *words = EXPORTER["healthcheck"]["test"]
    assert kind == "CMD"
    port = free_port()
    check = [sys.executable, *(word.replace(":8081/", f":{port}/") for word in words)]
    exporter = [PYTHON, "-m", "dynamometer", "exporter", "--system-port", str(port)]
    exporter += ["--multiproc-dir", str(tmp_path), "--discovery-directory", str(tmp_path / "kv")]
    with running(exporter, tmp_path / "log", {}) as process:
        process.wait_for("metrics and health", within=20)
        assert subprocess.run(check, check=False).returncode == 0  # its engine is missing
    assert subprocess.run(check, check=False, stderr=subprocess.DEVNULL).returncode != 0
