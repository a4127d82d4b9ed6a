"""What a mocker is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MockerOptions:
    """How large and how busy the simulated engine is.

    `tokens_per_second` is of each stream, `first_token_seconds` the time before its first one;
    `series` are sample lines on the page, spread over `processes` besides the server's own, and
    `change` the part of them (0 to 1) that moves every `interval` seconds. `stream_usage`: every
    stream ends with its usage, requested or not.
    """

    host: str
    port: int
    model: str
    tokens_per_second: float
    first_token_seconds: float
    processes: int
    series: int
    change: float
    interval: float
    context_length: int = 32768
    max_running_requests: int = 256
    kv_tokens: int = 8 * 32768
    page_size: int = 1
    stream_usage: bool = False
