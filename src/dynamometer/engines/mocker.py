"""The mocker as a worker's engine: a simulated SGLang, started as `dyno mocker`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dynamometer.engines import sglang, sglang_flags, sglang_pairing
from dynamometer.engines.interface import (
    CommandFacts,
    CommandHelp,
    Launch,
    MetricSources,
    Probes,
    Route,
)
from dynamometer.engines.load_signals import EngineLoad
from dynamometer.engines.sglang_info import engine_info, model_cards, request_name
from dynamometer.engines.sglang_log import PublicLines
from dynamometer.errors import SettingsError
from dynamometer.http.addresses import free_port
from dynamometer.names import label_value
from dynamometer.runtime.record import PREFILL
from dynamometer.variables import LOOPBACK


class Mocker:
    """See `interface.StartableEngine`; the routes and the metrics files are those of SGLang."""

    name = "mocker"
    title = "the mocker"
    routes: Mapping[str, Route] = sglang.SGLang.routes
    health_path = sglang.SGLang.health_path
    probe_path = sglang.SGLang.probe_path
    models_path = sglang.SGLang.models_path
    info_path = sglang.SGLang.info_path
    metric_prefixes: Sequence[str] = sglang.SGLang.metric_prefixes
    request_totals = sglang.SGLang.request_totals
    pairing_fields = sglang_pairing.FIELDS
    client_labels = sglang.SGLang.client_labels
    labels_header = sglang.SGLang.labels_header
    help: CommandHelp = sglang.SGLang.help
    probes: Probes | None = None

    pair_members = staticmethod(sglang_pairing.pair_members)
    read_models = staticmethod(model_cards)
    request_name = staticmethod(request_name)
    read_info = staticmethod(engine_info)
    load_signals = staticmethod(EngineLoad)

    def launch_arguments(self, command: Sequence[str]) -> Sequence[str] | None:  # noqa: ARG002  # the contract's parameter
        """See `interface.Engine.launch_arguments`: an exporter does not find simulations."""
        return None

    def is_process(self, command: Sequence[str]) -> bool:  # noqa: ARG002  # the contract's parameter
        """See `interface.Engine.is_process`."""
        return False

    def command_facts(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], directory: Path
    ) -> CommandFacts:
        """See `interface.Engine.command_facts`."""
        return sglang.SGLang().command_facts(
            arguments, environment=environment, directory=directory
        )

    def plan(
        self,
        arguments: Sequence[str],
        *,
        directory: Path,
        python: str,
        transfer_host: str = LOOPBACK,  # noqa: ARG002  # the contract's parameter
    ) -> Launch:
        """See `interface.StartableEngine.plan`."""
        flags = sglang_flags.parse(arguments)
        if flags.model is None:
            raise SettingsError("--model is missing: any name is valid for the mocker")
        mode, node = sglang_flags.mode(flags), sglang_flags.node(flags)
        port = free_port()
        serves_pairs = mode == PREFILL and node.rank == 0
        metrics = directory / "metrics"
        metrics.mkdir(mode=0o700)
        notes = ["the engine is a simulation: --engine mocker"]
        if not flags.enable_metrics:
            notes.append(sglang.WITHOUT_METRICS)
        return Launch(
            command=[
                *(python, "-m", "dynamometer.mocker", *arguments),
                *("--host", LOOPBACK, "--port", str(port)),
            ],
            environment=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)},
            url=f"http://{LOOPBACK}:{port}",
            port_flags=("--port",),
            model=label_value(flags.served_model_name or flags.model),
            model_path=flags.model,
            sources=MetricSources(directory=metrics if flags.enable_metrics else None),
            mode=mode,
            bootstrap=f"{LOOPBACK}:{port}" if serves_pairs else None,
            nodes=node.count,
            node_rank=node.rank,
            repeats_node_0=node.rank > 0,
            group=node.group,
            stream_usage=flags.stream_usage,
            labels_header=sglang_flags.labels_header(flags),
            client_labels=sglang.client_labels(flags),
            notes=tuple(notes),
        )

    def describe_exit(self, log: Sequence[str], exit_code: int, launch: Launch) -> str:  # noqa: ARG002  # the contract's parameter
        """See `interface.StartableEngine.describe_exit`."""
        return sglang.exit_reason(log, exit_code)

    def public_lines(self) -> Callable[[str], str | None]:
        """See `interface.StartableEngine.public_lines`."""
        return PublicLines()

    def describe_progress(self, log: Sequence[str]) -> str:
        """See `interface.StartableEngine.describe_progress`."""
        return log[-1] if log else ""
