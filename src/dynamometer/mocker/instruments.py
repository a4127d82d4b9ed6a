"""What the simulated engine's server process counts, in multiprocess files of its own.

Imported only after `PROMETHEUS_MULTIPROC_DIR` is set: prometheus_client chooses where values
live when it is imported.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from dynamometer.engines.sglang_names import sglang
from dynamometer.names import labels

_LABELS = (labels.MODEL_NAME, labels.ENGINE_TYPE, labels.IS_STREAMING)


class ServerInstruments:
    """See `app.Instruments`."""

    def __init__(self, model: str, *, kv_tokens: int, page_size: int) -> None:
        """Nothing is counted yet.

        Args:
            model: the label.
            kv_tokens: how many tokens the simulated cache holds.
            page_size: in blocks of so many.
        """
        registry = CollectorRegistry()
        values = (model, "mocker", "true")

        def counter(name: str, text: str) -> Counter:
            return Counter(name, f"Simulated: {text}", _LABELS, registry=registry).labels(*values)

        def histogram(name: str, text: str) -> Histogram:
            made = Histogram(name, f"Simulated: {text}", _LABELS, registry=registry)
            return made.labels(*values)

        self._requests = counter(sglang.NUM_REQUESTS_TOTAL, "requests processed.")
        self._aborted = counter(sglang.NUM_ABORTED_REQUESTS_TOTAL, "requests aborted.")
        self._prompt = counter(sglang.PROMPT_TOKENS_TOTAL, "prefill tokens processed.")
        self._generated = counter(sglang.GENERATION_TOKENS_TOTAL, "generation tokens processed.")
        self._first = histogram(sglang.TIME_TO_FIRST_TOKEN_SECONDS, "time to first token.")
        self._whole = histogram(sglang.E2E_REQUEST_LATENCY_SECONDS, "request latency.")

        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(
                name, f"Simulated: {text}", _LABELS, registry=registry, multiprocess_mode="livesum"
            )
            return made.labels(*values)

        self._running = gauge(sglang.NUM_RUNNING_REQS, "running requests.")
        gauge(sglang.NUM_QUEUE_REQS, "queued requests.")  # always 0: it queues nothing
        gauge(sglang.MAX_TOTAL_NUM_TOKENS, "tokens that the KV cache holds.").set(kv_tokens)
        gauge(sglang.PAGE_SIZE, "tokens in a block of the KV cache.").set(page_size)

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
