"""The names of SGLang's families that the project reads, simulates or shows, as constants.

The names are those of SGLang 0.5.23; `names` has the project's own.
"""

from __future__ import annotations

from typing import Final

from dynamometer.names import name_prefix
from dynamometer.runtime.engine_metrics import RequestTotals


class sglang:  # noqa: N801
    """Families: full names."""

    CACHED_TOKENS_TOTAL: Final = "sglang:cached_tokens_total"
    CACHE_HIT_RATE: Final = "sglang:cache_hit_rate"
    DECODE_DEFERRED_KV_RELEASE_SECONDS: Final = "sglang:decode_deferred_kv_release_seconds"
    DECODE_DEFERRED_KV_RELEASE_TOTAL: Final = "sglang:decode_deferred_kv_release_total"
    E2E_REQUEST_LATENCY_SECONDS: Final = "sglang:e2e_request_latency_seconds"
    EVICTED_TOKENS_TOTAL: Final = "sglang:evicted_tokens_total"
    GENERATION_TOKENS_HISTOGRAM: Final = "sglang:generation_tokens_histogram"
    GENERATION_TOKENS_TOTAL: Final = "sglang:generation_tokens_total"
    GEN_THROUGHPUT: Final = "sglang:gen_throughput"
    GRAPH_MEMORY_USAGE_GB: Final = "sglang:graph_memory_usage_gb"
    HICACHE_BACKUP_BYTES_TOTAL: Final = "sglang:hicache_backup_bytes_total"
    HICACHE_BACKUP_DROPPED_TOKENS_TOTAL: Final = "sglang:hicache_backup_dropped_tokens_total"
    HICACHE_BACKUP_DURATION_SECONDS: Final = "sglang:hicache_backup_duration_seconds"
    HICACHE_DROPPED_TOKENS_TOTAL: Final = "sglang:hicache_dropped_tokens_total"
    HICACHE_HOST_TOTAL_TOKENS: Final = "sglang:hicache_host_total_tokens"
    HICACHE_HOST_USED_TOKENS: Final = "sglang:hicache_host_used_tokens"
    HTTP_REQUESTS_ACTIVE: Final = "sglang:http_requests_active"
    HTTP_RESPONSES_TOTAL: Final = "sglang:http_responses_total"
    INTER_TOKEN_LATENCY_SECONDS: Final = "sglang:inter_token_latency_seconds"
    KV_AVAILABLE_TOKENS: Final = "sglang:kv_available_tokens"
    KV_CACHE_MEMORY_USAGE_GB: Final = "sglang:kv_cache_memory_usage_gb"
    KV_EVICTABLE_TOKENS: Final = "sglang:kv_evictable_tokens"
    KV_TRANSFER_ALLOC_MS: Final = "sglang:kv_transfer_alloc_ms"
    KV_TRANSFER_BOOTSTRAP_MS: Final = "sglang:kv_transfer_bootstrap_ms"
    KV_TRANSFER_LATENCY_MS: Final = "sglang:kv_transfer_latency_ms"
    KV_TRANSFER_SPEED_GB_S: Final = "sglang:kv_transfer_speed_gb_s"
    KV_TRANSFER_TOTAL_MB: Final = "sglang:kv_transfer_total_mb"
    KV_USED_TOKENS: Final = "sglang:kv_used_tokens"
    LOAD_BACK_BYTES_TOTAL: Final = "sglang:load_back_bytes_total"
    LOAD_BACK_DURATION_SECONDS: Final = "sglang:load_back_duration_seconds"
    LORA_POOL_SLOTS_TOTAL: Final = "sglang:lora_pool_slots_total"
    LORA_POOL_SLOTS_USED: Final = "sglang:lora_pool_slots_used"
    MAX_TOTAL_NUM_TOKENS: Final = "sglang:max_total_num_tokens"
    NEW_TOKEN_RATIO: Final = "sglang:new_token_ratio"
    NUM_ABORTED_REQUESTS_TOTAL: Final = "sglang:num_aborted_requests_total"
    NUM_BOOTSTRAP_FAILED_REQS_TOTAL: Final = "sglang:num_bootstrap_failed_reqs_total"
    NUM_DECODE_DEFERRED_KV_RELEASE_REQS: Final = "sglang:num_decode_deferred_kv_release_reqs"
    NUM_DECODE_HOST_RECEIVE_QUEUE_REQS: Final = "sglang:num_decode_host_receive_queue_reqs"
    NUM_DECODE_PREALLOC_QUEUE_REQS: Final = "sglang:num_decode_prealloc_queue_reqs"
    NUM_DECODE_TRANSFER_QUEUE_REQS: Final = "sglang:num_decode_transfer_queue_reqs"
    NUM_GRAMMAR_QUEUE_REQS: Final = "sglang:num_grammar_queue_reqs"
    NUM_PAGES: Final = "sglang:num_pages"
    NUM_PAUSED_REQS: Final = "sglang:num_paused_reqs"
    NUM_PREFILL_BOOTSTRAP_QUEUE_REQS: Final = "sglang:num_prefill_bootstrap_queue_reqs"
    NUM_PREFILL_INFLIGHT_QUEUE_REQS: Final = "sglang:num_prefill_inflight_queue_reqs"
    NUM_PREFILL_RETRIES_TOTAL: Final = "sglang:num_prefill_retries_total"
    NUM_QUEUE_REQS: Final = "sglang:num_queue_reqs"
    NUM_REQUESTS_TOTAL: Final = "sglang:num_requests_total"
    NUM_RETRACTED_REQS: Final = "sglang:num_retracted_reqs"
    NUM_RETRACTED_REQUESTS_TOTAL: Final = "sglang:num_retracted_requests_total"
    NUM_RUNNING_REQS: Final = "sglang:num_running_reqs"
    NUM_TRANSFER_FAILED_REQS_TOTAL: Final = "sglang:num_transfer_failed_reqs_total"
    NUM_USED_TOKENS: Final = "sglang:num_used_tokens"
    PAGE_SIZE: Final = "sglang:page_size"
    PENDING_PREALLOC_TOKEN_USAGE: Final = "sglang:pending_prealloc_token_usage"
    PER_STAGE_REQ_LATENCY_SECONDS: Final = "sglang:per_stage_req_latency_seconds"
    PREALLOC_FULL_TOKEN_USAGE: Final = "sglang:prealloc_full_token_usage"
    PREFETCHED_TOKENS_TOTAL: Final = "sglang:prefetched_tokens_total"
    PREFILL_EFFECTIVE_TOKENS_TOTAL: Final = "sglang:prefill_effective_tokens_total"
    PROMPT_TOKENS_HISTOGRAM: Final = "sglang:prompt_tokens_histogram"
    PROMPT_TOKENS_TOTAL: Final = "sglang:prompt_tokens_total"
    QUEUE_TIME_SECONDS: Final = "sglang:queue_time_seconds"
    REALTIME_TOKENS_TOTAL: Final = "sglang:realtime_tokens_total"
    SCHEDULER_STAGE_SECONDS_TOTAL: Final = "sglang:scheduler_stage_seconds_total"
    SPEC_ACCEPT_LENGTH: Final = "sglang:spec_accept_length"
    SPEC_ACCEPT_RATE: Final = "sglang:spec_accept_rate"
    SPEC_NUM_DRAFT_TOKENS: Final = "sglang:spec_num_draft_tokens"
    SPEC_VERIFY_CALLS_TOTAL: Final = "sglang:spec_verify_calls_total"
    STARTUP_TIME_SECONDS: Final = "sglang:startup_time_seconds"
    STORAGE_PREFETCH_HIT_TOKENS_TOTAL: Final = "sglang:storage_prefetch_hit_tokens_total"
    STORAGE_PREFETCH_UNFULFILLED_TOKENS_TOTAL: Final = (
        "sglang:storage_prefetch_unfulfilled_tokens_total"
    )
    TIME_TO_FIRST_TOKEN_SECONDS: Final = "sglang:time_to_first_token_seconds"
    TOKEN_USAGE: Final = "sglang:token_usage"
    WEIGHT_MEMORY_USAGE_GB: Final = "sglang:weight_memory_usage_gb"


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

# The families that `dyno demo` shows, by the categories of SGLang's documentation. Those of the
# last category change only where prefill and decode are apart; each side has its own.
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
        sglang.NUM_PREFILL_BOOTSTRAP_QUEUE_REQS,
        sglang.NUM_PREFILL_INFLIGHT_QUEUE_REQS,
        sglang.NUM_DECODE_PREALLOC_QUEUE_REQS,
        sglang.NUM_DECODE_TRANSFER_QUEUE_REQS,
        sglang.NUM_DECODE_HOST_RECEIVE_QUEUE_REQS,
        sglang.NUM_DECODE_DEFERRED_KV_RELEASE_REQS,
        sglang.PENDING_PREALLOC_TOKEN_USAGE,
        sglang.KV_TRANSFER_BOOTSTRAP_MS,
        sglang.KV_TRANSFER_ALLOC_MS,
        sglang.KV_TRANSFER_LATENCY_MS,
        sglang.KV_TRANSFER_SPEED_GB_S,
        sglang.KV_TRANSFER_TOTAL_MB,
        sglang.DECODE_DEFERRED_KV_RELEASE_SECONDS,
        sglang.DECODE_DEFERRED_KV_RELEASE_TOTAL,
        sglang.NUM_BOOTSTRAP_FAILED_REQS_TOTAL,
        sglang.NUM_TRANSFER_FAILED_REQS_TOTAL,
        sglang.NUM_PREFILL_RETRIES_TOTAL,
    ),
}
