"""Every metric and label name that the project writes, as constants.

The `dynamo_*` names and labels are those of NVIDIA Dynamo 1.6.1, so that its dashboards and
alerts keep working; classes are grouped as there. Our own additional families start with
`dynamometer_`. A test finds names that are spelled elsewhere.
"""

from __future__ import annotations

import re
from typing import Final

from dynamometer.errors import ArgumentError


class name_prefix:  # noqa: N801  # the peer's spelling: users import these classes by name
    """What names begin with."""

    COMPONENT: Final = "dynamo_component"
    FRONTEND: Final = "dynamo_frontend"
    REQUEST_PLANE: Final = "dynamo_request_plane"
    WORK_HANDLER: Final = "dynamo_work_handler"
    SGLANG: Final = "sglang:"
    PROCESS: Final = "process"
    # Our own additional families.
    DYNAMOMETER: Final = "dynamometer"


class labels:  # noqa: N801
    """Label names."""

    NAMESPACE: Final = "dynamo_namespace"
    COMPONENT: Final = "dynamo_component"
    ENDPOINT: Final = "dynamo_endpoint"
    MODEL: Final = "model"
    # The engines' own name for it.
    MODEL_NAME: Final = "model_name"
    WORKER_ID: Final = "worker_id"
    WORKER_TYPE: Final = "worker_type"
    DP_RANK: Final = "dp_rank"
    ERROR_TYPE: Final = "error_type"
    # Of the frontend: which route, streamed or not, and how it ended.
    ROUTE: Final = "endpoint"
    REQUEST_TYPE: Final = "request_type"
    STATUS: Final = "status"
    FAILURE_CLASS: Final = "class"
    REASON: Final = "reason"
    STAGE: Final = "stage"
    PHASE: Final = "phase"
    # The name that the user of an exporter has given an engine.
    ENGINE: Final = "engine"
    SOURCE: Final = "source"
    # SGLang's own.
    ENGINE_TYPE: Final = "engine_type"
    IS_STREAMING: Final = "is_streaming"
    PRIORITY: Final = "priority"
    TP_RANK: Final = "tp_rank"
    PP_RANK: Final = "pp_rank"
    MOE_EP_RANK: Final = "moe_ep_rank"
    # Of the information families.
    VERSION: Final = "version"
    ENGINE_VERSION: Final = "engine_version"
    PYTHON_VERSION: Final = "python_version"
    KIND: Final = "kind"
    INDEX: Final = "index"
    UUID: Final = "uuid"


class frontend_service:  # noqa: N801
    """Families of the frontend, after `name_prefix.FRONTEND` and `_`."""

    METRICS_PREFIX_ENV: Final = "DYN_METRICS_PREFIX"

    REQUESTS_STARTED_TOTAL: Final = "requests_started_total"
    REQUESTS_TOTAL: Final = "requests_total"
    QUEUED_REQUESTS: Final = "queued_requests"
    INFLIGHT_REQUESTS: Final = "inflight_requests"
    ACTIVE_REQUESTS: Final = "active_requests"
    DISCONNECTED_CLIENTS: Final = "disconnected_clients"
    FAILURES_TOTAL: Final = "failures_total"
    MODEL_CANCELLATION_TOTAL: Final = "model_cancellation_total"
    MODEL_REJECTION_TOTAL: Final = "model_rejection_total"
    REQUEST_DURATION_SECONDS: Final = "request_duration_seconds"
    TIME_TO_FIRST_TOKEN_SECONDS: Final = "time_to_first_token_seconds"
    INTER_TOKEN_LATENCY_SECONDS: Final = "inter_token_latency_seconds"
    INPUT_SEQUENCE_TOKENS: Final = "input_sequence_tokens"
    OUTPUT_SEQUENCE_TOKENS: Final = "output_sequence_tokens"
    CACHED_TOKENS: Final = "cached_tokens"
    OUTPUT_TOKENS_TOTAL: Final = "output_tokens_total"
    MODEL_CONTEXT_LENGTH: Final = "model_context_length"
    MODEL_KV_CACHE_BLOCK_SIZE: Final = "model_kv_cache_block_size"
    MODEL_TOTAL_KV_BLOCKS: Final = "model_total_kv_blocks"
    MODEL_MAX_NUM_SEQS: Final = "model_max_num_seqs"
    MODEL_MAX_NUM_BATCHED_TOKENS: Final = "model_max_num_batched_tokens"
    MODEL_MIGRATION_LIMIT: Final = "model_migration_limit"
    MODEL_READY: Final = "model_ready"
    # Of earlier releases of the peer; dashboards still read it.
    MODEL_WORKERS: Final = "model_workers"
    WORKER_LAST_TIME_TO_FIRST_TOKEN_SECONDS: Final = "worker_last_time_to_first_token_seconds"
    WORKER_LAST_INTER_TOKEN_LATENCY_SECONDS: Final = "worker_last_inter_token_latency_seconds"
    WORKER_LAST_INPUT_SEQUENCE_TOKENS: Final = "worker_last_input_sequence_tokens"


class frontend_perf:  # noqa: N801
    """Families of the frontend's stages and event loop, after `name_prefix.FRONTEND` and `_`."""

    STAGE_DURATION_SECONDS: Final = "stage_duration_seconds"
    STAGE_REQUESTS: Final = "stage_requests"
    EVENT_LOOP_DELAY_SECONDS: Final = "event_loop_delay_seconds"
    EVENT_LOOP_STALL_TOTAL: Final = "event_loop_stall_total"
    # Values of `labels.STAGE`.
    STAGE_PREPROCESS: Final = "preprocess"
    STAGE_ROUTE: Final = "route"
    STAGE_DISPATCH: Final = "dispatch"
    STAGE_TRANSPORT_ROUNDTRIP: Final = "transport_roundtrip"


class request_plane:  # noqa: N801
    """Families of the hop to the workers, after `name_prefix.REQUEST_PLANE` and `_`."""

    QUEUE_SECONDS: Final = "queue_seconds"
    ROUNDTRIP_TTFT_SECONDS: Final = "roundtrip_ttft_seconds"
    INFLIGHT_REQUESTS: Final = "inflight_requests"


class work_handler:  # noqa: N801
    """Families of a worker's endpoint.

    After `name_prefix.COMPONENT` and `_`; `TIME_TO_FIRST_RESPONSE_SECONDS` after
    `name_prefix.WORK_HANDLER` and `_`.
    """

    REQUESTS_TOTAL: Final = "requests_total"
    REQUEST_DURATION_SECONDS: Final = "request_duration_seconds"
    REQUEST_BYTES_TOTAL: Final = "request_bytes_total"
    RESPONSE_BYTES_TOTAL: Final = "response_bytes_total"
    INFLIGHT_REQUESTS: Final = "inflight_requests"
    CANCELLATION_TOTAL: Final = "cancellation_total"
    ERRORS_TOTAL: Final = "errors_total"
    ERROR_TYPE_LABEL: Final = labels.ERROR_TYPE
    TIME_TO_FIRST_RESPONSE_SECONDS: Final = "time_to_first_response_seconds"


class kvstats:  # noqa: N801
    """Families of a worker's KV cache, after `name_prefix.COMPONENT` and `_`."""

    TOTAL_BLOCKS: Final = "total_blocks"
    GPU_CACHE_USAGE_PERCENT: Final = "gpu_cache_usage_percent"
    KV_CACHE_HIT_RATE: Final = "kv_cache_hit_rate"


class model_info:  # noqa: N801
    """Families of a worker's model, after `name_prefix.COMPONENT` and `_`."""

    LOAD_TIME_SECONDS: Final = "model_load_time_seconds"


class distributed_runtime:  # noqa: N801
    """Families of every process, after `name_prefix.COMPONENT` and `_`."""

    UPTIME_SECONDS: Final = "uptime_seconds"


class process:  # noqa: N801
    """Families of prometheus_client's own, whole names."""

    START_TIME_SECONDS: Final = "process_start_time_seconds"


class scrape:  # noqa: N801
    """Families about the page itself, whole names."""

    ERRORS_TOTAL: Final = "dynamometer_engine_scrape_errors_total"


class engine_state:  # noqa: N801
    """Families about the engine, whole names."""

    UP: Final = "dynamometer_engine_up"


class engine_load:  # noqa: N801
    """One number a worker, concluded from its engine's own, whole names."""

    RUNNING_REQUESTS: Final = "dynamometer_engine_running_requests"
    QUEUED_REQUESTS: Final = "dynamometer_engine_queued_requests"
    KV_USAGE_RATIO: Final = "dynamometer_engine_kv_usage_ratio"
    GENERATION_TOKENS_TOTAL: Final = "dynamometer_engine_generation_tokens_total"


class build:  # noqa: N801
    """Families that say what runs, whole names."""

    INFO: Final = "dynamometer_build_info"
    ACCELERATOR_INFO: Final = "dynamometer_accelerator_info"


class request_type:  # noqa: N801
    """Values of `labels.REQUEST_TYPE`."""

    STREAM: Final = "stream"
    UNARY: Final = "unary"


class status:  # noqa: N801
    """Values of `labels.STATUS`."""

    SUCCESS: Final = "success"
    ERROR: Final = "error"


class error_type:  # noqa: N801
    """Values of `labels.ERROR_TYPE` at the frontend; empty for a success."""

    NONE: Final = ""
    VALIDATION: Final = "validation"
    NOT_FOUND: Final = "not_found"
    OVERLOAD: Final = "overload"
    UNAVAILABLE: Final = "unavailable"
    CANCELLED: Final = "cancelled"
    INTERNAL: Final = "internal"
    NOT_IMPLEMENTED: Final = "not_implemented"


class failure_class:  # noqa: N801
    """Values of `labels.FAILURE_CLASS`, as the peer calls them."""

    INVALID_REQUEST: Final = "InvalidRequest"
    UNAUTHENTICATED: Final = "Unauthenticated"
    PERMISSION_DENIED: Final = "PermissionDenied"
    NOT_FOUND: Final = "NotFound"
    PAYLOAD_TOO_LARGE: Final = "PayloadTooLarge"
    UNSUPPORTED_MEDIA: Final = "UnsupportedMedia"
    RATE_LIMITED: Final = "RateLimited"
    CAPACITY_EXHAUSTED: Final = "CapacityExhausted"
    UNAVAILABLE: Final = "Unavailable"
    NOT_IMPLEMENTED: Final = "NotImplemented"
    INTERNAL: Final = "Internal"


class failure_reason:  # noqa: N801
    """Values of `labels.REASON` of a failure, as the peer calls them; see `frontend.failures`."""

    INVALID: Final = "request.invalid"
    INVALID_ARGUMENT: Final = "request.invalid_argument"
    UNAUTHENTICATED: Final = "request.unauthenticated"
    PERMISSION_DENIED: Final = "request.permission_denied"
    NOT_FOUND: Final = "request.not_found"
    PAYLOAD_TOO_LARGE: Final = "request.payload_too_large"
    UNSUPPORTED_MEDIA: Final = "request.unsupported_media"
    RATE_LIMITED: Final = "request.rate_limited"
    EXHAUSTED: Final = "capacity.exhausted"
    WORKER_UNAVAILABLE: Final = "backend.worker_unavailable"
    CANNOT_CONNECT: Final = "transport.cannot_connect"
    DISCONNECTED: Final = "transport.disconnected"
    ENGINE_SHUTDOWN: Final = "backend.engine_shutdown"
    STREAM_INCOMPLETE: Final = "backend.stream_incomplete"
    UNKNOWN: Final = "backend.unknown"
    NOT_IMPLEMENTED: Final = "runtime.not_implemented"
    INTERNAL: Final = "runtime.internal"


class component_error_type:  # noqa: N801
    """Values of `labels.ERROR_TYPE` at a worker's endpoint."""

    # The engine was not reached, ended, broke its answer off, or answered with a fault of its own
    # (5xx). The peer's other types are of a wire that is not here.
    GENERATE: Final = "generate"


class worker_type:  # noqa: N801
    """Values of `labels.WORKER_TYPE`; who answers is called `decode` by the peer too."""

    DECODE: Final = "decode"


class phase:  # noqa: N801
    """Values of `labels.PHASE`."""

    NONE: Final = ""
    AGGREGATED: Final = "aggregated"


UNKNOWN_MODEL: Final = "unknown_model"
"""`model` of every request for a name that no engine has registered."""

NO_DP_RANK: Final = "none"
"""`dp_rank` where a worker chooses the rank itself."""


def label_value(text: str) -> str:
    """`text` as a label's value: half characters, which no page can hold, become `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def sanitize_prometheus_name(name: str) -> str:
    """`name` as a metric's name: what no such name can hold becomes `_`.

    One that does not begin with a letter or `_` gets a `_` in front, as the peer's do.

    Raises:
        ArgumentError: nothing of it can stand in one.
    """
    return _sanitized(name, re.compile(r"[^a-zA-Z0-9_:]", re.ASCII), "metric")


def sanitize_prometheus_label(name: str) -> str:
    """`name` as a label's name: as a metric's, without colons, and never with `__` in front.

    Such a beginning is left out, as the peer does it; of a longer one (`___name`) the peer leaves
    a reserved name, and here nothing is left of it.

    Raises:
        ArgumentError: nothing of it can stand in one.
    """
    clean = _sanitized(name, re.compile(r"[^a-zA-Z0-9_]", re.ASCII), "label")
    return _begun(clean.lstrip("_")) if clean.startswith("__") else clean


def sanitize_frontend_prometheus_prefix(prefix: str) -> str:
    """What names of the frontend's families begin with: `prefix`, or the usual one for none."""
    try:
        return sanitize_prometheus_name(prefix)
    except ArgumentError:
        return name_prefix.FRONTEND


def build_component_metric_name(name: str) -> str:
    """The whole name of a component's metric: `dynamo_component_` in front, once.

    Raises:
        ArgumentError: nothing of it can stand in a name.
    """
    clean = sanitize_prometheus_name(name)
    whole = clean.startswith(f"{name_prefix.COMPONENT}_")
    return clean if whole else f"{name_prefix.COMPONENT}_{clean}"


def _sanitized(name: str, invalid: re.Pattern[str], what: str) -> str:
    if not isinstance(name, str):
        raise ArgumentError(f"{name!r} is no name of a {what}: a text is")
    clean = _begun(invalid.sub("_", name))
    if not clean.strip("_"):
        raise ArgumentError(
            f"{name!r} is no name of a {what}: it needs a letter or a digit, as in 'requests'"
        )
    return clean


def _begun(name: str) -> str:
    """`name`, with a `_` in front where it begins with a digit or a colon."""
    return name if re.match(r"[a-zA-Z_]", name) else f"_{name}"
