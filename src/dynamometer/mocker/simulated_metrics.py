"""The metrics of the simulated engine's requests, in multiprocess files.

Import this module only after `PROMETHEUS_MULTIPROC_DIR` is set: prometheus_client chooses the
storage of values when it is imported.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from dynamometer.engines.sglang_names import sglang
from dynamometer.names import labels

_LABELS = (labels.MODEL_NAME, labels.ENGINE_TYPE, labels.IS_STREAMING)


class SimulatedMetrics:
    """The metrics of the simulated engine's requests."""

    def __init__(self, model: str, *, kv_tokens: int, page_size: int) -> None:
        """Create the instruments.

        Args:
            model: the label `model_name`.
            kv_tokens: the capacity of the simulated KV cache, tokens.
            page_size: the tokens in one block of the cache.
        """
        registry = CollectorRegistry()
        values = (model, "mocker", "true")

        def counter(name: str, text: str) -> Counter:
            return Counter(name, f"Simulated: {text}", _LABELS, registry=registry).labels(*values)

        def gauge(name: str, text: str) -> Gauge:
            family = Gauge(
                name, f"Simulated: {text}", _LABELS, registry=registry, multiprocess_mode="livesum"
            )
            return family.labels(*values)

        def histogram(name: str, text: str) -> Histogram:
            family = Histogram(name, f"Simulated: {text}", _LABELS, registry=registry)
            return family.labels(*values)

        self._requests = counter(sglang.NUM_REQUESTS_TOTAL, "requests processed.")
        self._aborted = counter(sglang.NUM_ABORTED_REQUESTS_TOTAL, "requests aborted.")
        self._prompt = counter(sglang.PROMPT_TOKENS_TOTAL, "prefill tokens processed.")
        self._generated = counter(sglang.GENERATION_TOKENS_TOTAL, "generation tokens processed.")
        self._first = histogram(sglang.TIME_TO_FIRST_TOKEN_SECONDS, "time to first token.")
        self._duration = histogram(sglang.E2E_REQUEST_LATENCY_SECONDS, "request latency.")
        self._running = gauge(sglang.NUM_RUNNING_REQS, "running requests.")
        gauge(sglang.NUM_QUEUE_REQS, "queued requests.")  # always 0: the mocker has no queue
        gauge(sglang.MAX_TOTAL_NUM_TOKENS, "tokens that the KV cache holds.").set(kv_tokens)
        gauge(sglang.PAGE_SIZE, "tokens in a block of the KV cache.").set(page_size)

    def begin(self) -> None:
        """Count a request as running."""
        self._running.inc()

    def first_token(self, seconds: float) -> None:
        """Observe the time from a request's start to its first token."""
        self._first.observe(seconds)

    def end(self, *, prompt: int, generated: int, seconds: float, aborted: bool) -> None:
        """Count a request that has ended, with its tokens and its duration."""
        self._running.dec()
        self._prompt.inc(prompt)
        self._generated.inc(generated)
        if aborted:
            self._aborted.inc()
        else:
            self._requests.inc()
            self._duration.observe(seconds)

    def page(self) -> bytes:
        """Return the page of all processes of the engine."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return bytes(generate_latest(registry))
