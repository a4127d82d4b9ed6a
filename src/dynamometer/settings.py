"""Read the environment variables, and parse the values of variables and flags.

A flag overrides the variable of the same meaning; each command's `--help` names both. Variables
that NVIDIA Dynamo has too keep its names and meanings.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from dynamometer.errors import SettingsError
from dynamometer.variables import (
    BUCKETS,
    DEFAULT_HTTP_PORT,
    FRONTEND_PATHS,
    LOOPBACK,
    VARIABLES,
    BucketRange,
)

Value = TypeVar("Value")

LOG_LEVELS: Final[Mapping[str, int]] = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}
# Quotients and rounded values of bounds within these limits are finite doubles.
_LEAST_BOUND, _GREATEST_BOUND = 1e-100, 1e100
_MOST_BUCKETS = 512
_MOST_PROCESSES = 512

DEFAULT_BUCKET_RANGES: Final[Mapping[str, BucketRange]] = {
    histogram: buckets.default for histogram, buckets in BUCKETS.items()
}


@dataclass(frozen=True, kw_only=True)
class HealthSettings:
    """The health routes of a system server.

    Attributes:
        ready_at_start: report a process that is still starting as ready.
        endpoints: the endpoints that must be ready; empty for all endpoints of the process.
        path: the path of `/health`.
        live_path: the path of `/live`.
    """

    ready_at_start: bool = False
    endpoints: tuple[str, ...] = ()
    path: str = "/health"
    live_path: str = "/live"


@dataclass(frozen=True, kw_only=True)
class HealthCheckSettings:
    """The questions of a worker to an engine that is quiet.

    Attributes:
        enabled: ask; otherwise an engine is never `unresponsive`.
        wait_seconds: the time without answers after which the engine is asked.
        request_seconds: the time that a question about the ranks has before it is repeated; at
            least a second.
    """

    enabled: bool = True
    wait_seconds: float = 10.0
    request_seconds: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of the environment variables; a variable that is not set has its default."""

    system_host: str = LOOPBACK
    system_port: int | None = None
    health: HealthSettings = HealthSettings()
    health_check: HealthCheckSettings = HealthCheckSettings()
    transfer_host: str = LOOPBACK
    http_host: str = LOOPBACK
    http_port: int = DEFAULT_HTTP_PORT
    ops_host: str = LOOPBACK
    ops_port: int | None = None
    frontend_paths: Mapping[str, str] = field(default_factory=lambda: FRONTEND_PATHS)
    processes: int = 1
    forward_custom_labels: bool = False
    namespace: str | None = None
    discovery_directory: Path | None = None
    log_level: str = "info"
    log_json: bool = False
    metrics_prefix: str | None = None
    engine_headers: str = field(default="", repr=False)  # may contain keys
    bucket_ranges: Mapping[str, BucketRange] = field(default_factory=lambda: DEFAULT_BUCKET_RANGES)


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of `environment`, by default of this process's environment.

    Raises:
        SettingsError: A value is not allowed; the message names the variable, its value and the
            allowed values.
    """
    env = _Reader(os.environ if environment is None else environment)
    return Settings(
        system_host=env.get("DYN_SYSTEM_HOST", str, Settings.system_host),
        system_port=env.get("DYN_SYSTEM_PORT", system_port, None),
        health=_health(env),
        health_check=HealthCheckSettings(
            enabled=env.get("DYN_HEALTH_CHECK_ENABLED", boolean, HealthCheckSettings.enabled),
            wait_seconds=env.get(
                "DYN_CANARY_WAIT_TIME", positive_seconds, HealthCheckSettings.wait_seconds
            ),
            request_seconds=env.get(
                "DYN_HEALTH_CHECK_REQUEST_TIMEOUT",
                positive_seconds,
                HealthCheckSettings.request_seconds,
            ),
        ),
        transfer_host=env.get("DYN_TRANSFER_HOST", str, Settings.transfer_host),
        http_host=env.get("DYN_HTTP_HOST", str, Settings.http_host),
        http_port=env.get("DYN_HTTP_PORT", port, Settings.http_port),
        ops_host=env.get("DYN_OPS_HOST", str, Settings.ops_host),
        ops_port=env.get("DYN_OPS_PORT", system_port, None),
        frontend_paths={
            variable: env.get(variable, route_path, default)
            for variable, default in FRONTEND_PATHS.items()
        },
        processes=env.get("DYN_FRONTEND_PROCESSES", processes, Settings.processes),
        forward_custom_labels=env.get("DYN_FORWARD_CUSTOM_LABELS", boolean, False),
        namespace=env.get("DYN_NAMESPACE", name, None),
        discovery_directory=env.get("DYN_FILE_KV", Path, None),
        log_level=env.get("DYN_LOG", log_level, Settings.log_level),
        log_json=env.get("DYN_LOGGING_JSONL", boolean, Settings.log_json),
        metrics_prefix=env.get("DYN_METRICS_PREFIX", metric_prefix, None),
        engine_headers=env.get("DYN_ENGINE_HEADERS", str, ""),
        bucket_ranges={
            histogram: env.bucket_range(buckets.variable, buckets.default)
            for histogram, buckets in BUCKETS.items()
        },
    )


def misspelled(environment: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Return variables that look misspelled, each with the name that was probably meant.

    NVIDIA Dynamo's variables that have no effect here are ignored.
    """
    names = os.environ if environment is None else environment
    found = []
    for variable in sorted(names):
        if variable.startswith("DYN_") and variable not in VARIABLES:
            # NVIDIA Dynamo's DYN_HTTP_SVC_CHAT_PATH and our _HEALTH_PATH have a ratio of 0.91.
            close = difflib.get_close_matches(variable, VARIABLES, n=1, cutoff=0.92)
            found += [(variable, name) for name in close]
    return found


def _health(env: _Reader) -> HealthSettings:
    health = HealthSettings(
        ready_at_start=env.get("DYN_SYSTEM_STARTING_HEALTH_STATUS", starting_status, False),
        endpoints=env.get("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", endpoint_names, ()),
        path=env.get("DYN_SYSTEM_HEALTH_PATH", path, HealthSettings.path),
        live_path=env.get("DYN_SYSTEM_LIVE_PATH", path, HealthSettings.live_path),
    )
    if health.path == health.live_path:
        given = env.given("DYN_SYSTEM_HEALTH_PATH", "DYN_SYSTEM_LIVE_PATH")
        raise SettingsError(
            f"{given}: /health and /live need two different paths; the defaults are "
            f"{HealthSettings.path} and {HealthSettings.live_path}"
        )
    return health


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def _text(self, variable: str) -> str:
        return self._environment.get(variable, "").strip()

    def given(self, *variables: str) -> str:
        """Return the variables of this list that are set, with their values, for a message."""
        return " and ".join(
            f"{name}={self._text(name)!r}" for name in variables if self._text(name)
        )

    def get(self, variable: str, parse: Callable[[str], Value], default: Value) -> Value:
        value = self._text(variable)
        if not value:
            return default
        try:
            return parse(value)
        except ValueError as error:
            raise SettingsError(f"{variable}={value!r}: {error}") from None

    def bucket_range(self, name: str, default: BucketRange) -> BucketRange:
        """Return the values of `name`_MIN, _MAX and _COUNT, by default those of `default`."""
        found = BucketRange(
            self.get(f"{name}_MIN", bucket_bound, default.least),
            self.get(f"{name}_MAX", bucket_bound, default.greatest),
            self.get(f"{name}_COUNT", bucket_count, default.count),
        )
        if found.least >= found.greatest:
            if greatest := self.given(f"{name}_MAX"):
                raise SettingsError(f"{greatest}: must be above {name}_MIN, {found.least:g}")
            least = self.given(f"{name}_MIN")
            raise SettingsError(f"{least}: must be below {name}_MAX, {found.greatest:g}")
        return found


# Each parser returns a typed value, or raises ValueError with the allowed values. Flags use the
# same parsers as variables.


def _whole(value: str) -> int | None:
    """Parse ASCII digits; return None for other input that `int` accepts: `8_099`, `+1`, `٨`."""
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


def _real(value: str) -> float:
    """Parse a decimal number without a sign; return NaN, which is in no range, for other input."""
    number = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
    return float(value) if re.fullmatch(number, value) else float("nan")


def port(value: str) -> int:
    """Parse a TCP port, 0 to 65535; 0 is any free port."""
    number = _whole(value)
    if number is None or number > 65535:
        raise ValueError("must be a port from 0 (any free one) to 65535")
    return number


def system_port(value: str) -> int:
    """Parse the TCP port of a server that can be switched off; -1 is none."""
    try:
        return -1 if value == "-1" else port(value)
    except ValueError as error:
        raise ValueError(f"{error}, or -1 for none") from None


def seconds(value: str) -> float:
    """Parse a duration in seconds, 0 or more."""
    number = _real(value)
    if not 0 <= number < float("inf"):
        raise ValueError("must be a number of seconds, 0 or more")
    return number


def positive_seconds(value: str) -> float:
    """Parse a duration in seconds, above 0."""
    number = _real(value)
    if not 0 < number < float("inf"):
        raise ValueError("must be a number of seconds above 0")
    return number


def rate(value: str) -> float:
    """Parse a rate per second, above 0."""
    number = _real(value)
    if not 0 < number < float("inf"):
        raise ValueError("must be a number above 0")
    return number


def fraction(value: str) -> float:
    """Parse a fraction, 0 to 1."""
    number = _real(value)
    if not 0 <= number <= 1:
        raise ValueError("must be a fraction from 0 to 1")
    return number


def count(value: str) -> int:
    """Parse a whole number, 0 or more."""
    number = _whole(value)
    if number is None:
        raise ValueError("must be a whole number, 0 or more")
    return number


def bound(value: str) -> int:
    """Parse a whole number, 1 or more."""
    number = _whole(value)
    if not number:
        raise ValueError("must be a whole number, 1 or more")
    return number


def processes(value: str) -> int:
    """Parse a number of processes, 1 to 512; 0 for `auto`."""
    if value == "auto":
        return 0
    number = _whole(value)
    if number is None or not 1 <= number <= _MOST_PROCESSES:
        raise ValueError(f"must be a whole number from 1 to {_MOST_PROCESSES}, or auto")
    return number


def size(value: str) -> int:
    """Parse a number of bytes with an optional unit: 64MiB, 10MB, 4096."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    units |= {"K": 2**10, "M": 2**20, "G": 2**30, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    unit = value.lstrip("0123456789")
    number = _whole(value.removesuffix(unit))
    factor = units.get(unit.strip().upper())
    if not number or not factor:
        raise ValueError("must be a number of bytes above 0, such as 512MiB or 1GB")
    return number * factor


def origin(value: str) -> str:
    """Parse the origin of web pages, as browsers send it: https://HOST, http://HOST:PORT, or *."""
    if value == "*":
        return value
    if "," in value:
        raise ValueError("must be one origin: separate origins by spaces, not by commas")
    scheme, separator, host = value.lower().partition("://")
    default_port = {"http": ":80", "https": ":443"}.get(scheme)
    valid = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?", host)
    if not separator or default_port is None or valid is None:
        raise ValueError("must be * or an origin without a path, such as https://chat.example:8443")
    return f"{scheme}://{host.removesuffix(default_port)}"


def http_url(value: str) -> str:
    """Parse an http or https URL."""
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not value.isprintable() or " " in value:
        raise ValueError("must be a URL that begins with http:// or https:// and a host")
    return value


def address(value: str) -> str:
    """Parse the address of a server: HOST:PORT, with brackets around an IPv6 address."""
    host, _, number = value.rpartition(":")
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+", host) or port(number) == 0:
        raise ValueError("must be an address: HOST:PORT")
    return value


def bucket_bound(value: str) -> float:
    """Parse a bucket bound of a histogram, above 0."""
    number = _real(value)
    if not _LEAST_BOUND <= number <= _GREATEST_BOUND:
        raise ValueError(f"must be a number above 0, from {_LEAST_BOUND:g} to {_GREATEST_BOUND:g}")
    return number


def bucket_count(value: str) -> int:
    """Parse the number of buckets of a histogram, 1 to 512."""
    number = _whole(value)
    if number is None or not 1 <= number <= _MOST_BUCKETS:
        raise ValueError(f"must be a whole number from 1 to {_MOST_BUCKETS}")
    return number


def metric_prefix(value: str) -> str:
    """Parse a prefix of metric names."""
    if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", value):
        raise ValueError(
            "must be a prefix with which a metric's name can begin: a letter, '_' or ':', followed "
            "by letters, digits, '_' or ':'"
        )
    return value


def name(value: str) -> str:
    """Parse a namespace, component or endpoint name: letters, digits, `_`, `-` and `.`."""
    if not value or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in value):
        raise ValueError("must be letters, digits, '_', '-' or '.'")
    return value


def starting_status(value: str) -> bool:
    """Parse the health of a starting process: True for `ready`, False for `notready`."""
    if value not in ("ready", "notready"):
        raise ValueError("must be ready or notready")
    return value == "ready"


def endpoint_names(value: str) -> tuple[str, ...]:
    """Parse a JSON list of endpoint names, such as `["generate"]`."""
    error = ValueError('must be a JSON list of endpoint names, such as ["generate"]')
    try:
        names = json.loads(value)
    except (ValueError, RecursionError):
        raise error from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise error
    return tuple(dict.fromkeys(names))


def route_path(value: str) -> str:
    """Parse a path of a server, such as `/custom/health`."""
    # A client resolves `.` and `..` itself: such a path would never be requested.
    if not re.fullmatch(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+", value):
        raise ValueError(
            "must be a path such as /custom/health: letters, digits and '._~-' after each '/', "
            "not '.' or '..' alone"
        )
    return value


def path(value: str) -> str:
    """Parse a path of the system server other than `/metrics`, such as `/custom/health`."""
    if route_path(value) == "/metrics":
        raise ValueError("must be a path such as /custom/health, and not /metrics")
    return value


def engine_route(value: str) -> str:
    """Parse the path of an engine's route, such as `/health`; empty for no route."""
    if not re.fullmatch(r"(/[^\s#]*)?", value):
        raise ValueError("must be a path that begins with '/', such as /health, or empty")
    return value


def boolean(value: str) -> bool:
    """Parse a boolean: 1, true, yes, on, or 0, false, no, off."""
    lowered = value.lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1, true, yes or on, or 0, false, no or off")


def log_level(value: str) -> str:
    """Parse a log level.

    NVIDIA Dynamo's format `level,module=level,...` is accepted; only its first level is used.
    """
    first = value.split(",")[0].strip().lower()
    if first not in LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
    return first
