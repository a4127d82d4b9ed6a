"""The names of SGLang's families that the project reads or simulates, as constants.

The names are those of SGLang 0.5.23; `names` has the project's own.
"""

from __future__ import annotations

from typing import Final

from dynamometer.names import name_prefix
from dynamometer.runtime.engine_metrics import RequestTotals


class sglang:  # noqa: N801
    """Families: full names."""

    CACHE_HIT_RATE: Final = "sglang:cache_hit_rate"
    CACHED_TOKENS_TOTAL: Final = "sglang:cached_tokens_total"
    E2E_REQUEST_LATENCY_SECONDS: Final = "sglang:e2e_request_latency_seconds"
    GEN_THROUGHPUT: Final = "sglang:gen_throughput"
    GENERATION_TOKENS_TOTAL: Final = "sglang:generation_tokens_total"
    HTTP_REQUESTS_ACTIVE: Final = "sglang:http_requests_active"
    INTER_TOKEN_LATENCY_SECONDS: Final = "sglang:inter_token_latency_seconds"
    KV_TRANSFER_LATENCY_MS: Final = "sglang:kv_transfer_latency_ms"
    KV_TRANSFER_SPEED_GB_S: Final = "sglang:kv_transfer_speed_gb_s"
    KV_TRANSFER_TOTAL_MB: Final = "sglang:kv_transfer_total_mb"
    MAX_TOTAL_NUM_TOKENS: Final = "sglang:max_total_num_tokens"
    NUM_ABORTED_REQUESTS_TOTAL: Final = "sglang:num_aborted_requests_total"
    NUM_DECODE_PREALLOC_QUEUE_REQS: Final = "sglang:num_decode_prealloc_queue_reqs"
    NUM_DECODE_TRANSFER_QUEUE_REQS: Final = "sglang:num_decode_transfer_queue_reqs"
    NUM_GRAMMAR_QUEUE_REQS: Final = "sglang:num_grammar_queue_reqs"
    NUM_PAGES: Final = "sglang:num_pages"
    NUM_PREFILL_BOOTSTRAP_QUEUE_REQS: Final = "sglang:num_prefill_bootstrap_queue_reqs"
    NUM_PREFILL_INFLIGHT_QUEUE_REQS: Final = "sglang:num_prefill_inflight_queue_reqs"
    NUM_QUEUE_REQS: Final = "sglang:num_queue_reqs"
    NUM_REQUESTS_TOTAL: Final = "sglang:num_requests_total"
    NUM_RUNNING_REQS: Final = "sglang:num_running_reqs"
    NUM_USED_TOKENS: Final = "sglang:num_used_tokens"
    PAGE_SIZE: Final = "sglang:page_size"
    PER_STAGE_REQ_LATENCY_SECONDS: Final = "sglang:per_stage_req_latency_seconds"
    PROMPT_TOKENS_TOTAL: Final = "sglang:prompt_tokens_total"
    QUEUE_TIME_SECONDS: Final = "sglang:queue_time_seconds"
    REALTIME_TOKENS_TOTAL: Final = "sglang:realtime_tokens_total"
    TIME_TO_FIRST_TOKEN_SECONDS: Final = "sglang:time_to_first_token_seconds"
    TOKEN_USAGE: Final = "sglang:token_usage"


# Families that change without a request: with time, at a scrape, or at a health check, whose
# request has a prompt and one token. Only requests of users decode further tokens.
REQUEST_TOTALS: Final = RequestTotals(
    prefixes=(name_prefix.SGLANG,),
    excluded=(
        "sglang:cuda_graph_passes",
        "sglang:dp_attention_",
        "sglang:dp_cooperation_",
        "sglang:estimated_",
        "sglang:forward_execution_seconds",
        "sglang:get_loads_duration_seconds",
        "sglang:http_",
        "sglang:per_stage_req_latency_seconds",
        "sglang:prefill_effective_tokens",
        "sglang:process_cpu_seconds",
        "sglang:queue_time_seconds",
        "sglang:scheduler_",
    ),
    parts={sglang.REALTIME_TOKENS_TOTAL: 'mode="decode"'},
)

# The families that `dyno demo` shows, by the categories of SGLang's documentation. Only a
# disaggregated engine has those of the last category.
SGLANG_CATEGORIES: Final = {
    "throughput": (
        sglang.GEN_THROUGHPUT,
        sglang.NUM_REQUESTS_TOTAL,
        sglang.PROMPT_TOKENS_TOTAL,
        sglang.GENERATION_TOKENS_TOTAL,
        sglang.CACHED_TOKENS_TOTAL,
        sglang.CACHE_HIT_RATE,
    ),
    "resource usage": (
        sglang.NUM_RUNNING_REQS,
        sglang.NUM_QUEUE_REQS,
        sglang.TOKEN_USAGE,
        sglang.NUM_USED_TOKENS,
        sglang.MAX_TOTAL_NUM_TOKENS,
    ),
    "latency": (
        sglang.TIME_TO_FIRST_TOKEN_SECONDS,
        sglang.INTER_TOKEN_LATENCY_SECONDS,
        sglang.E2E_REQUEST_LATENCY_SECONDS,
        sglang.QUEUE_TIME_SECONDS,
    ),
    "disaggregation": (
        sglang.KV_TRANSFER_LATENCY_MS,
        sglang.KV_TRANSFER_SPEED_GB_S,
        sglang.KV_TRANSFER_TOTAL_MB,
    ),
}
