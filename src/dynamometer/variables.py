"""The environment variables: meanings, defaults and flags; `settings` reads the values.

A new variable needs a row in `VARIABLES`, a field of `settings.Settings`, and a line in
`settings.read`. `BUCKETS` has the histograms whose bucket bounds users can set, with the defaults;
fixed bounds are in `metrics.buckets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LOOPBACK: Final = "127.0.0.1"
DEFAULT_SYSTEM_PORT: Final = 8081
DEFAULT_HTTP_PORT: Final = 8000
DEFAULT_OPS_PORT: Final = 8002
DEFAULT_NAMESPACE: Final = "dynamo"
FRONTEND_MEMBER: Final = "DYNAMOMETER_FRONTEND_MEMBER"


@dataclass(frozen=True)
class Variable:
    """The row of one variable in docs/configuration.md.

    Attributes:
        meaning: the effect of the variable, and its allowed values.
        default: the value without the variable.
        flag: the flag of the same meaning; empty if there is none.
    """

    meaning: str
    default: str
    flag: str = ""


@dataclass(frozen=True)
class BucketRange:
    """The range of a histogram's bucket bounds; see `metrics.buckets.spread`.

    Attributes:
        least: the start of the bounds, in the histogram's unit (seconds or tokens); the first
            bound is 0 instead of this value.
        greatest: the last bound, in the same unit.
        count: the number of bounds including 0, before bounds that are equal are merged.
    """

    least: float
    greatest: float
    count: int


@dataclass(frozen=True)
class BucketVariables:
    """The three variables of one histogram's buckets, and NVIDIA Dynamo's defaults.

    Attributes:
        variable: the common part of the three names, before `_MIN`, `_MAX` and `_COUNT`.
        quantity: the measured quantity, with its unit.
        default: the range without variables.
    """

    variable: str
    quantity: str
    default: BucketRange


BUCKETS: Final[Mapping[str, BucketVariables]] = {
    "request_duration": BucketVariables(
        "DYN_METRICS_REQUEST_DURATION", "request durations, seconds", BucketRange(1.0, 512.0, 10)
    ),
    "time_to_first_token": BucketVariables(
        "DYN_METRICS_TTFT", "time to first token, seconds", BucketRange(0.001, 480.0, 18)
    ),
    "inter_token_latency": BucketVariables(
        "DYN_METRICS_ITL", "inter-token latency, seconds", BucketRange(0.001, 80.0, 20)
    ),
    "input_sequence": BucketVariables(
        "DYN_METRICS_INPUT_SEQUENCE", "input and cached tokens", BucketRange(50.0, 128000.0, 12)
    ),
    "output_sequence": BucketVariables(
        "DYN_METRICS_OUTPUT_SEQUENCE", "output tokens", BucketRange(50.0, 32000.0, 10)
    ),
}
"""The variables of each histogram, by its field of `metrics.buckets.FrontendBuckets`."""


HTTP_HEALTH_PATH: Final = "DYN_HTTP_SVC_HEALTH_PATH"
HTTP_LIVE_PATH: Final = "DYN_HTTP_SVC_LIVE_PATH"
HTTP_READY_PATH: Final = "DYN_HTTP_SVC_READY_PATH"
HTTP_METRICS_PATH: Final = "DYN_HTTP_SVC_METRICS_PATH"
FRONTEND_PATHS: Final[Mapping[str, str]] = {
    HTTP_HEALTH_PATH: "/health",
    HTTP_LIVE_PATH: "/live",
    HTTP_READY_PATH: "/v1/health/ready",
    HTTP_METRICS_PATH: "/metrics",
}
"""The default paths of a frontend's pages and probes, by the variable that moves each."""


def _path(variable: str, further: str = "") -> Variable:
    default = f"`{FRONTEND_PATHS[variable]}`"
    return Variable(f"path of the frontend's {default}{further}", default)


def _bucket_variables() -> Mapping[str, Variable]:
    found = {}
    for buckets in BUCKETS.values():
        found[f"{buckets.variable}_MIN"] = Variable(
            f"start of the bucket bounds of {buckets.quantity}: above 0. Each bound is larger than "
            "the one before by the same ratio, and is rounded to two digits; 0 replaces the start",
            f"{buckets.default.least:g}",
        )
        found[f"{buckets.variable}_MAX"] = Variable(
            f"last bucket bound, rounded in the same way: above `{buckets.variable}_MIN`",
            f"{buckets.default.greatest:g}",
        )
        found[f"{buckets.variable}_COUNT"] = Variable(
            "number of bucket bounds, including 0: 1 to 512; bounds that are equal after rounding "
            "are merged",
            str(buckets.default.count),
        )
    return found


VARIABLES: Final[Mapping[str, Variable]] = {
    "DYN_SYSTEM_HOST": Variable(
        "address of `/metrics` and `/health` of a worker, an exporter or your own process",
        f"`{LOOPBACK}`",
        "`--system-host`",
    ),
    "DYN_SYSTEM_PORT": Variable(
        "port of `/metrics` and `/health`; 0: any free port, -1: do not serve them",
        f"{DEFAULT_SYSTEM_PORT}, or any free port if that one is in use",
        "`--system-port`",
    ),
    "DYN_SYSTEM_STARTING_HEALTH_STATUS": Variable(
        "status that `/health` reports while the process starts, and for each endpoint until it is "
        "ready for the first time: `ready` or `notready`",
        "`notready`",
    ),
    "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": Variable(
        "endpoints that must be ready before `/health` reports ready: a JSON list of endpoint "
        'names, such as `["generate"]`. A worker has one endpoint; the endpoints of an exporter '
        "are its engines",
        "all endpoints of the process",
    ),
    "DYN_SYSTEM_HEALTH_PATH": Variable("path of `/health`", "`/health`"),
    "DYN_SYSTEM_LIVE_PATH": Variable(
        "path of `/live`, which returns 200 as long as the process answers, whatever `/health` "
        "reports. NVIDIA Dynamo's `/live` returns the status of its `/health` instead; a liveness "
        "probe that fails while a model is loaded would kill a slow start",
        "`/live`",
    ),
    "DYN_HEALTH_CHECK_ENABLED": Variable(
        "1: a worker asks an engine that is quiet, and reports it as `unresponsive` if it does not "
        "answer within `--hang-timeout`. NVIDIA Dynamo's default is `false`",
        "1",
    ),
    "DYN_CANARY_WAIT_TIME": Variable(
        "seconds without answers after which a worker asks its engine; at most a fifth of "
        "`--hang-timeout`",
        "10",
    ),
    "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": Variable(
        "seconds after which a worker repeats a question to its engine that has no answer; at "
        "least 1",
        "3",
    ),
    "DYN_TRANSFER_HOST": Variable(
        "address at which the engine of a worker transfers KV caches, with `--disaggregation-mode`",
        f"`{LOOPBACK}`",
        "`--transfer-host`",
    ),
    "DYN_HTTP_HOST": Variable("address of the frontend", f"`{LOOPBACK}`", "`--http-host`"),
    "DYN_HTTP_PORT": Variable(
        "port of the frontend; 0: any free port", f"{DEFAULT_HTTP_PORT}", "`--http-port`"
    ),
    "DYN_OPS_HOST": Variable(
        "address of the frontend's ops listener: `/sd`, `/metrics_endpoints`, `/engine_metrics` "
        "and `/loads`",
        f"`{LOOPBACK}`",
        "`--ops-host`",
    ),
    "DYN_OPS_PORT": Variable(
        "port of the frontend's ops listener; 0: any free port, -1: no ops listener",
        f"{DEFAULT_OPS_PORT}, or any free port if that one is in use",
        "`--ops-port`",
    ),
    HTTP_HEALTH_PATH: _path(HTTP_HEALTH_PATH),
    HTTP_LIVE_PATH: _path(HTTP_LIVE_PATH),
    HTTP_READY_PATH: _path(
        HTTP_READY_PATH,
        ", which returns 503 until a model can be served; NVIDIA Dynamo does not have this route",
    ),
    HTTP_METRICS_PATH: _path(HTTP_METRICS_PATH),
    "DYN_FRONTEND_PROCESSES": Variable(
        "number of processes that serve the frontend's port, 1 to 512; `auto`: one per CPU that "
        "the process may use, by its affinity and the CPU quota of its cgroup, at most 16",
        "1",
        "`--processes`",
    ),
    "DYN_FORWARD_CUSTOM_LABELS": Variable(
        "1: the frontend forwards the header that sets labels of an engine's metrics",
        "0",
        "`--forward-custom-labels`",
    ),
    "DYN_NAMESPACE": Variable(
        "value of the label `dynamo_namespace` of a worker or an exporter; the only namespace that "
        "a frontend serves",
        f"`{DEFAULT_NAMESPACE}`; a frontend serves all namespaces",
        "`--namespace`",
    ),
    "DYN_FILE_KV": Variable(
        "directory in which processes register themselves; only this user may own it",
        "a directory in the user's runtime directory",
        "`--discovery-directory`",
    ),
    "DYN_LOG": Variable(
        "log level: `trace`, `debug`, `info`, `warn`, `error` or `off`; of NVIDIA Dynamo's format "
        "`level,module=level`, only the first level is used",
        "`info`",
    ),
    "DYN_LOGGING_JSONL": Variable("1: log JSON lines", "0"),
    "DYN_METRICS_PREFIX": Variable(
        "prefix of the frontend's own families; other families keep their names",
        "`dynamo_frontend`",
    ),
    **_bucket_variables(),
    "DYN_ENGINE_HEADERS": Variable(
        "headers of an exporter's requests to the engines that `--engine-url` names, one per "
        "line, such as `Authorization: Bearer KEY`; `NAME=` before a header: only for the engine "
        "of that name",
        "none",
        "`--engine-header`, which overrides a header of the same name; `--engine-header-file`",
    ),
}
"""The variables by name, in the order of docs/configuration.md."""

OTHERS: Final[Mapping[str, str]] = {
    "PROMETHEUS_MULTIPROC_DIR": "directory of multiprocess files. A worker always sets it for its "
    "engine; `dyno mocker` writes there; the drop-in collector reads there",
    "HF_HUB_OFFLINE": "1: the engine does not contact a model hub; the error for a missing model "
    "mentions it",
    "SGLANG_RUST_SERVER": "1: SGLang uses its Rust server, whose own page is fetched as well",
    "SGLANG_HOST_IP": "address at which SGLang transfers KV caches; a worker sets the variable to "
    "its `--transfer-host`, unless it is set",
    "SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX": "a worker sets 0 for a prefill or decode "
    "engine on a CPU, unless it is set: the early transfer needs CUDA",
    "MOONCAKE_PROTOCOL": "protocol of KV transfers; a worker sets `tcp` for a prefill or decode "
    "engine on a CPU, unless it is set",
    "MC_FORCE_TCP": "1: Mooncake uses TCP; a worker sets 1 for a prefill or decode engine on a "
    "CPU, unless it is set",
    "SGLANG_CPU_OMP_THREADS_BIND": "CPUs of each rank on a machine without a GPU; a worker sets "
    "the variable for an engine of several ranks, unless it is set",
    "CUDA_VISIBLE_DEVICES": "empty or -1: a worker ignores NVIDIA devices",
    "HIP_VISIBLE_DEVICES": "empty or -1: a worker ignores AMD devices",
    "ROCR_VISIBLE_DEVICES": "empty or -1: a worker ignores AMD devices",
    "ASCEND_RT_VISIBLE_DEVICES": "empty or -1: a worker ignores Ascend devices",
    "TORCHINDUCTOR_CACHE_DIR": "compile cache of the engine; a worker keeps torch's default "
    "directory, although the engine gets a temporary directory of its own",
    "XDG_RUNTIME_DIR": "parent of the directories of this user's processes",
    "NO_COLOR": "set: do not colour the output on a terminal",
    "DYNAMOMETER_SGLANG_CPU": "set by a worker for its engine: enables the CPU platform",
    FRONTEND_MEMBER: "set by a frontend of several processes for each process: its number and "
    "descriptors",
    "DYNAMOMETER_WORKER": "set by a worker for its engine: identifies the worker",
}
"""Variables of other programs that are read or set, and variables that a worker sets."""
