"""The pages of all processes as Prometheus' HTTP service discovery, and as NVIDIA Dynamo's list.

Every process with a system server is a target, whatever its role, namespace, mode or state: a
record that this version cannot use also belongs to a process that has a page. A process that
vanished is a target, too, so that `up` is 0, until another process has its address.

Prometheus removes the labels that begin with `__` after relabelling; a label that it keeps must not
have the name of a label on any page. The format is described at
https://prometheus.io/docs/prometheus/latest/http_sd/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from dynamometer.runtime.discovery.interface import Processes
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import Json, Record, Role
from dynamometer.variables import DEFAULT_NAMESPACE

META: Final = "__meta_dynamometer_"
_DEFAULT_PATH: Final = "/metrics"


def target_groups(processes: Processes) -> list[Json]:
    """Return the body of `/sd`: one group for each process, ordered by role and id."""
    return [_group(record) for record in with_pages(processes)]


def metrics_endpoints(processes: Processes) -> Json:
    """Return the body of `/metrics_endpoints`, in the form of NVIDIA Dynamo.

    `instance_id` has no leading zeros, as in NVIDIA Dynamo.
    """
    data: list[Json] = [
        {
            "namespace": _namespace(record),
            "instance_id": f"{record.id:x}",
            "url": record.page_url,
            "gpu_uuids": list(record.gpu_uuids),
        }
        for record in with_pages(processes)
    ]
    return {"object": "list", "data": data}


def with_pages(processes: Processes) -> list[Record]:
    """Return the processes that have a page, without those whose address a later process has."""
    found = [record for record in processes.live if record.page_address is not None]
    taken = {record.page_address for record in found}
    for record in reversed(processes.vanished):
        if record.page_address is not None and record.page_address not in taken:
            taken.add(record.page_address)
            found.append(record)
    return sorted(found, key=lambda record: (record.role, record.id))


def _group(record: Record) -> Json:
    parts = urlsplit(record.system_url or "")
    path = f"{parts.path}{record.metrics_path}"
    labels: dict[str, Json] = {META + name: value for name, value in _known(record) if value}
    if path != _DEFAULT_PATH:
        labels["__metrics_path__"] = path
    if parts.scheme != "http":
        labels["__scheme__"] = parts.scheme
    return {"targets": [record.page_address], "labels": labels}


def _known(record: Record) -> Iterator[tuple[str, str]]:
    """Return the properties that rarely change while the process lives; empty if unknown."""
    yield "role", record.role
    yield "id", hexadecimal(record.id)
    yield "namespace", _namespace(record)
    yield "component", record.component
    yield "endpoint", record.endpoint
    yield "mode", record.mode if record.role == Role.WORKER else ""
    yield "engine", record.engine
    # The commas let a regular expression match one name: `.*,NAME,.*`.
    yield "models", f",{','.join(record.models)}," if record.models else ""


def _namespace(record: Record) -> str:
    """Return the namespace; a frontend that serves all of them belongs to the default one."""
    return record.namespace or (DEFAULT_NAMESPACE if record.role == Role.FRONTEND else "")
