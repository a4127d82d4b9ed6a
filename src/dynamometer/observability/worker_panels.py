"""Panels of workers, and of the life of the engines."""

from __future__ import annotations

from typing import Final

from dynamometer.names import (
    engine_state,
    frontend_resilience,
    frontend_service,
    kvstats,
    work_handler,
)
from dynamometer.observability.runtime_queries import (
    EXCEPT_PREFILL,
    FRONTEND_PAGE,
    MODEL,
    RANK,
    WORKER_PAGE,
    frontend,
    worker,
)
from dynamometer.panels import (
    ENGINE_LEGEND,
    ENGINE_PAGES,
    OF_ENGINE,
    Panel,
    Query,
    Row,
    Unit,
    quantiles,
    rate,
)

WORKERS: Final = Row(
    "Workers",
    [
        Panel(
            title="Workers by state",
            unit=Unit.NUMBER,
            queries=[
                Query(
                    f"max by (model, mode, state) ({frontend_resilience.WORKERS}{{{MODEL}}})",
                    "{{model}} {{mode}} {{state}}",
                )
            ],
            description="How many workers does each model have, and can they serve? Only ready "
            "ones get requests; draining ones are on their way out. With prefill and decode apart, "
            "a model needs a ready one of both: see the dashboard Disaggregation.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Ready workers of each model",
            unit=Unit.NUMBER,
            queries=[
                Query(
                    f"min by (model) ({frontend(frontend_service.MODEL_WORKERS)}{{{MODEL}}})",
                    "{{model}}",
                )
            ],
            description="Can each model be served, at every frontend? 0: its requests fail.",
            pages=FRONTEND_PAGE,
            bad_below=1,
        ),
        Panel(
            title="Retries per second",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(
                    f"sum by (reason) ({rate(frontend_resilience.RETRIES_TOTAL, MODEL)})",
                    "{{reason}}",
                )
            ],
            description="Are workers in trouble that users do not notice yet? Each retry hid one. "
            "budget_exhausted: so many that requests now fail.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Requests per second by worker",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(
                    f"sum by (instance) ({rate(worker(work_handler.REQUESTS_TOTAL), MODEL)})",
                    "{{instance}}",
                )
            ],
            description="Does each worker get its share? A worker that gets none although it is "
            "ready: see the states above.",
            pages=WORKER_PAGE,
        ),
        Panel(
            title="Failures of the engine per second",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(
                    f"sum by (instance) ({rate(worker(work_handler.ERRORS_TOTAL), MODEL)})",
                    "errors {{instance}}",
                ),
                Query(
                    f"sum by (instance) ({rate(worker(work_handler.CANCELLATION_TOTAL), MODEL)})",
                    "cancelled {{instance}}",
                ),
            ],
            description="Which worker's engine fails? Errors: it was not reached, ended, or "
            "answered with 5xx. Cancelled requests are not faults of the engine.",
            pages=WORKER_PAGE,
        ),
        Panel(
            title="Requests at workers",
            unit=Unit.REQUESTS,
            queries=[
                Query(
                    f"sum by (instance) ({worker(work_handler.INFLIGHT_REQUESTS)}{{{MODEL}}})",
                    "{{instance}}",
                )
            ],
            description="Is one worker fuller than the others? With round robin, long answers can "
            "do this: try --router-mode least-loaded.",
            pages=WORKER_PAGE,
        ),
        Panel(
            title="Request duration at workers",
            unit=Unit.SECONDS,
            queries=quantiles(
                worker(work_handler.REQUEST_DURATION_SECONDS), MODEL, excluded=EXCEPT_PREFILL
            ),
            description="How long do requests stay at a worker? About the frontend's durations: a "
            "gap is time at the frontend or on the network. Prefill workers are excluded.",
            pages=WORKER_PAGE,
        ),
        Panel(
            title="Bytes per second",
            unit=Unit.BYTES_PER_SECOND,
            queries=[
                Query(f"sum ({rate(worker(work_handler.REQUEST_BYTES_TOTAL), MODEL)})", "requests"),
                Query(f"sum ({rate(worker(work_handler.RESPONSE_BYTES_TOTAL), MODEL)})", "answers"),
            ],
            description="How much data flows? Counted at a request's end. Requests far larger "
            "than usual contain images or documents.",
            pages=WORKER_PAGE,
        ),
        Panel(
            title="KV cache in use",
            unit=Unit.RATIO,
            queries=[
                Query(
                    "max by (instance, dp_rank) "
                    f"({worker(kvstats.GPU_CACHE_USAGE_PERCENT)}{{{RANK}}})",
                    "{{instance}} {{dp_rank}}",
                )
            ],
            description="Which worker is full? From 0.95 on, its requests wait; the dashboard "
            "Engine has the reasons.",
            pages=WORKER_PAGE,
            bad_from=0.95,
            maximum=1,
        ),
    ],
)

LIFE: Final = Row(
    "Life of the engines",
    [
        Panel(
            title="Engines by state",
            unit=Unit.NUMBER,
            queries=[Query(f"sum by (state) ({engine_state.STATE}{{{MODEL}}})", "{{state}}")],
            description="Are all engines well? unresponsive: alive and without an answer; "
            "restarting: died and comes up again; draining: ends on request. /health has the "
            "reason.",
            pages=ENGINE_PAGES,
            stacked=True,
        ),
        Panel(
            title="Restarts",
            unit=Unit.NUMBER,
            queries=[
                Query(
                    "sum by (reason) (increase"
                    f"({engine_state.RESTARTS_TOTAL}{{{MODEL}}}[$__rate_interval]))",
                    "{{reason}}",
                )
            ],
            description="Do engines die, and why? out_of_memory is the machine's memory, hang an "
            "engine that was killed because it did not answer. Several within an hour: a loop.",
            pages=ENGINE_PAGES,
            bad_from=1,
        ),
        Panel(
            title="Time since the last progress",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    f"time() - max by ({OF_ENGINE}, dp_rank) "
                    f"({engine_state.LAST_PROGRESS_TIMESTAMP_SECONDS}{{{RANK}}})",
                    "{{instance}} {{worker_id}} {{dp_rank}}",
                )
            ],
            description="Does every rank work? Some seconds are normal, also for an idle engine; "
            "a line that climbs is a rank that hangs.",
            pages=ENGINE_PAGES,
            bad_from=60,
        ),
        Panel(
            title="Time without a request",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    f"time() - max by ({OF_ENGINE}) "
                    f"({engine_state.LAST_CHANGE_TIMESTAMP_SECONDS}{{{MODEL}}})",
                    ENGINE_LEGEND,
                )
            ],
            description="Which engines are idle? The time since a total changed that only "
            "requests change. One idle engine beside busy ones gets no traffic.",
            pages=ENGINE_PAGES,
        ),
        Panel(
            title="Space left for metrics files",
            unit=Unit.BYTES,
            queries=[
                Query(
                    f"min by ({OF_ENGINE}) ({engine_state.DIRECTORY_AVAILABLE_BYTES}{{{MODEL}}})",
                    ENGINE_LEGEND,
                )
            ],
            description="Will the engine run out of space? Its files grow with label values, in a "
            "file system that usually is the machine's memory. An engine that cannot write may "
            "end with SIGBUS.",
            pages=ENGINE_PAGES,
            bad_below=16 * 1024**2,
        ),
        Panel(
            title="Age of the engine",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    f"time() - max by ({OF_ENGINE}) ({engine_state.START_TIME_SECONDS}{{{MODEL}}})",
                    ENGINE_LEGEND,
                )
            ],
            description="Since when does each engine run? A line that falls to 0 is a start.",
            pages=ENGINE_PAGES,
        ),
    ],
)
