"""The files of `dyno observe`: the configuration of Prometheus and Grafana, rules and dashboards.

Rules, dashboards, runbooks, alertmanager.yml and grafana.ini are files of this package (`files/`).
The rest has addresses and paths, and is made here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import yaml

from dynamometer.names import labels
from dynamometer.runtime.scrape_targets import META

# The first line of each file that is not JSON.
MARK: Final = (
    "# Written by dyno observe, which replaces this file at its next start: change a copy.\n"
)
# The addresses of a running dyno observe, for messages.
ADDRESSES_FILE: Final = "addresses"
PROMETHEUS_FILE: Final = "prometheus/prometheus.yml"
PROMETHEUS_DATA: Final = "prometheus/data"
PROMETHEUS_LOG: Final = "prometheus/prometheus.log"
# The path that `runbook_url` of the alerts has.
RUNBOOKS_FILE: Final = "docs/runbooks.md"
ALERTMANAGER_FILE: Final = "alertmanager/alertmanager.yml"
GRAFANA_FILE: Final = "grafana/grafana.ini"
GRAFANA_DATA: Final = "grafana/data"
GRAFANA_LOG: Final = "grafana/grafana.log"
PROVISIONING: Final = "grafana/provisioning"
DASHBOARDS: Final = "grafana/dashboards"
DATA_SOURCE: Final = "dynamometer-prometheus"
HOME_DASHBOARD: Final = "dynamometer-engine"
JOB: Final = "dynamometer"
_GPU_JOB: Final = "dcgm"
# The target label with the kind of a process: worker, frontend or exporter.
ROLE: Final = "role"
_FOUND_ROLE: Final = f"{META}role"
_FOUND_NAMESPACE: Final = f"{META}namespace"

Config = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The pages that Prometheus scrapes.

    Attributes:
        sd_url: the frontend's list of targets; empty without a frontend.
        exporters: addresses (`host:port`) of exporters without a frontend.
        gpu_exporter: the address of a dcgm-exporter; empty without one.
        interval: the time between two scrapes, such as `5s`.
    """

    sd_url: str
    exporters: Sequence[str] = ()
    gpu_exporter: str = ""
    interval: str = "5s"


def files(directory: Path, targets: Targets, *, prometheus_url: str) -> dict[str, bytes]:
    """Return the content of all files, by their paths in `directory`.

    Args:
        directory: the absolute path at which Prometheus and Grafana find the files.
        targets: the pages that Prometheus scrapes.
        prometheus_url: the address of Prometheus in Grafana's data source.
    """
    rules = _packaged("rules", ".yml")
    provisioning = {
        "datasources": _data_source(prometheus_url, targets.interval),
        "dashboards": _dashboards(directory / DASHBOARDS),
    }
    return {
        PROMETHEUS_FILE: _yaml(_prometheus(targets, rules)),
        **{f"prometheus/rules/{name}": MARK.encode() + text for name, text in rules.items()},
        RUNBOOKS_FILE: MARK.encode() + _packaged("", ".md")["runbooks.md"],
        ALERTMANAGER_FILE: MARK.encode() + _packaged("", ".yml")["alertmanager.yml"],
        GRAFANA_FILE: MARK.encode() + _packaged("", ".ini")["grafana.ini"],
        **{f"{PROVISIONING}/{kind}/{JOB}.yaml": _yaml(it) for kind, it in provisioning.items()},
        **{f"{DASHBOARDS}/{name}": text for name, text in _packaged("dashboards", ".json").items()},
    }


def _packaged(kind: str, ending: str) -> dict[str, bytes]:
    """Return the package's files of one kind, by name."""
    directory = resources.files("dynamometer.observability") / "files" / kind
    found = directory.iterdir() if directory.is_dir() else ()
    return {
        file.name: file.read_bytes()
        for file in sorted(found, key=lambda file: file.name)
        if file.name.endswith(ending)
    }


def _yaml(content: Config) -> bytes:
    return (MARK + yaml.safe_dump(content, sort_keys=False, width=100)).encode()


def _prometheus(targets: Targets, rules: Mapping[str, bytes]) -> Config:
    return {
        "global": {"scrape_interval": targets.interval, "evaluation_interval": targets.interval},
        "rule_files": [f"rules/{name}" for name in rules],
        "scrape_configs": [_job(targets), *_gpu_jobs(targets.gpu_exporter)],
    }


def _job(targets: Targets) -> Config:
    """Return the job of this project's pages.

    No target label has the name of a label of a series, except for a frontend, whose series have no
    namespace of their own.
    """
    return {
        "job_name": JOB,
        "http_sd_configs": [
            {"url": url, "refresh_interval": "5s"} for url in filter(None, [targets.sd_url])
        ],
        "static_configs": [
            {"targets": [address], "labels": {_FOUND_ROLE: "exporter"}}
            for address in targets.exporters
        ],
        "relabel_configs": [
            {"source_labels": [_FOUND_ROLE], "target_label": ROLE},
            {
                "source_labels": [_FOUND_ROLE, _FOUND_NAMESPACE],
                "regex": "frontend;(.+)",
                "target_label": labels.NAMESPACE,
            },
        ],
    }


def _gpu_jobs(address: str) -> Sequence[Config]:
    """Return the job of a dcgm-exporter, if there is one.

    A name is looked up in DNS: while it does not resolve, as in a compose file whose service is
    off, there is not a target that is down.
    """
    if not address:
        return []
    host, _, port = address.rpartition(":")
    if host == "localhost" or _is_ip_address(host.strip("[]")):
        return [{"job_name": _GPU_JOB, "static_configs": [{"targets": [address]}]}]
    lookup = {"names": [host], "type": "A", "port": int(port)}
    return [{"job_name": _GPU_JOB, "dns_sd_configs": [lookup]}]


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _data_source(url: str, interval: str) -> Config:
    source = {
        "name": "Dynamometer",
        "uid": DATA_SOURCE,
        "type": "prometheus",
        "access": "proxy",
        "url": _escaped(url),
        # A Grafana with two default data sources does not start.
        "isDefault": False,
        "jsonData": {"timeInterval": interval, "httpMethod": "POST"},
    }
    return {"apiVersion": 1, "datasources": [source]}


def _dashboards(path: Path) -> Config:
    provider = {
        "name": "Dynamometer",
        "folder": "Dynamometer",
        "type": "file",
        "disableDeletion": True,
        "options": {"path": _escaped(str(path))},
    }
    return {"apiVersion": 1, "providers": [provider]}


def _escaped(value: str) -> str:
    """Escape a value of a provisioning file, in which Grafana replaces variables (`$NAME`)."""
    return value.replace("$", "$$")
