"""The environment variables that are read, and what each means; `settings` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Variable:
    """The row of one variable in docs/configuration.md.

    Attributes:
        meaning: what it sets, and what values it takes.
        default: what holds without it.
        flag: the flag of the same meaning; empty where there is none.
    """

    meaning: str
    default: str
    flag: str = ""


@dataclass(frozen=True)
class BucketRange:
    """The range of a histogram's bucket bounds; see `metrics.buckets.spread`.

    Attributes:
        least: the first bound after 0, in the histogram's unit (seconds or tokens).
        greatest: the last bound, in the same unit.
        count: the number of bounds including 0; bounds that rounding makes equal are one.
    """

    least: float
    greatest: float
    count: int


@dataclass(frozen=True)
class Buckets:
    """The variables of one histogram's buckets, and NVIDIA Dynamo's defaults.

    Attributes:
        variable: the common part of the three names, before `_MIN`, `_MAX` and `_COUNT`.
        of: the quantity that is measured, with its unit.
        default: the range without variables.
    """

    variable: str
    of: str
    default: BucketRange


BUCKETS: Final[Mapping[str, Buckets]] = {
    "request_duration": Buckets(
        "DYN_METRICS_REQUEST_DURATION", "request durations, seconds", BucketRange(1.0, 512.0, 10)
    ),
    "time_to_first_token": Buckets(
        "DYN_METRICS_TTFT", "time to first token, seconds", BucketRange(0.001, 480.0, 18)
    ),
    "inter_token_latency": Buckets(
        "DYN_METRICS_ITL", "inter-token latency, seconds", BucketRange(0.001, 80.0, 20)
    ),
    "input_sequence": Buckets(
        "DYN_METRICS_INPUT_SEQUENCE", "input and cached tokens", BucketRange(50.0, 128000.0, 12)
    ),
    "output_sequence": Buckets(
        "DYN_METRICS_OUTPUT_SEQUENCE", "output tokens", BucketRange(50.0, 32000.0, 10)
    ),
}
"""By the fields of `metrics.buckets.FrontendBuckets`: one table for defaults and variables."""


def _of_buckets() -> Mapping[str, Variable]:
    found = {}
    for buckets in BUCKETS.values():
        found[f"{buckets.variable}_MIN"] = Variable(
            f"where the buckets of {buckets.of}, begin: above 0. They grow by one ratio from "
            "there, each rounded to two digits; 0 stands in the place of the first",
            f"{buckets.default.least:g}",
        )
        found[f"{buckets.variable}_MAX"] = Variable(
            "the greatest of them, rounded likewise: above `_MIN`", f"{buckets.default.greatest:g}"
        )
        found[f"{buckets.variable}_COUNT"] = Variable(
            "how many, 0 with them: 1 to 512; those that rounding makes equal are one",
            str(buckets.default.count),
        )
    return found


VARIABLES: Final[Mapping[str, Variable]] = {
    "DYN_SYSTEM_HOST": Variable(
        "address of a worker's, an exporter's or your own process's `/metrics` and `/health`",
        "`127.0.0.1`",
        "`--system-host`",
    ),
    "DYN_SYSTEM_PORT": Variable(
        "their port; 0: any free one, -1: no such server",
        "8081, or any free one where that is taken",
        "`--system-port`",
    ),
    "DYN_SYSTEM_STARTING_HEALTH_STATUS": Variable(
        "what `/health` says while the process starts, and of each endpoint that it waits for "
        "until that was ready for the first time: `ready` or `notready`",
        "`notready`",
    ),
    "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": Variable(
        "the endpoints that must be ready for `/health` to say so: a JSON list of names, such as "
        '`["generate"]`; of a worker its own endpoint, of an exporter its engines',
        "all that the process has",
    ),
    "DYN_SYSTEM_HEALTH_PATH": Variable("where `/health` is: a path", "`/health`"),
    "DYN_SYSTEM_LIVE_PATH": Variable(
        "where `/live` is: a path. It is 200 as long as the process answers, whatever `/health` "
        "says: by design, where NVIDIA Dynamo's answers as its `/health` does; a liveness probe "
        "that fails while a model is loaded kills what starts slowly",
        "`/live`",
    ),
    "DYN_HTTP_HOST": Variable("address of the frontend", "`127.0.0.1`", "`--http-host`"),
    "DYN_HTTP_PORT": Variable("its port; 0: any free one", "8000", "`--http-port`"),
    "DYN_NAMESPACE": Variable(
        "the label `dynamo_namespace` of a worker or an exporter; the only namespace that a "
        "frontend serves",
        "`dynamo`; a frontend serves all",
        "`--namespace`",
    ),
    "DYN_FILE_KV": Variable(
        "where instances are registered: a directory of this user's own",
        "one in the user's runtime directory",
        "`--discovery-directory`",
    ),
    "DYN_LOG": Variable(
        "how much is said: `trace`, `debug`, `info`, `warn`, `error`, `off`; of Dynamo's form "
        "`level,module=level` the first word counts",
        "`info`",
    ),
    "DYN_LOGGING_JSONL": Variable("1: in JSON lines", "0"),
    "DYN_METRICS_PREFIX": Variable(
        "what the names of the frontend's own families begin with; no other families' do",
        "`dynamo_frontend`",
    ),
    **_of_buckets(),
    "DYN_ENGINE_HEADERS": Variable(
        "headers of an exporter's requests to the engines that `--engine-url` names, such as "
        "`Authorization: Bearer KEY`, one a line; `NAME=` before one: for that engine alone",
        "none",
        "`--engine-header`, which wins by name; `--engine-header-file`",
    ),
}
"""By name, in the order in which they are explained."""

OTHERS: Final[Mapping[str, str]] = {
    "PROMETHEUS_MULTIPROC_DIR": "of a worker's engine: set by the worker, whatever it is outside. "
    "Of `dyno mocker`: where it writes. Of the drop-in collector: what it reads",
    "HF_HUB_OFFLINE": "1: the engine asks no model hub; said where a model is missing",
    "SGLANG_RUST_SERVER": "1: SGLang's Rust server, whose own page is fetched too",
    "CUDA_VISIBLE_DEVICES": "empty or -1: there are no NVIDIA devices for the worker",
    "HIP_VISIBLE_DEVICES": "likewise, of AMD",
    "ROCR_VISIBLE_DEVICES": "likewise, of AMD",
    "ASCEND_RT_VISIBLE_DEVICES": "likewise, of Ascend",
    "TORCHINDUCTOR_CACHE_DIR": "of the engine; without it, the place that it would have by itself",
    "XDG_RUNTIME_DIR": "where the directories of this user's processes are",
    "NO_COLOR": "set: no colour on a terminal",
    "DYNAMOMETER_SGLANG_CPU": "set by the worker for its engine: switches the CPU platform on",
    "DYNAMOMETER_WORKER": "set by the worker for its engine: whose it is",
}
"""What is read, or set, besides: other programs' variables, and those between our processes."""
