"""All metric names, label names and label values that the project writes, as constants.

The `dynamo_*` names and the labels are those of NVIDIA Dynamo 1.6.1, so that its dashboards and
alerts keep working; the classes are grouped as in its `prometheus_names`. The project's additional
families start with `dynamometer_`. A test fails if another module contains one of these names.
"""

from __future__ import annotations

import re
from typing import Final

from dynamometer.errors import ArgumentError


class name_prefix:  # noqa: N801  # NVIDIA Dynamo's spelling, which users import
    """Prefixes of metric names."""

    COMPONENT: Final = "dynamo_component"
    FRONTEND: Final = "dynamo_frontend"
    REQUEST_PLANE: Final = "dynamo_request_plane"
    WORK_HANDLER: Final = "dynamo_work_handler"
    SGLANG: Final = "sglang:"
    PROCESS: Final = "process"
    # Additional families of this project.
    DYNAMOMETER: Final = "dynamometer"


class labels:  # noqa: N801
    """Label names."""

    NAMESPACE: Final = "dynamo_namespace"
    COMPONENT: Final = "dynamo_component"
    ENDPOINT: Final = "dynamo_endpoint"
    MODEL: Final = "model"
    # The engines' own label for the model.
    MODEL_NAME: Final = "model_name"
    WORKER_ID: Final = "worker_id"
    WORKER_TYPE: Final = "worker_type"
    DP_RANK: Final = "dp_rank"
    ERROR_TYPE: Final = "error_type"
    # Labels of the frontend's families: the route, streamed or not, the result, the stage.
    ROUTE: Final = "endpoint"
    REQUEST_TYPE: Final = "request_type"
    STATUS: Final = "status"
    # Labels of the workers that a frontend knows.
    MODE: Final = "mode"
    STATE: Final = "state"
    FAILURE_CLASS: Final = "class"
    REASON: Final = "reason"
    STAGE: Final = "stage"
    PHASE: Final = "phase"
    # The name of an engine on an exporter's page: the user's, or a generated one.
    ENGINE: Final = "engine"
    SOURCE: Final = "source"
    # Labels of SGLang's families.
    ENGINE_TYPE: Final = "engine_type"
    IS_STREAMING: Final = "is_streaming"
    PRIORITY: Final = "priority"
    TP_RANK: Final = "tp_rank"
    # Labels of the families that describe software and hardware.
    VERSION: Final = "version"
    ENGINE_VERSION: Final = "engine_version"
    PYTHON_VERSION: Final = "python_version"
    KIND: Final = "kind"
    INDEX: Final = "index"
    UUID: Final = "uuid"
    # The place of a worker in an engine that runs on several nodes.
    NODE_RANK: Final = "node_rank"
    NODES: Final = "nodes"


class frontend_service:  # noqa: N801
    """Families of the frontend: suffixes to `name_prefix.FRONTEND` and `_`."""

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
    # A family of earlier releases of NVIDIA Dynamo; dashboards still read it.
    MODEL_WORKERS: Final = "model_workers"
    WORKER_LAST_TIME_TO_FIRST_TOKEN_SECONDS: Final = "worker_last_time_to_first_token_seconds"
    WORKER_LAST_INTER_TOKEN_LATENCY_SECONDS: Final = "worker_last_inter_token_latency_seconds"
    WORKER_LAST_INPUT_SEQUENCE_TOKENS: Final = "worker_last_input_sequence_tokens"


class frontend_resilience:  # noqa: N801
    """Families of the frontend about workers in trouble: full names."""

    RETRIES_TOTAL: Final = "dynamometer_frontend_retries_total"
    WORKERS: Final = "dynamometer_frontend_workers"


class frontend_perf:  # noqa: N801
    """Families of stages and the event loop: suffixes to `name_prefix.FRONTEND` and `_`."""

    STAGE_DURATION_SECONDS: Final = "stage_duration_seconds"
    STAGE_REQUESTS: Final = "stage_requests"
    EVENT_LOOP_DELAY_SECONDS: Final = "event_loop_delay_seconds"
    EVENT_LOOP_STALL_TOTAL: Final = "event_loop_stall_total"
    # Values of `labels.STAGE`.
    STAGE_PREPROCESS: Final = "preprocess"
    STAGE_ROUTE: Final = "route"
    STAGE_DISPATCH: Final = "dispatch"
    STAGE_TRANSPORT_ROUNDTRIP: Final = "transport_roundtrip"


class frontend_processes:  # noqa: N801
    """Families of a frontend's processes: full names."""

    RESTARTS_TOTAL: Final = "dynamometer_frontend_process_restarts_total"


class request_plane:  # noqa: N801
    """Families of the requests to the workers: suffixes to `name_prefix.REQUEST_PLANE` and `_`."""

    QUEUE_SECONDS: Final = "queue_seconds"
    ROUNDTRIP_TTFT_SECONDS: Final = "roundtrip_ttft_seconds"
    INFLIGHT_REQUESTS: Final = "inflight_requests"


class work_handler:  # noqa: N801
    """Families of a worker's endpoint: suffixes to `name_prefix.COMPONENT` and `_`.

    `TIME_TO_FIRST_RESPONSE_SECONDS` is a suffix to `name_prefix.WORK_HANDLER` and `_`.
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
    """Families of a worker's KV cache: suffixes to `name_prefix.COMPONENT` and `_`."""

    TOTAL_BLOCKS: Final = "total_blocks"
    GPU_CACHE_USAGE_PERCENT: Final = "gpu_cache_usage_percent"
    KV_CACHE_HIT_RATE: Final = "kv_cache_hit_rate"


class model_info:  # noqa: N801
    """Families of a worker's model: suffixes to `name_prefix.COMPONENT` and `_`."""

    LOAD_TIME_SECONDS: Final = "model_load_time_seconds"


class distributed_runtime:  # noqa: N801
    """Families of every process: suffixes to `name_prefix.COMPONENT` and `_`."""

    UPTIME_SECONDS: Final = "uptime_seconds"


class process:  # noqa: N801
    """Families of prometheus_client: full names."""

    CPU_SECONDS_TOTAL: Final = "process_cpu_seconds_total"
    MAX_FDS: Final = "process_max_fds"
    OPEN_FDS: Final = "process_open_fds"
    RESIDENT_MEMORY_BYTES: Final = "process_resident_memory_bytes"
    START_TIME_SECONDS: Final = "process_start_time_seconds"


class scrape:  # noqa: N801
    """Families about the page itself: full names."""

    ERRORS_TOTAL: Final = "dynamometer_engine_scrape_errors_total"


class engine_state:  # noqa: N801
    """Families about the engine's state: full names."""

    UP: Final = "dynamometer_engine_up"
    STATE: Final = "dynamometer_engine_state"
    RESTARTS_TOTAL: Final = "dynamometer_engine_restarts_total"
    LAST_PROGRESS_TIMESTAMP_SECONDS: Final = "dynamometer_engine_last_progress_timestamp_seconds"
    LAST_CHANGE_TIMESTAMP_SECONDS: Final = "dynamometer_engine_last_change_timestamp_seconds"
    START_TIME_SECONDS: Final = "dynamometer_engine_start_time_seconds"
    LAST_EXIT_CODE: Final = "dynamometer_engine_last_exit_code"
    DIRECTORY_BYTES: Final = "dynamometer_engine_metrics_directory_bytes"
    DIRECTORY_AVAILABLE_BYTES: Final = "dynamometer_engine_metrics_directory_available_bytes"


class engine_load:  # noqa: N801
    """Families derived from the engine's own, with one series per engine: full names.

    Those with `RANK_` in their names have one series per data-parallel rank.
    """

    RUNNING_REQUESTS: Final = "dynamometer_engine_running_requests"
    QUEUED_REQUESTS: Final = "dynamometer_engine_queued_requests"
    KV_USAGE_RATIO: Final = "dynamometer_engine_kv_usage_ratio"
    RANK_RUNNING_REQUESTS: Final = "dynamometer_engine_rank_running_requests"
    RANK_QUEUED_REQUESTS: Final = "dynamometer_engine_rank_queued_requests"
    RANK_KV_USAGE_RATIO: Final = "dynamometer_engine_rank_kv_usage_ratio"
    GENERATION_TOKENS_TOTAL: Final = "dynamometer_engine_generation_tokens_total"
    PROMPT_TOKENS_TOTAL: Final = "dynamometer_engine_prompt_tokens_total"
    CACHED_PROMPT_TOKENS_TOTAL: Final = "dynamometer_engine_cached_prompt_tokens_total"


class fleet:  # noqa: N801
    """Families of the page about all workers: full names."""

    UP: Final = "dynamometer_fleet_up"
    LAST_SUCCESS_TIMESTAMP_SECONDS: Final = "dynamometer_fleet_last_success_timestamp_seconds"


class build:  # noqa: N801
    """Families that describe the software and the hardware: full names."""

    INFO: Final = "dynamometer_build_info"
    WORKER_INFO: Final = "dynamometer_worker_info"
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
    """Values of `labels.ERROR_TYPE` in the frontend's families; empty for a success."""

    NONE: Final = ""
    VALIDATION: Final = "validation"
    NOT_FOUND: Final = "not_found"
    OVERLOAD: Final = "overload"
    UNAVAILABLE: Final = "unavailable"
    CANCELLED: Final = "cancelled"
    INTERNAL: Final = "internal"
    NOT_IMPLEMENTED: Final = "not_implemented"


class failure_class:  # noqa: N801
    """Values of `labels.FAILURE_CLASS`; the names are NVIDIA Dynamo's."""

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
    """Values of `labels.REASON` of a failure; the names are NVIDIA Dynamo's."""

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


class retry_reason:  # noqa: N801
    """Values of `labels.REASON` in the family of retries."""

    # No connection to the worker was made.
    CANNOT_CONNECT: Final = "cannot_connect"
    # The worker answered that its engine did not receive the request.
    WORKER_NOT_READY: Final = "worker_not_ready"
    # The request was not retried, because too many requests were.
    BUDGET_EXHAUSTED: Final = "budget_exhausted"


class component_error_type:  # noqa: N801
    """Values of `labels.ERROR_TYPE` in the families of a worker's endpoint."""

    # The engine is unreachable, has ended, broke the connection mid-response, or answered with 5xx.
    # NVIDIA Dynamo's other types are about its own transport, which does not exist here.
    GENERATE: Final = "generate"


class worker_type:  # noqa: N801
    """Values of `labels.WORKER_TYPE`: `decode` for workers that answer, as in NVIDIA Dynamo."""

    DECODE: Final = "decode"


class phase:  # noqa: N801
    """Values of `labels.PHASE`."""

    NONE: Final = ""
    AGGREGATED: Final = "aggregated"


UNKNOWN_MODEL: Final = "unknown_model"
"""The value of `labels.MODEL` for requests whose model is not registered."""

NO_DP_RANK: Final = "none"
"""The value of `labels.DP_RANK` if the worker itself chooses the rank."""


def label_value(text: str) -> str:
    """Return `text` with `?` for each unpaired surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def sanitize_prometheus_name(name: str) -> str:
    """Return `name` as a metric name: each invalid character becomes `_`.

    A result that does not begin with a letter or `_` gets the prefix `_`, as in NVIDIA Dynamo.

    Raises:
        ArgumentError: `name` has no character that is valid in a metric name.
    """
    return _sanitize(name, re.compile(r"[^a-zA-Z0-9_:]", re.ASCII), "metric")


def sanitize_prometheus_label(name: str) -> str:
    """Return `name` as a label name, by the rules of metric names, but without colons.

    A name that begins with `__` is reserved: all leading underscores are removed, of which NVIDIA
    Dynamo keeps some.

    Raises:
        ArgumentError: `name` has no character that is valid in a label name.
    """
    clean = _sanitize(name, re.compile(r"[^a-zA-Z0-9_]", re.ASCII), "label")
    return _with_valid_start(clean.lstrip("_")) if clean.startswith("__") else clean


def sanitize_frontend_prometheus_prefix(prefix: str) -> str:
    """Return `prefix` as the prefix of the frontend's families; the default if it is not valid."""
    try:
        return sanitize_prometheus_name(prefix)
    except ArgumentError:
        return name_prefix.FRONTEND


def build_component_metric_name(name: str) -> str:
    """Return the full name of a component's metric, with the prefix `dynamo_component_` once.

    Raises:
        ArgumentError: `name` has no character that is valid in a metric name.
    """
    clean = sanitize_prometheus_name(name)
    prefixed = clean.startswith(f"{name_prefix.COMPONENT}_")
    return clean if prefixed else f"{name_prefix.COMPONENT}_{clean}"


def _sanitize(name: str, invalid: re.Pattern[str], kind: str) -> str:
    if not isinstance(name, str):
        raise ArgumentError(f"{name!r} is not a valid name of a {kind}: it must be a string")
    clean = _with_valid_start(invalid.sub("_", name))
    if not clean.strip("_"):
        raise ArgumentError(
            f"{name!r} is not a valid name of a {kind}: it needs a letter or a digit, as in "
            "'requests'"
        )
    return clean


def _with_valid_start(name: str) -> str:
    return name if re.match(r"[a-zA-Z_]", name) else f"_{name}"
