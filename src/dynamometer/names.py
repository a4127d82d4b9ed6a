"""Every metric and label name that the project writes, as constants.

The `dynamo_*` names, labels and buckets are those of NVIDIA Dynamo 1.6.1, so that its
dashboards and alerts keep working; classes are grouped as there. Our own additional
families start with `dynamometer_`.
"""

from __future__ import annotations

from typing import Final


class name_prefix:  # noqa: N801  # the peer's spelling: users import these classes by name
    """What names begin with."""

    COMPONENT: Final = "dynamo_component"
    FRONTEND: Final = "dynamo_frontend"
    SGLANG: Final = "sglang:"


class labels:  # noqa: N801
    """Label names."""

    NAMESPACE: Final = "dynamo_namespace"
    COMPONENT: Final = "dynamo_component"
    ENDPOINT: Final = "dynamo_endpoint"
    MODEL: Final = "model"
    WORKER_ID: Final = "worker_id"
    ERROR_TYPE: Final = "error_type"
    # Of the frontend: which route, streamed or not, and how it ended.
    ROUTE: Final = "endpoint"
    REQUEST_TYPE: Final = "request_type"
    STATUS: Final = "status"
    # The name that the user of an exporter has given an engine.
    ENGINE: Final = "engine"
    SOURCE: Final = "source"
    REASON: Final = "reason"


class frontend_service:  # noqa: N801
    """Families of the frontend, after `name_prefix.FRONTEND` and `_`."""

    REQUESTS_STARTED_TOTAL: Final = "requests_started_total"
    REQUESTS_TOTAL: Final = "requests_total"
    INFLIGHT_REQUESTS: Final = "inflight_requests"
    ACTIVE_REQUESTS: Final = "active_requests"
    DISCONNECTED_CLIENTS: Final = "disconnected_clients"
    MODEL_CANCELLATION_TOTAL: Final = "model_cancellation_total"
    REQUEST_DURATION_SECONDS: Final = "request_duration_seconds"
    TIME_TO_FIRST_TOKEN_SECONDS: Final = "time_to_first_token_seconds"
    INTER_TOKEN_LATENCY_SECONDS: Final = "inter_token_latency_seconds"
    INPUT_SEQUENCE_TOKENS: Final = "input_sequence_tokens"
    OUTPUT_SEQUENCE_TOKENS: Final = "output_sequence_tokens"
    CACHED_TOKENS: Final = "cached_tokens"
    OUTPUT_TOKENS_TOTAL: Final = "output_tokens_total"


class work_handler:  # noqa: N801
    """Families of a worker's endpoint, after `name_prefix.COMPONENT` and `_`."""

    REQUESTS_TOTAL: Final = "requests_total"
    REQUEST_DURATION_SECONDS: Final = "request_duration_seconds"
    REQUEST_BYTES_TOTAL: Final = "request_bytes_total"
    RESPONSE_BYTES_TOTAL: Final = "response_bytes_total"
    INFLIGHT_REQUESTS: Final = "inflight_requests"
    CANCELLATION_TOTAL: Final = "cancellation_total"
    ERRORS_TOTAL: Final = "errors_total"


class distributed_runtime:  # noqa: N801
    """Families of every process, after `name_prefix.COMPONENT` and `_`."""

    UPTIME_SECONDS: Final = "uptime_seconds"


class scrape:  # noqa: N801
    """Families about the page itself, whole names."""

    ERRORS_TOTAL: Final = "dynamometer_engine_scrape_errors_total"


class engine_state:  # noqa: N801
    """Families about the engine, whole names."""

    UP: Final = "dynamometer_engine_up"


class request_type:  # noqa: N801
    """Values of `labels.REQUEST_TYPE`."""

    STREAM: Final = "stream"
    UNARY: Final = "unary"


class status:  # noqa: N801
    """Values of `labels.STATUS`."""

    SUCCESS: Final = "success"
    ERROR: Final = "error"


class error_type:  # noqa: N801
    """Values of `labels.ERROR_TYPE`; empty for a success."""

    NONE: Final = ""
    VALIDATION: Final = "validation"
    NOT_FOUND: Final = "not_found"
    OVERLOAD: Final = "overload"
    CANCELLED: Final = "cancelled"
    INTERNAL: Final = "internal"


UNKNOWN_MODEL: Final = "unknown_model"
"""`model` of every request for a name that no engine has registered."""

# Upper bounds of histogram buckets, without +Inf.
REQUEST_DURATION_BUCKETS: Final = (0.0, 2, 4, 8, 16, 32, 64, 130, 260, 510)
TIME_TO_FIRST_TOKEN_BUCKETS: Final = (
    0.0, 0.0022, 0.0047, 0.01, 0.022, 0.047, 0.1, 0.22, 0.47, 1, 2.2, 4.7, 10, 22, 48, 100,
    220, 480,
)  # fmt: skip
INTER_TOKEN_LATENCY_BUCKETS: Final = (
    0.0, 0.0018, 0.0033, 0.0059, 0.011, 0.02, 0.035, 0.064, 0.12, 0.21, 0.38, 0.69, 1.2, 2.3, 4.1,
    7.4, 13, 24, 44, 80,
)  # fmt: skip
INPUT_TOKENS_BUCKETS: Final = (
    0.0, 100, 210, 430, 870, 1800, 3600, 7400, 15000, 31000, 63000, 130000,
)  # fmt: skip
OUTPUT_TOKENS_BUCKETS: Final = (0.0, 100, 210, 430, 880, 1800, 3700, 7600, 16000, 32000)
COMPONENT_DURATION_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600,
)  # fmt: skip

# SGLang's families, by the categories of its documentation, for those who look at a page for
# the first time. Those of a disaggregated engine are there when it is one.
SGLANG_CATEGORIES: Final = {
    "throughput": (
        "sglang:gen_throughput",
        "sglang:num_requests_total",
        "sglang:prompt_tokens_total",
        "sglang:generation_tokens_total",
        "sglang:cached_tokens_total",
        "sglang:cache_hit_rate",
    ),
    "resource usage": (
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        "sglang:token_usage",
        "sglang:num_used_tokens",
        "sglang:max_total_num_tokens",
    ),
    "latency": (
        "sglang:time_to_first_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:e2e_request_latency_seconds",
        "sglang:queue_time_seconds",
    ),
    "disaggregation": (
        "sglang:kv_transfer_latency_ms",
        "sglang:kv_transfer_speed_gb_s",
        "sglang:kv_transfer_total_mb",
    ),
}


def label_value(text: str) -> str:
    """`text` as a label's value: half characters, which no page can hold, become `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")
