"""Environment variables, read in one place and typed.

A command line flag of the same meaning wins over its variable; each command's `--help` names
both. Names and meanings are NVIDIA Dynamo's where it has them.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from dynamometer.errors import SettingsError
from dynamometer.variables import BUCKETS, VARIABLES, BucketRange

Value = TypeVar("Value")

LOG_LEVELS = ("trace", "debug", "info", "warn", "warning", "error", "off")
DEFAULT_SYSTEM_PORT = 8081
DEFAULT_HTTP_PORT = 8000
LOOPBACK = "127.0.0.1"
# So far apart that no quotient of two, and no rounding of one, leaves what a double can hold.
_LEAST_BOUND, _GREATEST_BOUND = 1e-100, 1e100
_MOST_BUCKETS = 512


DEFAULT_BUCKET_RANGES: Final[Mapping[str, BucketRange]] = {
    histogram: buckets.default for histogram, buckets in BUCKETS.items()
}


@dataclass(frozen=True, kw_only=True)
class HealthSettings:
    """How a system server answers for its process.

    Attributes:
        ready_at_start: whether a process that is still starting is called ready.
        endpoints: the endpoints that must be ready; none: the process says.
        path: where `/health` is.
        live_path: where `/live` is.
    """

    ready_at_start: bool = False
    endpoints: tuple[str, ...] = ()
    path: str = "/health"
    live_path: str = "/live"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says; a field is None where it says nothing."""

    system_host: str = LOOPBACK
    system_port: int | None = None
    health: HealthSettings = HealthSettings()
    http_host: str = LOOPBACK
    http_port: int = DEFAULT_HTTP_PORT
    namespace: str | None = None
    discovery_directory: Path | None = None
    log_level: str = "info"
    log_json: bool = False
    metrics_prefix: str | None = None
    engine_headers: str = field(default="", repr=False)  # keys: no message shows them
    bucket_ranges: Mapping[str, BucketRange] = field(default_factory=lambda: DEFAULT_BUCKET_RANGES)


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process's environment, or of the one given.

    Raises:
        SettingsError: a value is not allowed; names variable, value and what is.
    """
    env = _Reader(os.environ if environment is None else environment)
    return Settings(
        system_host=env.get("DYN_SYSTEM_HOST", text, LOOPBACK),
        system_port=env.get("DYN_SYSTEM_PORT", system_port, None),
        health=_health(env),
        http_host=env.get("DYN_HTTP_HOST", text, LOOPBACK),
        http_port=env.get("DYN_HTTP_PORT", port, DEFAULT_HTTP_PORT),
        namespace=env.get("DYN_NAMESPACE", name, None),
        discovery_directory=env.get("DYN_FILE_KV", Path, None),
        log_level=env.get("DYN_LOG", log_level, "info"),
        log_json=env.get("DYN_LOGGING_JSONL", flag, False),
        metrics_prefix=env.get("DYN_METRICS_PREFIX", metric_prefix, None),
        engine_headers=env.get("DYN_ENGINE_HEADERS", text, ""),
        bucket_ranges={
            histogram: env.bucket_range(buckets.variable, buckets.default)
            for histogram, buckets in BUCKETS.items()
        },
    )


def unknown(environment: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Variables that look like a mistyped one of ours, each with the one it looks like.

    Dynamo has many that mean nothing here; those are passed over.
    """
    names = os.environ if environment is None else environment
    found = []
    for variable in sorted(names):
        if variable.startswith("DYN_") and variable not in VARIABLES:
            close = difflib.get_close_matches(variable, VARIABLES, n=1, cutoff=0.9)
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
        raise SettingsError(
            f"{env.given('DYN_SYSTEM_HEALTH_PATH', 'DYN_SYSTEM_LIVE_PATH')}: health and live must "
            f"be at two paths; without a variable they are at {HealthSettings.path} and "
            f"{HealthSettings.live_path}"
        )
    return health


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def _text(self, variable: str) -> str:
        return self._environment.get(variable, "").strip()

    def given(self, *variables: str) -> str:
        """Those of `variables` that are set, with their values, for a message."""
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
        """Return the range that `name`_MIN, _MAX and _COUNT set, each alone or together."""
        found = BucketRange(
            self.get(f"{name}_MIN", bound, default.least),
            self.get(f"{name}_MAX", bound, default.greatest),
            self.get(f"{name}_COUNT", bucket_count, default.count),
        )
        if found.least >= found.greatest:
            if greatest := self.given(f"{name}_MAX"):
                raise SettingsError(f"{greatest}: must be above {name}_MIN, {found.least:g}")
            least = self.given(f"{name}_MIN")
            raise SettingsError(f"{least}: must be below {name}_MAX, {found.greatest:g}")
        return found


# Parsers of one value each; flags of the command line use the same ones.


def text(value: str) -> str:
    """Any text."""
    return value


def _whole(value: str) -> int | None:
    """ASCII digits as a number; None for all else that `int` takes: `8_099`, `+1`, `٨`, ` 1`."""
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


def _real(value: str) -> float:
    """A decimal number without a sign; NaN, which is in no range, for all else `float` takes."""
    number = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
    return float(value) if re.fullmatch(number, value) else float("nan")


def port(value: str) -> int:
    """A TCP port, 0 to 65535; 0 takes any free one."""
    number = _whole(value)
    if number is None or number > 65535:
        raise ValueError("must be a port from 0 (any free one) to 65535")
    return number


def system_port(value: str) -> int:
    """A TCP port, or -1 for none."""
    try:
        return -1 if value == "-1" else port(value)
    except ValueError as error:
        raise ValueError(f"{error}, or -1 for none") from None


def seconds(value: str) -> float:
    """A duration in seconds, 0 or more."""
    number = _real(value)
    if not 0 <= number < float("inf"):
        raise ValueError("must be a number of seconds, 0 or more")
    return number


def rate(value: str) -> float:
    """A number per second, above 0."""
    number = seconds(value)
    if not number:
        raise ValueError("must be above 0")
    return number


def part(value: str) -> float:
    """A part of a whole, 0 to 1."""
    number = _real(value)
    if not 0 <= number <= 1:
        raise ValueError("must be a part of a whole, 0 to 1")
    return number


def count(value: str) -> int:
    """A whole number, 0 or more."""
    number = _whole(value)
    if number is None:
        raise ValueError("must be a whole number, 0 or more")
    return number


def size(value: str) -> int:
    """A number of bytes, with an optional unit: 64MiB, 10MB, 4096."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    units |= {"K": 2**10, "M": 2**20, "G": 2**30, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    unit = value.lstrip("0123456789")
    number = _whole(value.removesuffix(unit))
    factor = units.get(unit.strip().upper())
    if not number or not factor:
        raise ValueError("must be a number of bytes above 0, such as 4096, 64MiB or 1GB")
    return number * factor


def bound(value: str) -> float:
    """A bound of a histogram's buckets, above 0."""
    number = _real(value)
    if not _LEAST_BOUND <= number <= _GREATEST_BOUND:
        raise ValueError(f"must be a number above 0, from {_LEAST_BOUND:g} to {_GREATEST_BOUND:g}")
    return number


def bucket_count(value: str) -> int:
    """How many buckets a histogram has, 1 to 512."""
    number = _whole(value)
    if number is None or not 1 <= number <= _MOST_BUCKETS:
        raise ValueError(f"must be a whole number from 1 to {_MOST_BUCKETS}")
    return number


def metric_prefix(value: str) -> str:
    """What names of metrics begin with."""
    if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", value):
        raise ValueError(
            "must be what a metric's name can begin with: a letter, '_' or ':', then digits too"
        )
    return value


def name(value: str) -> str:
    """A namespace, component or endpoint name: letters, digits, `_`, `-` and `.`."""
    if not value or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in value):
        raise ValueError("must be letters, digits, '_', '-' or '.'")
    return value


def starting_status(value: str) -> bool:
    """Whether a process that starts is called ready: `ready` or `notready`."""
    if value not in ("ready", "notready"):
        raise ValueError("must be ready or notready")
    return value == "ready"


def endpoint_names(value: str) -> tuple[str, ...]:
    """Names of endpoints, as a JSON list: `["generate"]`."""
    wrong = ValueError('must be a JSON list of names of endpoints, such as ["generate"]')
    try:
        names = json.loads(value)
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise wrong
    return tuple(dict.fromkeys(names))


def path(value: str) -> str:
    """A path of the system server's that is not `/metrics`: `/custom/health`."""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value) or value == "/metrics":
        raise ValueError(
            "must be a path such as /custom/health: letters, digits and '._~-' behind each '/', "
            "and not /metrics"
        )
    return value


def flag(value: str) -> bool:
    """A boolean: 1, true, yes, on, or 0, false, no, off."""
    lowered = value.lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1, true, yes or on, or 0, false, no or off")


def log_level(value: str) -> str:
    """A log level.

    Dynamo's form of `level,module=level,...` is accepted, and its first word counts.
    """
    first = value.split(",")[0].strip().lower()
    if first not in LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
    return first
