"""The mocker as an engine of a worker: a simulated SGLang, started by `dyno mocker`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynamometer.engines import sglang
from dynamometer.engines.interface import Launch, Route
from dynamometer.errors import SettingsError
from dynamometer.http.addresses import free_port
from dynamometer.names import label_value, name_prefix


class Mocker:
    """See `interface.Engine`."""

    name = "mocker"
    routes: Mapping[str, Route] = sglang.SGLang.routes
    health_path = sglang.SGLang.health_path
    metric_prefixes: Sequence[str] = (name_prefix.SGLANG,)

    def plan(self, arguments: Sequence[str], *, directory: Path, python: str) -> Launch:
        """See `interface.Engine.plan`."""
        known = sglang.known_flags(arguments)
        if known.model is None:
            raise SettingsError("--model is missing: any name will do for a mocker")
        port = free_port()
        metrics = directory / "metrics"
        metrics.mkdir(mode=0o700)
        return Launch(
            command=[
                *(python, "-m", "dynamometer.mocker", *arguments),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            environment=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)},
            url=f"http://127.0.0.1:{port}",
            model=label_value(known.served_model_name or known.model),
            model_path=known.model,
            metrics=known.enable_metrics,
            mode=sglang.mode(known),
            notes=("the engine is a simulation: --engine mocker",),
        )

    def reason(self, log: Sequence[str], exit_code: int, launch: Launch) -> str:  # noqa: ARG002  # a seam
        """See `interface.Engine.reason`."""
        return sglang.reason(log, exit_code)

    def last_word(self, log: Sequence[str]) -> str:
        """See `interface.Engine.last_word`."""
        return log[-1] if log else ""
