"""What docs/metrics.md says of families beyond what a page shows: what moves each, and why some of
the peer's are not served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from dynamometer.frontend import failures
from dynamometer.frontend.failures import Failure
from dynamometer.names import (
    build,
    distributed_runtime,
    engine_load,
    engine_state,
    frontend_perf,
    frontend_service,
    kvstats,
    model_info,
    name_prefix,
    request_plane,
    scrape,
    work_handler,
)


def _frontend(name: str) -> str:
    return f"{name_prefix.FRONTEND}_{name}"


def _component(name: str) -> str:
    return f"{name_prefix.COMPONENT}_{name}"


MOVES: Final[Mapping[str, str]] = {
    _frontend(frontend_service.REQUESTS_STARTED_TOTAL): "a request whose body was read, or could "
    "not be; +1",
    _frontend(frontend_service.REQUESTS_TOTAL): "a request's end, however it ended; +1. `error_type`"
    " is empty for a success, else `validation`, `not_found`, `overload`, `cancelled` or `internal`",
    _frontend(frontend_service.ACTIVE_REQUESTS): "+1 when a request was read, −1 at its end",
    _frontend(frontend_service.INFLIGHT_REQUESTS): "+1 when a request is sent to a worker, −1 at "
    "its end. Deprecated by the peer for `active_requests`; served for its users",
    _frontend(frontend_service.QUEUED_REQUESTS): "+1 when a request was read, −1 when its answer's "
    "first bytes come, or at its end. Deprecated by the peer for `stage_requests`; served for its "
    "users",
    _frontend(frontend_service.DISCONNECTED_CLIENTS): "a client that went away before its answer's "
    "end; only rises, as the peer's users know it",
    _frontend(frontend_service.MODEL_CANCELLATION_TOTAL): "the same, by model, route and kind; +1",
    _frontend(frontend_service.FAILURES_TOTAL): "a request that failed, not one that was cancelled;"
    " +1",
    _frontend(frontend_service.REQUEST_DURATION_SECONDS): "a request's end: since its handler's "
    "entry",
    _frontend(frontend_service.TIME_TO_FIRST_TOKEN_SECONDS): "the end of a stream: from the "
    "handler's entry to its first event with content. Of streams only",
    _frontend(frontend_service.INTER_TOKEN_LATENCY_SECONDS): "the end of a stream: the times between"
    " its events with content, one fewer than events",
    _frontend(frontend_service.INPUT_SEQUENCE_TOKENS): "a request's end: its prompt, as the engine's"
    " usage has it",
    _frontend(frontend_service.OUTPUT_SEQUENCE_TOKENS): "a request's end: its answer, as the "
    "engine's usage has it",
    _frontend(frontend_service.CACHED_TOKENS): "a request's end: prompt tokens that were in the "
    "prefix cache, where the usage says so",
    _frontend(frontend_service.OUTPUT_TOKENS_TOTAL): "a request's end (the peer's: each token); "
    "tokens of its answer",
    _frontend(frontend_service.MODEL_CONTEXT_LENGTH): "the engine's `/server_info`",
    _frontend(frontend_service.MODEL_TOTAL_KV_BLOCKS): "the same: blocks of the whole worker",
    _frontend(frontend_service.MODEL_KV_CACHE_BLOCK_SIZE): "the same: tokens a block",
    _frontend(frontend_service.MODEL_MAX_NUM_SEQS): "the same: requests that run at once",
    _frontend(frontend_service.MODEL_MAX_NUM_BATCHED_TOKENS): "the same: prefill tokens at once",
    _frontend(frontend_service.MODEL_MIGRATION_LIMIT): "nothing: a request that has begun is never "
    "moved to another worker",
    _frontend(frontend_service.MODEL_READY): "1 while a worker serves the model, else 0",
    _frontend(frontend_service.MODEL_WORKERS): "ready workers that serve the model",
    _frontend(frontend_service.WORKER_LAST_TIME_TO_FIRST_TOKEN_SECONDS): "the end of a stream from "
    "the worker",
    _frontend(frontend_service.WORKER_LAST_INTER_TOKEN_LATENCY_SECONDS): "the same: its last gap",
    _frontend(frontend_service.WORKER_LAST_INPUT_SEQUENCE_TOKENS): "the end of a request to the "
    "worker. `worker_id` is decimal in these three, as the peer's",
    _frontend(frontend_perf.STAGE_DURATION_SECONDS): "a request's end: `preprocess` reads the body, "
    "`route` chooses a worker, `transport_roundtrip` waits for the answer's first bytes",
    _frontend(frontend_perf.STAGE_REQUESTS): "requests that are in a stage now; `dispatch` is the "
    "wait for the answer's first bytes",
    _frontend(frontend_perf.EVENT_LOOP_DELAY_SECONDS): "every 10 ms: how late the event loop comes "
    "back",
    _frontend(frontend_perf.EVENT_LOOP_STALL_TOTAL): "a delay above 5 ms; +1",
    f"{name_prefix.REQUEST_PLANE}_{request_plane.QUEUE_SECONDS}": "a request's end: from the "
    "handler's entry until it was sent to a worker",
    f"{name_prefix.REQUEST_PLANE}_{request_plane.ROUNDTRIP_TTFT_SECONDS}": "a request's end: from "
    "sending it until the answer's first bytes",
    f"{name_prefix.REQUEST_PLANE}_{request_plane.INFLIGHT_REQUESTS}": "requests at workers now",
    _component(distributed_runtime.UPTIME_SECONDS): "time, since the process's start",
    _component(work_handler.REQUESTS_TOTAL): "a request's end; +1",
    _component(work_handler.REQUEST_DURATION_SECONDS): "a request's end: since its arrival",
    _component(work_handler.REQUEST_BYTES_TOTAL): "a request's end: bytes of its body",
    _component(work_handler.RESPONSE_BYTES_TOTAL): "a request's end: bytes of its answer's body",
    _component(work_handler.INFLIGHT_REQUESTS): "requests at the worker now",
    _component(work_handler.CANCELLATION_TOTAL): "a request whose client, or frontend, went away; "
    "+1",
    _component(work_handler.ERRORS_TOTAL): "a request that the engine failed; +1. `generate`: it was"
    " not reached, ended, or answered with a fault of its own (5xx); `response_stream`: its answer "
    "broke off",
    f"{name_prefix.WORK_HANDLER}_{work_handler.TIME_TO_FIRST_RESPONSE_SECONDS}": "a request's end: "
    "from its arrival at the worker until the engine's answer began",
    _component(model_info.LOAD_TIME_SECONDS): "set once: from the engine's start until its model "
    "answered",
    _component(kvstats.TOTAL_BLOCKS): "`sglang:num_pages` of the scrape",
    _component(kvstats.GPU_CACHE_USAGE_PERCENT): "`sglang:token_usage` of the scrape; a part of 1, "
    "whatever its name says, as the peer's",
    _component(kvstats.KV_CACHE_HIT_RATE): "`sglang:cache_hit_rate` of the scrape; a part of 1",
    engine_load.RUNNING_REQUESTS: "`sglang:num_running_reqs` of the scrape",
    engine_load.QUEUED_REQUESTS: "`sglang:num_queue_reqs` of the scrape, with the grammar queue and "
    "the queues of prefill and decode",
    engine_load.KV_USAGE_RATIO: "`sglang:token_usage` of the scrape, averaged over data-parallel "
    "ranks",
    engine_load.GENERATION_TOKENS_TOTAL: "`sglang:generation_tokens_total` of the scrape",
    engine_state.UP: "1 while the engine beside an exporter is ready, else 0",
    scrape.ERRORS_TOTAL: "a scrape that had to leave a source, a file or a series out; +1 each",
    build.INFO: "1; `engine_version` is there once the engine has said it",
    build.ACCELERATOR_INFO: "1 for each device whose driver gives it a UUID; not there without any",
}
"""What moves a family, by its name in the text format."""

FAILURES: Final[Mapping[Failure, str]] = {
    failures.UNREADABLE: "the body is no request that can be read",
    failures.REFUSED: "what it says is refused, by the frontend or by the engine (400, 413, 422)",
    failures.UNAUTHENTICATED: "the engine wants a key, or another one (401)",
    failures.FORBIDDEN: "the engine allows it to nobody (403)",
    failures.NOT_FOUND: "no engine has registered the model, or the engine knows no such thing (404)",
    failures.OVERLOADED: "the engine takes no more for now (429, 503, 529)",
    failures.NO_WORKER: "no worker is ready for the model, or the frontend is ending",
    failures.NOT_REACHED: "no worker took a connection",
    failures.WORKER_LOST: "the worker was lost before its answer",
    failures.ENGINE_DIED: "the engine was lost before its answer, as its worker says (502)",
    failures.BROKEN_OFF: "the answer broke off",
    failures.ENGINE_FAULT: "the engine answered with a fault of its own (5xx)",
    failures.INTERNAL: "a fault of the frontend's own",
}
"""What a kind of failure was."""

_TOKENIZER: Final = "SGLang tokenizes, not the frontend: its own page has what there is to know"
_KV_ROUTER: Final = "there is no KV-aware router here: workers are chosen in turn, at random, or by load"
NOT_SERVED: Final[Sequence[tuple[str, str]]] = (
    ("dynamo_tokio_*", "there is no tokio: `dynamo_frontend_event_loop_*` answers the question"),
    ("dynamo_component_router_*", _KV_ROUTER),
    ("dynamo_router_*", _KV_ROUTER),
    ("dynamo_frontend_tokenize*", _TOKENIZER),
    ("dynamo_frontend_detokenize_*", _TOKENIZER),
    ("dynamo_frontend_template_seconds", "SGLang applies the chat template"),
    (
        "dynamo_frontend_*_per_request",
        "the frontend does not take messages apart: what a request means is the engine's business",
    ),
    (
        "dynamo_transport_tcp_*",
        "workers are spoken to by HTTP: bytes are in `dynamo_component_request_bytes_total` and "
        "`dynamo_component_response_bytes_total`",
    ),
    (
        "dynamo_request_plane_send_seconds",
        "sending and waiting for the answer are one call of the HTTP client here: "
        "`dynamo_request_plane_roundtrip_ttft_seconds` has both",
    ),
    (
        "dynamo_work_handler_network_transit_seconds",
        "it compares the clocks of two machines; `dynamo_request_plane_roundtrip_ttft_seconds` less "
        "`dynamo_work_handler_time_to_first_response_seconds` is the way there and back by one clock",
    ),
    (
        "dynamo_work_handler_*",
        "a worker has no pool and no queue of its own: it hands each request to the engine at once, "
        "whose queue is `dynamometer_engine_queued_requests`",
    ),
    ("dynamo_engine_request", "`dynamo_component_inflight_requests`: the worker sets no limit"),
    ("dynamo_request_queue", "the worker keeps no queue: `dynamometer_engine_queued_requests`"),
    ("dynamo_rejection_request_total", "the worker rejects none for its load: it has no limit"),
)
"""The peer's families (names, `*` for any end) that have no meaning here, and why; first match."""
