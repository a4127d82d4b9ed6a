"""What holds for all engines of an exporter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dynamometer.metrics.http_source import DEADLINE_SECONDS


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What holds for all engines.

    Attributes:
        identity: the engine's `worker_id`, which its own families here always have.
        constant: labels for every series that has not its own.
        model_label: add the label `model` too.
        model: what `model` is where the user says so.
        prefixes: families whose name begins with one of them; none: all.
        max_series: how many series of an engine's files are shown.
        health_path: what is asked for the engine's health; empty: only its port is looked at.
        health_interval: seconds between two such questions.
        health_deadline: how long an answer may take, seconds.
        page_deadline: how long the engine's own page may take, seconds.
    """

    identity: str = ""
    constant: Mapping[str, str] = field(default_factory=dict)
    model_label: bool = False
    model: str = ""
    prefixes: tuple[str, ...] = ()
    max_series: int
    health_path: str
    health_interval: float
    health_deadline: float
    page_deadline: float = DEADLINE_SECONDS
