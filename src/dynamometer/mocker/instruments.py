"""What the simulated engine's server process counts, in multiprocess files of its own.

Imported only after `PROMETHEUS_MULTIPROC_DIR` is set: prometheus_client chooses where values
live when it is imported.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_LABELS = ("model_name", "engine_type", "is_streaming")


class ServerInstruments:
    """See `app.Instruments`."""

    def __init__(self, model: str) -> None:
        registry = CollectorRegistry()
        values = (model, "mocker", "true")

        def counter(name: str, text: str) -> Counter:
            return Counter(name, f"Simulated: {text}", _LABELS, registry=registry).labels(*values)

        def histogram(name: str, text: str) -> Histogram:
            made = Histogram(name, f"Simulated: {text}", _LABELS, registry=registry)
            return made.labels(*values)

        self._requests = counter("sglang:num_requests_total", "requests processed.")
        self._aborted = counter("sglang:num_aborted_requests_total", "requests aborted.")
        self._prompt = counter("sglang:prompt_tokens_total", "prefill tokens processed.")
        self._generated = counter("sglang:generation_tokens_total", "generation tokens processed.")
        self._first = histogram("sglang:time_to_first_token_seconds", "time to first token.")
        self._whole = histogram("sglang:e2e_request_latency_seconds", "request latency.")
        self._running = Gauge(
            "sglang:num_running_reqs",
            "Simulated: running requests.",
            _LABELS,
            registry=registry,
            multiprocess_mode="livesum",
        ).labels(*values)

    def begin(self) -> None:
        """See `app.Instruments.begin`."""
        self._running.inc()

    def first_token(self, seconds: float) -> None:
        """See `app.Instruments.first_token`."""
        self._first.observe(seconds)

    def end(self, *, prompt: int, generated: int, seconds: float, aborted: bool) -> None:
        """See `app.Instruments.end`."""
        self._running.dec()
        self._prompt.inc(prompt)
        self._generated.inc(generated)
        if aborted:
            self._aborted.inc()
        else:
            self._requests.inc()
            self._whole.observe(seconds)

    def page(self) -> bytes:
        """See `app.Instruments.page`."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return bytes(generate_latest(registry))
