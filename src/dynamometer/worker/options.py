"""The options of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dynamometer.exposition.label_bounds import LabelLimits
from dynamometer.metrics.page_limit import DEFAULT_MAX_PAGE_BYTES
from dynamometer.runtime.lifecycle import DEFAULT_POLICY
from dynamometer.settings import HealthCheckSettings, HealthSettings
from dynamometer.variables import LOOPBACK


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The options of a worker, from flags and variables. Port 0 is any free port.

    Attributes:
        arguments: the engine's flags.
        system_port: -1 for no system server; None if no port was requested: 8081, or any free
            port if 8081 is in use.
        restart_limit: see `RestartPolicy.limit`.
        hang_restart: seconds after which an unresponsive engine is restarted; 0: never.
        component: empty if no component was requested: the component of the engine's mode.
        worker_id: the instance number; None for a random one.
    """

    arguments: Sequence[str]
    engine_python: str
    transfer_host: str = LOOPBACK
    host: str
    port: int
    system_host: str
    system_port: int | None
    health: HealthSettings
    health_check: HealthCheckSettings
    hang_timeout: float
    namespace: str
    component: str
    endpoint: str
    runtime_labels: bool
    worker_id: int | None
    drain_delay: float
    drain_timeout: float
    max_body_size: int
    max_series: int
    label_limits: LabelLimits = field(default_factory=LabelLimits)
    max_page_bytes: int = DEFAULT_MAX_PAGE_BYTES
    discovery_directory: Path | None
    restart_limit: int = DEFAULT_POLICY.limit
    hang_restart: float = 0.0
    allowed_origins: Sequence[str] = ()
