"""The first questions that a user has, as PromQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dynamometer.names import engine_load, frontend_service, labels, name_prefix
from dynamometer.observability.prometheus_api import PrometheusApi, Sample

_FRONTEND: Final = name_prefix.FRONTEND


@dataclass(frozen=True)
class Question:
    """A query, with the label that distinguishes its values, and their unit."""

    title: str
    promql: str
    label: str = ""
    unit: str = ""

    def render(self, sample: Sample) -> str:
        """Return a value of the answer as text."""
        label = f"{sample.labels.get(self.label, '')}: " if self.label else ""
        unit = f" {self.unit}" if self.unit else ""
        return f"{label}{sample.value:.4g}{unit}"


def _rate(family: str, by: str = "") -> str:
    return f"sum{by}(rate({family}[1m]))"


_GENERATION: Final = Question(
    "generated tokens per second, mean of the last minute",
    _rate(engine_load.GENERATION_TOKENS_TOTAL),
    unit="tokens/s",
)
QUESTIONS: Final[Sequence[Question]] = (
    Question(
        "time to first token, p99 of the last minute",
        "histogram_quantile(0.99, "
        + _rate(f"{_FRONTEND}_{frontend_service.TIME_TO_FIRST_TOKEN_SECONDS}_bucket", " by (le) ")
        + ")",
        unit="s",
    ),
    _GENERATION,
    Question(
        "requests by status",
        f"sum by ({labels.STATUS}) ({_FRONTEND}_{frontend_service.REQUESTS_TOTAL})",
        label=labels.STATUS,
        unit="requests",
    ),
)

# Without a frontend, the pages of exporters have an engine's load and not the requests of users.
EXPORTER_QUESTIONS: Final[Sequence[Question]] = (
    _GENERATION,
    Question("requests that run now", f"sum({engine_load.RUNNING_REQUESTS})", unit="requests"),
    Question("requests that wait now", f"sum({engine_load.QUEUED_REQUESTS})", unit="requests"),
    Question("the fullest KV cache, from 0 to 1", f"max({engine_load.KV_USAGE_RATIO})"),
)


async def ask(api: PrometheusApi, question: Question) -> Sequence[str]:
    """Return the answer, one value a line.

    Raises:
        ObserveError: Prometheus does not answer as expected.
    """
    return [question.render(sample) for sample in await api.query(question.promql)]
