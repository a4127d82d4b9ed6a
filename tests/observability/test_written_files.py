"""The files that `dyno observe` writes are complete and valid, and replace no other file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from observing import observe_once

from dynamometer.errors import DirectoryError
from dynamometer.observability import written_files
from dynamometer.observability.configuration import MARK, Targets, files
from prometheus import needs_prometheus

SD = "http://127.0.0.1:8002/sd"
PROMETHEUS = "prometheus/prometheus.yml"


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(directory: Path) -> list[Path]:
    return sorted((directory / "prometheus/rules").glob("*.yml"))


@needs_prometheus
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--sd-url", "https://frontend.example:8002/sd"),
        ("--exporter", "127.0.0.1:8081", "--exporter", "[::1]:8082"),
        ("--gpu-exporter", "localhost:9400"),
        ("--gpu-exporter", "dcgm-exporter:9400", "--exporter", "exporter:8081", "--sd-url", SD),
    ],
)
def test_promtool_accepts_all_that_is_written(tmp_path: Path, flags: tuple[str, ...]) -> None:
    done = observe_once("--write", str(tmp_path / "new"), *flags)
    assert done.returncode == 0, done.stderr
    promtool("check", "config", "--lint-fatal", tmp_path / "new" / PROMETHEUS)
    for path in rules(tmp_path / "new"):
        promtool("check", "rules", "--lint-fatal", path)


def test_all_rules_are_loaded_and_all_dashboards_provided(tmp_path: Path) -> None:
    written_files.write(tmp_path, files(tmp_path, Targets(sd_url=SD), prometheus_url="http://p"))
    prometheus = yaml.safe_load((tmp_path / PROMETHEUS).read_text())
    assert prometheus["rule_files"] == [f"rules/{path.name}" for path in rules(tmp_path)]
    provisioning = tmp_path / "grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/dynamometer.yaml").read_text())[
        "providers"
    ]
    assert provider["folder"] == "Dynamometer"
    assert Path(provider["options"]["path"]) == tmp_path / "grafana/dashboards"
    (source,) = yaml.safe_load((provisioning / "datasources/dynamometer.yaml").read_text())[
        "datasources"
    ]
    assert (source["uid"], source["url"]) == ("dynamometer-prometheus", "http://p")
    # A Grafana that has a default data source would not start.
    assert source["isDefault"] is False


def test_runbook_urls_lead_to_sections_in_the_directory(tmp_path: Path) -> None:
    written_files.write(tmp_path, files(tmp_path, Targets(sd_url=SD), prometheus_url="http://p"))
    groups = yaml.safe_load((tmp_path / "prometheus/rules/alerts.yml").read_text())["groups"]
    urls = [rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"]]
    assert urls
    for url in urls:
        path, _, anchor = url.partition("#")
        assert f"## {anchor}" in (tmp_path / path).read_text(encoding="utf-8").lower()


def test_grafana_replaces_no_variable_in_a_path(tmp_path: Path) -> None:
    place = tmp_path / "a$HOME"
    written = files(place, Targets(sd_url=SD), prometheus_url="http://p")
    (provider,) = yaml.safe_load(written["grafana/provisioning/dashboards/dynamometer.yaml"])[
        "providers"
    ]
    assert provider["options"]["path"] == str(place / "grafana/dashboards").replace("$", "$$")


def test_a_gpu_exporter_that_does_not_resolve_is_not_a_target() -> None:
    """A service of a compose file that is off must not be a target that is down."""

    def job(address: str) -> dict[str, object]:
        targets = Targets(sd_url=SD, gpu_exporter=address)
        written = files(Path("/x"), targets, prometheus_url="http://p")[PROMETHEUS]
        _, found = yaml.safe_load(written)["scrape_configs"]
        assert isinstance(found, dict)
        return found

    lookup = {"names": ["dcgm-exporter"], "type": "A", "port": 9400}
    assert job("dcgm-exporter:9400")["dns_sd_configs"] == [lookup]
    for address in ("127.0.0.1:9400", "localhost:9400", "[::1]:9400"):
        assert job(address)["static_configs"] == [{"targets": [address]}]


def test_own_files_are_replaced_and_others_stay(tmp_path: Path) -> None:
    assert observe_once("--write", str(tmp_path)).returncode == 0
    first = snapshot(tmp_path)
    others = {"prometheus/rules/mine.yml", "grafana/dashboards/mine.json", "notes"}
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / PROMETHEUS).write_text(MARK + "old: content\n")
    assert observe_once("--write", str(tmp_path)).returncode == 0
    second = snapshot(tmp_path)
    assert {second.pop(name) for name in others} == {b"mine"}
    assert second == first


@pytest.mark.parametrize("name", [PROMETHEUS, "grafana/grafana.ini"])
def test_a_file_of_another_origin_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    done = observe_once("--write", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path / name} exists and was not written by dyno observe" in done.stderr
    assert snapshot(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize(
    "name",
    ["prometheus/prometheus.log", "prometheus/data/x", "grafana/grafana.log", "grafana/data/x"],
)
def test_data_of_another_origin_is_never_used(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    done = observe_once("--directory", str(tmp_path), PATH="")
    assert done.returncode == 1
    assert f"{tmp_path / name.removesuffix('/x')} exists and was not written by" in done.stderr
    assert snapshot(tmp_path) == {name: b"mine"}


def test_a_pipe_or_a_link_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "link", "directory"):
        with pytest.raises(DirectoryError, match=f"/{name} exists and was not written by"):
            written_files.write(tmp_path, {name: MARK.encode()})


def test_a_dashboard_of_another_origin_is_never_replaced(tmp_path: Path) -> None:
    name = "grafana/dashboards/dynamometer-engine.json"
    (tmp_path / name).parent.mkdir(parents=True)
    content = b'{"uid": "dynamometer-engine"}'
    (tmp_path / name).write_bytes(b'{"uid": "mine"}')
    with pytest.raises(DirectoryError, match="was not written by dyno observe"):
        written_files.write(tmp_path, {name: content})
    (tmp_path / name).write_bytes(b'{"title": "old", "uid": "dynamometer-engine"}')
    written_files.write(tmp_path, {name: content})
    assert snapshot(tmp_path) == {name: content}


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = observe_once("--write", str(tmp_path / "file/monitoring"))
    assert done.returncode == 1
    assert f"cannot write {tmp_path}/file/monitoring/prometheus/prometheus.yml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_read_only_directory_is_named() -> None:
    done = observe_once("--write", "/proc/monitoring")
    assert done.returncode == 1
    assert "cannot write /proc/monitoring/prometheus/prometheus.yml" in done.stderr
    # /proc is not a directory that a user can make writable.
    assert "No such file or directory; choose another directory" in done.stderr


def test_a_file_is_complete_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_files.write(tmp_path, {"a": MARK.encode() + b"old"})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DirectoryError, match="No space left on device; free some space, or"):
        written_files.write(tmp_path, {"a": MARK.encode() + b"new"})
    assert snapshot(tmp_path) == {"a": MARK.encode() + b"old"}


def test_other_users_can_read_the_files(tmp_path: Path) -> None:
    """Prometheus and Grafana in containers are other users."""
    before = os.umask(0o022)
    try:
        written_files.write(tmp_path / "new", {"b/a": MARK.encode()})
    finally:
        os.umask(before)
    assert (tmp_path / "new/b/a").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "new/b").stat().st_mode & 0o777 == 0o755


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
