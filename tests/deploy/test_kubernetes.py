"""deploy/kubernetes.yaml: valid and consistent."""

from __future__ import annotations

from typing import Any

import pytest

from recipes import DEPLOY, checked_by, exporter_target, read_all, sglang_port

DEPLOYMENT, SERVICE = read_all("kubernetes.yaml")
TEMPLATE = DEPLOYMENT["spec"]["template"]
POD = TEMPLATE["spec"]
CONTAINERS = {container["name"]: container for container in POD["containers"]}
ENGINE, EXPORTER = CONTAINERS["engine"], CONTAINERS["exporter"]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}


def ports(container: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def test_it_is_valid_by_kubernetes_own_schemas_and_has_no_field_that_they_have_not() -> None:
    said = checked_by("kubernetes_validate", "--strict", DEPLOY / "kubernetes.yaml")
    assert said.count(" passed ") == 2


def test_the_exporter_reads_only_what_the_engine_writes() -> None:
    directory = variables(ENGINE)["PROMETHEUS_MULTIPROC_DIR"]
    written = mounts(ENGINE)[directory]
    (path,) = exporter_target(EXPORTER["args"]).directories
    read = mounts(EXPORTER)[path]
    assert not written.get("readOnly")
    assert read["readOnly"]
    assert read["name"] == written["name"]


def test_both_run_as_one_user() -> None:
    assert "runAsUser" in POD["securityContext"]
    for container in CONTAINERS.values():
        assert "runAsUser" not in container.get("securityContext", {})


def test_every_mount_has_its_volume_and_the_shared_one_is_in_memory() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    used = {mount["name"] for c in CONTAINERS.values() for mount in c["volumeMounts"]}
    assert used == volumes.keys()
    shared = mounts(ENGINE)[variables(ENGINE)["PROMETHEUS_MULTIPROC_DIR"]]["name"]
    assert volumes[shared]["emptyDir"]["medium"] == "Memory"


def test_the_exporter_asks_the_engine_where_it_listens() -> None:
    port = sglang_port(ENGINE["command"])
    assert ports(ENGINE) == {"http": port}
    assert exporter_target(EXPORTER["args"]).url == f"http://127.0.0.1:{port}"
    (service,) = SERVICE["spec"]["ports"]
    assert (service["targetPort"], service["port"]) == ("http", port)


def test_the_scrape_annotations_name_the_page() -> None:
    port = variables(EXPORTER)["DYN_SYSTEM_PORT"]
    assert ports(EXPORTER) == {"metrics": int(port)}
    assert variables(EXPORTER)["DYN_SYSTEM_HOST"] == "0.0.0.0"
    annotations = TEMPLATE["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == port
    assert annotations["prometheus.io/path"] == "/metrics"


@pytest.mark.parametrize(
    ("container", "probe", "path"),
    [
        (ENGINE, "startupProbe", "/health"),
        (ENGINE, "readinessProbe", "/health"),
        (EXPORTER, "livenessProbe", "/live"),
        (EXPORTER, "readinessProbe", "/health"),
    ],
)
def test_probes_ask_what_is_there(container: dict[str, Any], probe: str, path: str) -> None:
    asked = container[probe]["httpGet"]
    assert asked["path"] == path
    assert asked["port"] in ports(container)


def test_the_selectors_find_the_pod() -> None:
    labels = TEMPLATE["metadata"]["labels"].items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= labels
    assert SERVICE["spec"]["selector"].items() <= labels
