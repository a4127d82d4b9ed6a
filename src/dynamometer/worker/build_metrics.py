"""What runs here: versions, accelerators, and how long the model took to load."""

from __future__ import annotations

import platform

from prometheus_client import CollectorRegistry, Gauge

from dynamometer import __version__
from dynamometer.engines import accelerators
from dynamometer.metrics.hierarchy import Metrics
from dynamometer.names import build, labels, model_info


class BuildMetrics:
    """Families that do not change while the engine runs."""

    def __init__(
        self, component: Metrics, registry: CollectorRegistry, *, engine: str, model: str
    ) -> None:
        """Show what is known before the engine runs.

        Args:
            component: metrics whose level labels are `dynamo_component` alone, as the peer's.
            registry: for families whose names are not `dynamo_component_*`.
            engine: its name.
            model: the name it serves.
        """
        self._engine = engine
        self._info = Gauge(
            build.INFO,
            "What runs: versions of this project, of the engine (once it answers) and of Python",
            (labels.VERSION, labels.ENGINE, labels.ENGINE_VERSION, labels.PYTHON_VERSION),
            registry=registry,
        )
        self._show("")
        self._component = component
        self._model = model
        _show_accelerators(registry)

    def ready(self, load_seconds: float, *, engine_version: str) -> None:
        """The engine answers.

        Args:
            load_seconds: how long that took.
            engine_version: as the engine says it; empty where it does not.
        """
        self._component.create_gauge(
            model_info.LOAD_TIME_SECONDS,
            "Seconds from the engine's start until its model answered",
            const_labels={labels.MODEL: self._model},
        ).set(load_seconds)
        if engine_version:
            self._info.clear()
            self._show(engine_version)

    def _show(self, engine_version: str) -> None:
        self._info.labels(__version__, self._engine, engine_version, platform.python_version()).set(
            1
        )


def _show_accelerators(registry: CollectorRegistry) -> None:
    devices = accelerators.devices()
    if not devices:
        return  # no family without series
    found = Gauge(
        build.ACCELERATOR_INFO,
        "The accelerators of this machine",
        (labels.KIND, labels.INDEX, labels.UUID),
        registry=registry,
    )
    for device in devices:
        found.labels(device.kind, str(device.index), device.uuid).set(1)
