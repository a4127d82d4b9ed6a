"""The retries of requests: how many are allowed, and their counts.

A request is retried at most once, and only if no engine can have it. Without a limit, workers that
refuse requests would double the load on the workers that remain.
"""

from __future__ import annotations

import math
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from dynamometer.names import frontend_resilience, labels, retry_reason

# A tenth of the requests, counted over about ten seconds, and ten more for a quiet frontend.
SHARE: Final = 0.1
FLOOR: Final = 10.0
MEMORY_SECONDS: Final = 10.0

_REASONS: Final = (
    retry_reason.CANNOT_CONNECT,
    retry_reason.WORKER_NOT_READY,
    retry_reason.BUDGET_EXHAUSTED,
)


class RetryBudget:
    """The retries that the requests of one model may cause.

    The balance is the number of retries that are allowed now. It rises with each request, falls by
    one with each retry, and returns to `FLOOR` exponentially: a difference from `FLOOR` is divided
    by e in `MEMORY_SECONDS`.
    """

    __slots__ = ("_at", "_balance")

    def __init__(self, now: float) -> None:
        """Start with `FLOOR`.

        Args:
            now: the time in seconds, of a clock that never goes back.
        """
        self._at = now
        self._balance = FLOOR

    def add_request(self, now: float) -> None:
        """Add the share of one more request to the balance."""
        self._update(now)
        self._balance += SHARE

    def take(self, now: float) -> bool:
        """Return whether a retry is allowed, and if so, take it from the balance."""
        self._update(now)
        if self._balance < 1:
            return False
        self._balance -= 1
        return True

    def _update(self, now: float) -> None:
        left = math.exp((self._at - now) / MEMORY_SECONDS)
        self._balance = FLOOR + (self._balance - FLOOR) * left
        self._at = now


class RetryMetrics:
    """The family of retries, by model and reason."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the family."""
        self._retries = Counter(
            frontend_resilience.RETRIES_TOTAL,
            "Total number of requests that were sent to another worker, by the reason; "
            f"{retry_reason.BUDGET_EXHAUSTED}: not sent, because too many requests were retried",
            (labels.MODEL, labels.REASON),
            registry=registry,
        )

    def show_zeros(self, model: str) -> None:
        """Show the series of a registered model at 0."""
        for reason in _REASONS:
            self._retries.labels(model, reason)

    def count(self, model: str, reason: str) -> None:
        """Count a retry, or one that the budget refused.

        Args:
            model: a registered name.
            reason: a value of `retry_reason`.
        """
        self._retries.labels(model, reason).inc()
