"""Panels of requests at the frontend, and of their stages."""

from __future__ import annotations

from typing import Final

from dynamometer.names import (
    frontend_perf,
    frontend_service,
    labels,
    name_prefix,
    request_plane,
    work_handler,
)
from dynamometer.observability.runtime_queries import (
    EXCEPT_PREFILL,
    FRONTEND_PAGE,
    MODEL,
    PROCESS,
    WORKER_PAGE,
    frontend,
    plane,
)
from dynamometer.panels import Panel, Query, Row, Unit, mean, quantiles, rate

_FINISHED: Final = frontend(frontend_service.REQUESTS_TOTAL)
_ERRORS: Final = f'{MODEL}, status="error", error_type!="cancelled"'

USERS: Final = Row(
    "Requests at the frontend",
    [
        Panel(
            title="Requests per second",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(f"sum by (status) ({rate(_FINISHED, MODEL)})", "{{status}}"),
                Query(
                    f"sum ({rate(frontend(frontend_service.REQUESTS_STARTED_TOTAL), MODEL)})",
                    "started",
                ),
            ],
            description="How much traffic is there, and does it end well? More started than ended "
            "requests for long: answers take longer, or workers hang.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Share of failed requests",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"sum by (model) ({rate(_FINISHED, _ERRORS)}) / "
                    f"sum by (model) ({rate(_FINISHED, MODEL)})",
                    "{{model}}",
                )
            ],
            description="Do users see errors? Requests that their client cancelled do not count. "
            "The reasons are in the next panel.",
            pages=FRONTEND_PAGE,
            bad_from=0.01,
            maximum=1,
        ),
        Panel(
            title="Failures per second by reason",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(
                    f"sum by (reason) ({rate(frontend(frontend_service.FAILURES_TOTAL), PROCESS)})",
                    "{{reason}}",
                )
            ],
            description="Why do requests fail? request.* are faults of clients, capacity.* is too "
            "much traffic, transport.* and backend.* are workers or engines in trouble.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Time to first token",
            unit=Unit.SECONDS,
            queries=quantiles(frontend(frontend_service.TIME_TO_FIRST_TOKEN_SECONDS), MODEL),
            description="How long do users wait, as the frontend sees it? Streams only. If the "
            "engine's own value is far lower, the time is lost between frontend and engine.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Inter-token latency",
            unit=Unit.SECONDS,
            queries=quantiles(frontend(frontend_service.INTER_TOKEN_LATENCY_SECONDS), MODEL),
            description="How fast do answers arrive? Events that arrive together have no time "
            "between them, so the median may be 0: read p99.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Request duration",
            unit=Unit.SECONDS,
            queries=quantiles(frontend(frontend_service.REQUEST_DURATION_SECONDS), MODEL),
            description="How long do whole requests take, answers in one piece included? The "
            "first bucket ends at 2 s: below that, quantiles are estimates.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Requests in the frontend",
            unit=Unit.REQUESTS,
            queries=[
                Query(
                    f"sum by (model) ({frontend(frontend_service.ACTIVE_REQUESTS)}{{{MODEL}}})",
                    "active {{model}}",
                ),
                Query(
                    f"sum by (model) ({frontend(frontend_service.QUEUED_REQUESTS)}{{{MODEL}}})",
                    "without an answer {{model}}",
                ),
            ],
            description="Do requests pile up? Those without a first byte that grow while active "
            "ones do not shrink wait for an engine.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Tokens per second",
            unit=Unit.TOKENS_PER_SECOND,
            queries=[
                Query(
                    "sum by (model) "
                    f"({rate(frontend(frontend_service.OUTPUT_TOKENS_TOTAL), MODEL)})",
                    "answer {{model}}",
                ),
                Query(
                    "sum by (model) "
                    f"({rate(frontend(frontend_service.INPUT_SEQUENCE_TOKENS) + '_sum', MODEL)})",
                    "prompt {{model}}",
                ),
            ],
            description="How many tokens do prompts and answers have? Counted at a request's end, "
            "so long answers appear as peaks: the dashboard Engine shows tokens while they are "
            "computed.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Cancelled and rejected requests",
            unit=Unit.REQUESTS_PER_SECOND,
            queries=[
                Query(
                    "sum by (model) "
                    f"({rate(frontend(frontend_service.MODEL_CANCELLATION_TOTAL), MODEL)})",
                    "cancelled {{model}}",
                ),
                Query(
                    "sum by (model) "
                    f"({rate(frontend(frontend_service.MODEL_REJECTION_TOTAL), MODEL)})",
                    "rejected {{model}}",
                ),
            ],
            description="Do users give up, or are they turned away? Cancelled: the client "
            "disconnected; often the sign of a high latency. Rejected: an engine without capacity.",
            pages=FRONTEND_PAGE,
        ),
    ],
)

STAGES: Final = Row(
    "Stages of a request",
    [
        Panel(
            title="Mean time by stage",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    mean(frontend(frontend_perf.STAGE_DURATION_SECONDS), PROCESS, by=labels.STAGE),
                    "{{stage}}",
                )
            ],
            description="Where is time spent? preprocess reads the body, route chooses a worker, "
            "transport_roundtrip waits for the first byte. The first two stay below a millisecond.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Requests by stage",
            unit=Unit.REQUESTS,
            queries=[
                Query(
                    f"sum by (stage) ({frontend(frontend_perf.STAGE_REQUESTS)}{{{PROCESS}}})",
                    "{{stage}}",
                ),
                Query(f"sum ({plane(request_plane.INFLIGHT_REQUESTS)}{{{PROCESS}}})", "at workers"),
            ],
            description="In which stage are requests now? Many in dispatch wait for the engine; "
            "any in preprocess for long are slow uploads or a busy frontend.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Time at the frontend",
            unit=Unit.SECONDS,
            queries=quantiles(plane(request_plane.QUEUE_SECONDS), PROCESS),
            description="How long until a request is sent to a worker? More than some "
            "milliseconds: large bodies, or a frontend that needs more processes (--processes).",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Time from worker to first byte",
            unit=Unit.SECONDS,
            queries=quantiles(plane(request_plane.ROUNDTRIP_TTFT_SECONDS), PROCESS),
            description="How long does the way through worker and engine take, up to the first "
            "byte? Compare with the worker's own value in the next panel.",
            pages=FRONTEND_PAGE,
        ),
        Panel(
            title="Time to first byte in the worker",
            unit=Unit.SECONDS,
            queries=quantiles(
                f"{name_prefix.WORK_HANDLER}_{work_handler.TIME_TO_FIRST_RESPONSE_SECONDS}",
                PROCESS,
                excluded=EXCEPT_PREFILL,
            ),
            description="How long does the engine take, up to the first byte? The difference to "
            "the frontend's value is the network. Prefill workers are excluded.",
            pages=WORKER_PAGE,
        ),
        Panel(
            title="Delay of the event loop",
            unit=Unit.SECONDS,
            queries=quantiles(frontend(frontend_perf.EVENT_LOOP_DELAY_SECONDS), PROCESS),
            description="Is the frontend itself the bottleneck? Every request waits this long. p99 "
            "above 50 ms: add processes (--processes), or look for other load on the machine.",
            pages=FRONTEND_PAGE,
            bad_from=0.05,
        ),
    ],
)
