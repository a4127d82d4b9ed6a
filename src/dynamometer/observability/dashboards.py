"""All dashboards, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dynamometer.engines.engine_dashboards import ENGINE_DASHBOARDS
from dynamometer.observability.gpu_panels import GPU
from dynamometer.observability.runtime_panels import RUNTIME
from dynamometer.panels import Dashboard

DASHBOARDS: Final[Sequence[Dashboard]] = (*ENGINE_DASHBOARDS, RUNTIME, GPU)

DIRECTORY: Final = Path(__file__).parent / "files" / "dashboards"
"""The directory of Grafana's JSON files, which `make docs` writes."""


def path(dashboard: Dashboard) -> Path:
    """Return the file of a dashboard."""
    return DIRECTORY / f"{dashboard.uid}.json"
