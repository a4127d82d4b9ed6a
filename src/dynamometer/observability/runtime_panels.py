"""The dashboard of the runtime: frontends, workers, the life of engines, and the processes."""

from __future__ import annotations

from typing import Final

from dynamometer.names import (
    distributed_runtime,
    engine_state,
    frontend_perf,
    frontend_processes,
    frontend_service,
    labels,
    process,
    scrape,
)
from dynamometer.observability.request_panels import STAGES, USERS
from dynamometer.observability.runtime_queries import (
    FRONTEND_PAGE,
    PROCESS,
    PROCESSES,
    frontend,
    worker,
)
from dynamometer.observability.worker_panels import LIFE, WORKERS
from dynamometer.panels import Dashboard, Page, Panel, Query, Row, Unit, Variable, rate

_HEALTH: Final = Row(
    "Pages and processes",
    [
        Panel(
            title="Time of a scrape",
            unit=Unit.SECONDS,
            queries=[
                Query(f"max by (instance) (scrape_duration_seconds{{{PROCESS}}})", "{{instance}}")
            ],
            description="What does a scrape cost? A few milliseconds. A page that takes longer "
            "than Prometheus' scrape_timeout (5 s with dyno observe) is missing: look at its "
            "number of series.",
            pages=PROCESSES | {Page.FLEET},
            bad_from=1,
        ),
        Panel(
            title="Samples on a page",
            unit=Unit.NUMBER,
            queries=[
                Query(f"max by (instance) (scrape_samples_scraped{{{PROCESS}}})", "{{instance}}")
            ],
            description="How much does Prometheus store? A page that grows without end has a "
            "label whose values clients choose.",
            pages=PROCESSES | {Page.FLEET},
        ),
        Panel(
            title="Errors of a scrape per second",
            unit=Unit.PER_SECOND,
            queries=[
                Query(
                    f"sum by (source, reason) ({rate(scrape.ERRORS_TOTAL, PROCESS)})",
                    "{{source}} {{reason}}",
                )
            ],
            description="Is a page complete? Each error is a source, a file or a series that the "
            "page omits; the log names it.",
            pages=PROCESSES | {Page.FLEET},
        ),
        Panel(
            title="CPU in use",
            unit=Unit.NUMBER,
            queries=[
                Query(
                    f"sum by (instance) ({rate(process.CPU_SECONDS_TOTAL, PROCESS)})",
                    "{{instance}}",
                )
            ],
            description="How many cores does each process use, without the engine? A frontend at "
            "1 is full: add processes (--processes).",
            pages=PROCESSES,
        ),
        Panel(
            title="Memory in use",
            unit=Unit.BYTES,
            queries=[
                Query(
                    f"sum by (instance) ({process.RESIDENT_MEMORY_BYTES}{{{PROCESS}}})",
                    "{{instance}}",
                )
            ],
            description="Does a process leak? Constant under constant traffic; a line that climbs "
            "for hours is a fault.",
            pages=PROCESSES,
        ),
        Panel(
            title="File descriptors in use",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"max by (instance) ({process.OPEN_FDS}{{{PROCESS}}} / "
                    f"{process.MAX_FDS}{{{PROCESS}}})",
                    "{{instance}}",
                )
            ],
            description="Will connections be refused? Each request needs two or three "
            "descriptors: raise the limit (ulimit -n) before 1.",
            pages=PROCESSES,
            bad_from=0.8,
            maximum=1,
        ),
        Panel(
            title="Uptime",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    "max by (instance) "
                    f"({worker(distributed_runtime.UPTIME_SECONDS)}{{{PROCESS}}})",
                    "{{instance}}",
                ),
            ],
            description="Which process started again? A line that falls to 0 is a start.",
            pages=PROCESSES,
        ),
        Panel(
            title="Stalls and restarts of the frontend",
            unit=Unit.PER_SECOND,
            queries=[
                Query(
                    "sum by (instance) "
                    f"({rate(frontend(frontend_perf.EVENT_LOOP_STALL_TOTAL), PROCESS)})",
                    "stalls {{instance}}",
                ),
                Query(
                    f"sum by (instance) ({rate(frontend_processes.RESTARTS_TOTAL, PROCESS)})",
                    "restarts {{instance}}",
                ),
            ],
            description="Is the frontend well? Stalls are delays above 5 ms of its event loop; "
            "restarts are processes of --processes that ended.",
            pages=FRONTEND_PAGE,
        ),
    ],
)

RUNTIME: Final = Dashboard(
    uid="dynamometer-runtime",
    title="Runtime",
    description="Frontends, workers, the life of engines, and what the pages and processes cost. "
    "Families of the frontend have their default prefix, dynamo_frontend.",
    variables=(
        Variable(
            "model",
            "Model",
            f'{{__name__=~"{frontend(frontend_service.MODEL_READY)}|{engine_state.STATE}"}}',
            labels.MODEL,
        ),
        # /engine_metrics has the second family only.
        Variable(
            "instance",
            "Instance",
            f'{{__name__=~"{worker(distributed_runtime.UPTIME_SECONDS)}|{engine_state.STATE}"}}',
            "instance",
        ),
        Variable(
            "rank",
            "Rank",
            f"{engine_state.LAST_PROGRESS_TIMESTAMP_SECONDS}{{{PROCESS}}}",
            labels.DP_RANK,
        ),
    ),
    rows=[USERS, STAGES, WORKERS, LIFE, _HEALTH],
)
