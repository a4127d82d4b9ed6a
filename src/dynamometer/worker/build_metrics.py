"""The metrics of versions, accelerators, the worker's part, and the time to load the model."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge

from dynamometer import __version__
from dynamometer.engines import accelerators
from dynamometer.engines.interface import Launch
from dynamometer.metrics.hierarchy import Metrics
from dynamometer.names import build, labels, model_info


class BuildMetrics:
    """Families whose values stay the same while the engine runs."""

    def __init__(
        self,
        component: Metrics,
        registry: CollectorRegistry,
        *,
        engine: str,
        launch: Launch,
        worker: Mapping[str, str],
    ) -> None:
        """Register the families whose values are known before the engine runs.

        Args:
            component: creates families whose only level label is `dynamo_component`, as in NVIDIA
                Dynamo.
            registry: the registry of the other families.
            engine: the name of the engine.
            launch: the engine's model, mode and nodes.
            worker: the labels of all series about this worker.
        """
        self._engine = engine
        self._info = Gauge(
            build.INFO,
            "Versions of this project, of the engine (empty until it answers) and of Python",
            (labels.VERSION, labels.ENGINE, labels.ENGINE_VERSION, labels.PYTHON_VERSION),
            registry=registry,
        )
        self._set_engine_version("")
        self._component = component
        self._model = launch.model
        _show_worker(registry, launch, worker)
        _show_accelerators(registry)

    def show_loaded(self, load_seconds: float, *, engine_version: str) -> None:
        """Show the load time and the engine's version.

        Args:
            load_seconds: the time from the engine's start until its model answered.
            engine_version: the version that the engine reported; empty if it reported none.
        """
        self._component.create_gauge(
            model_info.LOAD_TIME_SECONDS,
            "Seconds from the engine's start until its model answered",
            const_labels={labels.MODEL: self._model},
        ).set(load_seconds)
        if engine_version:
            self._info.clear()
            self._set_engine_version(engine_version)

    def _set_engine_version(self, engine_version: str) -> None:
        self._info.labels(__version__, self._engine, engine_version, platform.python_version()).set(
            1
        )


def _show_worker(registry: CollectorRegistry, launch: Launch, worker: Mapping[str, str]) -> None:
    part = {
        labels.MODE: launch.mode,
        labels.NODE_RANK: str(launch.node_rank),
        labels.NODES: str(launch.nodes),
    }
    Gauge(
        build.WORKER_INFO,
        "The phase of requests that the worker computes (aggregated: both), and its node",
        (*worker, *part),
        registry=registry,
    ).labels(**worker, **part).set(1)


def _show_accelerators(registry: CollectorRegistry) -> None:
    devices = accelerators.devices()
    if not devices:
        return  # the page shows no family without series
    gauge = Gauge(
        build.ACCELERATOR_INFO,
        "The accelerators of this machine",
        (labels.KIND, labels.INDEX, labels.UUID),
        registry=registry,
    )
    for device in devices:
        gauge.labels(device.kind, str(device.index), device.uuid).set(1)
