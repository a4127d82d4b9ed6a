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
PROMETHEUS, GRAFANA = SERVICES["prometheus"], SERVICES["grafana"]
# The directory that the service `observe` writes, in all containers.
OBSERVE = "/observe"


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return the source of each mount by target, and whether the mount is read-only."""
    found = {}
    for volume in service.get("volumes", ()):
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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory with the files that the service `observe` writes."""
    directory = tmp_path_factory.mktemp("written")
    program, *words = SERVICES["observe"]["entrypoint"]
    assert program == "dyno"
    flags = [str(directory) if word == OBSERVE else word for word in SERVICES["observe"]["command"]]
    command = [PYTHON, "-m", "dynamometer", *words, *flags]
    subprocess.run(command, check=True, capture_output=True)
    return directory


def at(directory: Path, inside: str) -> Path:
    """Return a written file by its path in the containers."""
    return directory / Path(inside).relative_to(OBSERVE)


def test_prometheus_scrapes_the_exporter_and_grafana_asks_prometheus(written: Path) -> None:
    port = EXPORTER["environment"]["DYN_SYSTEM_PORT"]
    assert published(EXPORTER) == int(port)
    (flag,) = (word for word in PROMETHEUS["command"] if word.startswith("--config.file="))
    configuration = yaml.safe_load(at(written, flag.partition("=")[2]).read_text())
    job, gpu_job = configuration["scrape_configs"]
    assert [one["targets"] for one in job["static_configs"]] == [[f"exporter:{port}"]]
    assert not job["http_sd_configs"]  # without a frontend
    assert gpu_job["dns_sd_configs"] == [
        {"names": ["dcgm-exporter"], "type": "A", "port": published(SERVICES["dcgm-exporter"])}
    ]
    provisioning = at(written, GRAFANA["environment"]["GF_PATHS_PROVISIONING"])
    text = (provisioning / "datasources/dynamometer.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    assert source["url"] == f"http://prometheus:{published(PROMETHEUS)}"


def test_promtool_accepts_its_prometheus_configuration(written: Path) -> None:
    command = ["promtool", "check", "config", str(written / "prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_services_see_the_written_files_at_one_path() -> None:
    assert mounts(SERVICES["observe"])[OBSERVE] == ("observe", False)
    for service in (PROMETHEUS, GRAFANA):
        assert mounts(service)[OBSERVE] == ("observe", True)
        assert service["depends_on"]["observe"]["condition"] == "service_completed_successfully"


def test_no_port_is_published_beyond_this_machine_and_no_password_set() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
        assert not [name for name in service.get("environment", ()) if "PASSWORD" in name]
    assert GRAFANA["environment"]["GF_PATHS_CONFIG"] == f"{OBSERVE}/grafana/grafana.ini"


def test_the_gpu_exporter_is_off_by_default() -> None:
    off = {name for name, service in SERVICES.items() if service.get("profiles")}
    assert off == {"dcgm-exporter"}


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


def test_grafana_finds_its_dashboards(written: Path) -> None:
    provisioning = at(written, GRAFANA["environment"]["GF_PATHS_PROVISIONING"])
    text = (provisioning / "dashboards/dynamometer.yaml").read_text()
    (provider,) = yaml.safe_load(text)["providers"]
    assert provider["options"]["path"].endswith("/grafana/dashboards")
    home = at(written, GRAFANA["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(provider["options"]["path"])
    assert home.is_file()


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
