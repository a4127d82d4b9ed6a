"""The dashboard of SGLang's own families: latency, throughput, KV cache, memory, features."""

from __future__ import annotations

from typing import Final

from dynamometer.engines.sglang_feature_panels import FEATURES
from dynamometer.engines.sglang_names import sglang
from dynamometer.engines.sglang_queries import (
    CACHED,
    PREFILL,
    RANKS,
    REQUESTS,
    TOTALS,
    VARIABLES,
    cache_events,
    events,
    gauge,
    once,
    total,
)
from dynamometer.names import labels
from dynamometer.panels import Dashboard, Panel, Query, Row, Unit, mean, quantiles, rate

# The engine's HTTP server does not know models.
_SERVER: Final = 'instance=~"$instance"'
_AVAILABLE, _EVICTABLE, _USED = (
    gauge(family)
    for family in (sglang.KV_AVAILABLE_TOKENS, sglang.KV_EVICTABLE_TOKENS, sglang.KV_USED_TOKENS)
)
_HITS: Final = f'{RANKS}, mode=~".+_hit"'

_LATENCY: Final = Row(
    "Latency",
    [
        Panel(
            title="Time to first token",
            unit=Unit.SECONDS,
            queries=quantiles(sglang.TIME_TO_FIRST_TOKEN_SECONDS, REQUESTS),
            description="How long do users wait for the first token? If p99 grows and p50 does "
            "not, long prompts or a queue delay some requests: compare with the time in the queue.",
        ),
        Panel(
            title="Inter-token latency",
            unit=Unit.SECONDS,
            queries=quantiles(sglang.INTER_TOKEN_LATENCY_SECONDS, REQUESTS),
            description="How fast do answers flow? It grows with the batch. Peaks of p99 alone "
            "are prefills that interrupt the decoding of other requests.",
        ),
        Panel(
            title="End-to-end latency",
            unit=Unit.SECONDS,
            queries=quantiles(sglang.E2E_REQUEST_LATENCY_SECONDS, REQUESTS),
            description="How long does a whole answer take? It depends on the length of answers: "
            "compare with the tokens per request before you call it slow.",
        ),
        Panel(
            title="Time in the queue",
            unit=Unit.SECONDS,
            queries=quantiles(sglang.QUEUE_TIME_SECONDS, RANKS),
            description="How long do requests wait before they are computed? Any steady value "
            "means that the engine is full: add an instance, or shorten prompts and answers.",
        ),
        Panel(
            title="Mean time by stage",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    mean(sglang.PER_STAGE_REQ_LATENCY_SECONDS, RANKS, by=labels.STAGE),
                    "{{stage}}",
                )
            ],
            description="In which stage do requests spend their time? A stage that grows alone is "
            "the one to examine.",
        ),
        Panel(
            title="Tokens per request",
            unit=Unit.TOKENS,
            queries=[
                Query(
                    mean(sglang.PROMPT_TOKENS_HISTOGRAM, REQUESTS, by=labels.MODEL_NAME),
                    "prompt {{model_name}}",
                ),
                Query(
                    mean(sglang.GENERATION_TOKENS_HISTOGRAM, REQUESTS, by=labels.MODEL_NAME),
                    "answer {{model_name}}",
                ),
            ],
            description="Has the traffic changed? Longer prompts raise the time to the first "
            "token, longer answers the end-to-end latency, without a fault of the engine.",
        ),
    ],
)

_THROUGHPUT: Final = Row(
    "Throughput and queue",
    [
        Panel(
            title="Tokens per second",
            unit=Unit.TOKENS_PER_SECOND,
            queries=[
                Query(total(rate(sglang.REALTIME_TOKENS_TOTAL, RANKS), by="mode"), "{{mode}}")
            ],
            description="How much work does the engine do now? These counters move while requests "
            "run, not only at their end. prefill_cache are prompt tokens that were not computed.",
        ),
        Panel(
            title="Requests per second",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(
                    f"sum by (model_name) ({rate(sglang.NUM_REQUESTS_TOTAL, REQUESTS)})",
                    "{{model_name}}",
                )
            ],
            description="How many requests end? Requests that run and none that ends: long "
            "answers, or an engine that hangs.",
        ),
        Panel(
            title="Running and queued requests",
            unit=Unit.REQUESTS,
            queries=[
                Query(gauge(sglang.NUM_RUNNING_REQS, TOTALS), "running {{model_name}}"),
                Query(gauge(sglang.NUM_QUEUE_REQS, TOTALS), "queued {{model_name}}"),
            ],
            description="Is the engine full? A queue beside few running requests means that the "
            "KV cache, not the number of requests, is the limit. SGLang may show its last batch "
            "after it became idle; the dashboard Fleet corrects this.",
        ),
        Panel(
            title="HTTP responses per second",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(
                    f"sum by (status_code) ({rate(sglang.HTTP_RESPONSES_TOTAL, _SERVER)})",
                    "{{status_code}}",
                )
            ],
            description="Does the engine refuse requests? 4xx are requests that it does not "
            "accept, 503 is a full queue, other 5xx are its own errors. Checks of its health "
            "count here.",
        ),
    ],
)

_CACHE: Final = Row(
    "KV pool and prefix cache",
    [
        Panel(
            title="KV pool",
            unit=Unit.TOKENS,
            queries=[
                Query(_USED, "used {{model_name}}"),
                Query(_EVICTABLE, "evictable {{model_name}}"),
                Query(_AVAILABLE, "available {{model_name}}"),
            ],
            description="Who holds the KV cache? used: requests that run; evictable: cached "
            "prefixes that give way to new requests; available: free. A pool without available "
            "tokens is healthy as long as evictable ones remain.",
            stacked=True,
        ),
        Panel(
            title="KV pool in physical use",
            unit=Unit.PERCENT,
            queries=[
                Query(
                    f"100 * (1 - {_AVAILABLE} / ({_AVAILABLE} + {_EVICTABLE} + {_USED}))",
                    "{{model_name}}",
                )
            ],
            description="How much of the pool is occupied, cached prefixes included? A full pool "
            "is normal after some traffic; memory is short only if requests hold it all: see the "
            "next row.",
            maximum=100,
        ),
        Panel(
            title="Prefix cache hit rate",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"{total(rate(sglang.REALTIME_TOKENS_TOTAL, CACHED))}"
                    f" / {total(rate(sglang.REALTIME_TOKENS_TOTAL, PREFILL))}",
                    "{{model_name}}",
                )
            ],
            description="Which share of the prompt tokens was not computed, by counters? (The "
            "gauge sglang:cache_hit_rate is that of one batch.) A fall after a deployment: "
            "prompts no longer begin alike, or requests with the same beginning reach different "
            "instances.",
            maximum=1,
        ),
        Panel(
            title="Prefix cache hits by tier",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"{total(rate(sglang.PREFILL_EFFECTIVE_TOKENS_TOTAL, _HITS), by='mode')} / "
                    f"scalar(sum({once(rate(sglang.PREFILL_EFFECTIVE_TOKENS_TOTAL, RANKS))}))",
                    "{{mode}}",
                )
            ],
            description="From where do cached tokens come: the device, the host's memory, or a "
            "storage backend? host and storage stay 0 without a hierarchical cache.",
            stacked=True,
        ),
    ],
)

_MEMORY: Final = Row(
    "Memory pressure",
    [
        Panel(
            title="KV pool held by requests",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"max by (model_name) ({sglang.TOKEN_USAGE}{{{RANKS}}})",
                    "{{model_name}}",
                )
            ],
            description="How close is the fullest rank to its limit? From 0.95 on, new requests "
            "wait and running ones may be retracted: fewer requests at once, shorter contexts, or "
            "more instances.",
            bad_from=0.95,
            maximum=1,
        ),
        Panel(
            title="Retractions and aborts per second",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(events(sglang.NUM_RETRACTED_REQUESTS_TOTAL), "retracted {{model_name}}"),
                Query(
                    events(sglang.NUM_ABORTED_REQUESTS_TOTAL, REQUESTS), "aborted {{model_name}}"
                ),
            ],
            description="Does work go to waste? A retracted request gives its memory back and is "
            "computed again later: any steady rate means that the KV pool is too small. Aborted "
            "requests are mostly clients that went away. SGLang creates these counters at the "
            "first event, which itself is therefore not in the rate.",
        ),
        Panel(
            title="Reserved share of future tokens",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"max by (model_name) ({sglang.NEW_TOKEN_RATIO}{{{RANKS}}})",
                    "{{model_name}}",
                )
            ],
            description="How carefully does the scheduler admit requests? It reserves this share "
            "of the tokens that a request may still generate. The share falls while all goes "
            "well, and jumps up at each retraction.",
        ),
        Panel(
            title="Retracted and paused requests",
            unit=Unit.REQUESTS,
            queries=[
                Query(gauge(sglang.NUM_RETRACTED_REQS), "retracted {{model_name}}"),
                Query(gauge(sglang.NUM_PAUSED_REQS), "paused {{model_name}}"),
            ],
            description="Do requests stand still? Retracted ones wait for memory, paused ones for "
            "new weights.",
            bad_from=1,
        ),
        Panel(
            title="Evicted tokens per second",
            unit=Unit.TOKENS_PER_SECOND,
            queries=[Query(cache_events(sglang.EVICTED_TOKENS_TOTAL), "{{model_name}}")],
            description="How fast do cached prefixes give way to new requests? Normal for a full "
            "pool. Together with a falling hit rate, prefixes are evicted before requests use "
            "them again.",
        ),
        Panel(
            title="Memory by use",
            unit=Unit.GIBIBYTES,
            queries=[
                Query(gauge(sglang.WEIGHT_MEMORY_USAGE_GB), "weights {{model_name}}"),
                Query(gauge(sglang.KV_CACHE_MEMORY_USAGE_GB), "KV pool {{model_name}}"),
                Query(gauge(sglang.GRAPH_MEMORY_USAGE_GB), "graphs {{model_name}}"),
            ],
            description="What fills the device's memory? Constant after the start; the KV pool is "
            "what weights and graphs leave.",
            stacked=True,
        ),
    ],
)

_SCHEDULER: Final = Row(
    "Scheduler and start",
    [
        Panel(
            title="Time of the scheduler",
            unit=Unit.RATIO,
            queries=[
                Query(
                    "avg by (category) (sum without (forward_overlap) "
                    f"({rate(sglang.SCHEDULER_STAGE_SECONDS_TOTAL, RANKS)}))",
                    "{{category}}",
                )
            ],
            description="What does the scheduler's loop do? run_batch is useful work, idle is "
            "spare time. A large share of anything else is overhead on the CPU.",
            stacked=True,
        ),
        Panel(
            title="Start-up time by phase",
            unit=Unit.SECONDS,
            queries=[
                Query(f"max by (phase) ({sglang.STARTUP_TIME_SECONDS}{{{REQUESTS}}})", "{{phase}}")
            ],
            description="Why does a start take long? Loading weights, the KV pool, the scheduler, "
            "or the tokenizer; the slowest instance counts.",
        ),
    ],
)

ENGINE: Final = Dashboard(
    uid="dynamometer-engine",
    title="Engine",
    description="SGLang's own families: latency, throughput, KV cache, memory and features. All "
    "queries work on the pages of workers and exporters, and on /engine_metrics.",
    variables=VARIABLES,
    rows=[_LATENCY, _THROUGHPUT, _CACHE, _MEMORY, _SCHEDULER, *FEATURES],
)
