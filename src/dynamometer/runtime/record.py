"""The record that a process keeps in discovery, and its format.

A record is one JSON object of at most 1 MiB. This list gives the type, the default and the meaning
of each field; a field without a default is required.

- `version`: integer, 1; version of the format that the writer used. This list is version 3.
- `min_version`: integer, 1; lowest version that a reader must support to use the record.
- `role`: `worker`, `frontend` or `exporter`; kind of the process.
- `id`: integer from 1 to 2^64-1; instance number of the process.
- `namespace`, `component`: strings; `endpoint`: string, `""`; position in the hierarchy.
- `models`: array of strings, `[]`; names that a request may give as its `model`.
- `mode`: string, `aggregated`; or `prefill` or `decode`, which cannot answer a request alone.
- `engine`: string, `""`; kind of the engine.
- `stream_usage`: boolean, false; the engine ends every stream with a usage chunk, requested or not.
- `labels_header`: string, `""`; name of the header by which requests set labels of the engine's
  metrics, in lower case, if it is not the default of the engine's kind.
- `request_url`, `system_url`: http(s) URL, null; address of inference requests, and of `/metrics`.
- `metrics_path`: string, `/metrics`; path of the metrics page below `system_url`.
- `bootstrap`: string `HOST:PORT`, null; address of a prefill worker's bootstrap server, with
  brackets around an IPv6 address.
- `nodes`, `node_rank`: integers, 1 and 0; number of the nodes of the engine, and of this node. Only
  the worker of node 0 gets requests.
- `group`: string, `""`; name that the workers of all nodes of one engine share, and no other worker
  of their namespace.
- `epoch`: integer, 0; number of the run of the engine, the same on all nodes. It rises at each
  restart.
- `gpu_uuids`: array of strings, `[]`; names of a worker's visible NVIDIA devices.
- `model_info`: object, `{}`; maps each model to its entry in the engine's `/v1/models`.
- `engine_info`: object, `{}`; properties of the engine: strings, and numbers from 0 to 2^63; other
  values are dropped.
- `state`: `starting` (default), `ready`, `unresponsive`, `restarting`, `draining` or `failed`; only
  ready processes get requests. `lifecycle` describes the states.
- `since`: number, 0; Unix time of the last change of `state`, in seconds.

Rules for changes of the format:

- A reader ignores unknown fields, and uses the default of a missing field. A new field that has a
  default therefore needs no other change of the format.
- A record of a later version may have an unknown `role`, `state`, `mode` or `engine`: readers that
  do not know the value show the process and send no requests there.
- A change that older readers would misread raises `min_version`: older readers keep only the fields
  that they can read, show the process, and send no requests there.

Version 1 had no `version`, `min_version` and `stream_usage`. Version 2 did not know the states
`unresponsive` and `restarting`: its readers show such a process and send no requests there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from dynamometer.errors import DiscoveryError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

VERSION: Final = 3
MAX_BYTES: Final = 1 << 20
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Role(StrEnum):
    """Kinds of processes."""

    WORKER = "worker"
    FRONTEND = "frontend"
    EXPORTER = "exporter"


class State(StrEnum):
    """States of a process; only ready processes get requests."""

    STARTING = "starting"
    READY = "ready"
    UNRESPONSIVE = "unresponsive"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"


AGGREGATED: Final = "aggregated"
PREFILL: Final = "prefill"
DECODE: Final = "decode"

# Names in `Record.engine_info`. The numbers describe the whole worker: if each data-parallel rank
# of the engine has its own number, the record has the sum.
ENGINE_VERSION: Final = "version"
CONTEXT_LENGTH: Final = "context_length"
TOTAL_KV_BLOCKS: Final = "total_kv_blocks"
KV_BLOCK_SIZE: Final = "kv_block_size"
KV_CACHE_DTYPE: Final = "kv_cache_dtype"
MAX_SEQUENCES: Final = "max_sequences"
MAX_BATCHED_TOKENS: Final = "max_batched_tokens"
_LARGEST: Final = 2**63

_LONGEST_TEXT: Final = 1024
_DEEPEST_CARD: Final = 16
# Control characters and unpaired surrogates, which a page, a URL or a log line cannot show.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A process that is registered in discovery, with or without a running engine.

    The module's docstring describes the fields. `role` and `state` are members of `Role` and
    `State` if this version knows the value, and plain strings in records of later versions.
    """

    role: str
    id: int
    namespace: str
    component: str
    endpoint: str = ""
    models: tuple[str, ...] = ()
    mode: str = AGGREGATED
    engine: str = ""
    stream_usage: bool = False
    labels_header: str = ""
    request_url: str | None = None
    system_url: str | None = None
    metrics_path: str = "/metrics"
    bootstrap: str | None = None
    nodes: int = 1
    node_rank: int = 0
    group: str = ""
    epoch: int = 0
    gpu_uuids: tuple[str, ...] = ()
    model_info: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    engine_info: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    state: str = State.STARTING
    since: float = 0.0
    version: int = VERSION
    min_version: int = 1

    def __hash__(self) -> int:
        """Hash without the mappings, which are not hashable."""
        return hash((self.id, self.state, self.since))

    @property
    def page_url(self) -> str | None:
        """The URL of the metrics page; None for a process without a page."""
        return None if self.system_url is None else f"{self.system_url}{self.metrics_path}"

    @property
    def page_address(self) -> str | None:
        """The `host:port` of the page, with brackets around IPv6; None without a page."""
        if self.system_url is None:
            return None
        parts = urlsplit(self.system_url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        return f"{host}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"

    def shares_engine(self, other: Record) -> bool:
        """Return whether this worker and another one run nodes of the same engine."""
        return bool(self.group) and (self.namespace, self.group) == (other.namespace, other.group)

    @property
    def unusable_reason(self) -> str | None:
        """The reason why this version cannot use the record, in any state; None if it can."""
        if self.min_version > VERSION:
            return f"its record needs a reader of version {self.min_version}, not {VERSION}"
        if not isinstance(self.role, Role):
            return f"its role {self.role!r} is unknown"
        if not isinstance(self.state, State):
            return f"its state {self.state!r} is unknown"
        return None

    def to_json(self) -> bytes:
        """Return the record as one line of JSON."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        mappings = {"model_info": dict(self.model_info), "engine_info": dict(self.engine_info)}
        return json.dumps(content | mappings).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """Read a record of any version.

        Raises:
            DiscoveryError: `text` is not a valid record; the message names the field at fault.
        """
        try:
            content = _parse(text)
            newer = _version(content.get("version", 1)) > VERSION
            too_new = _version(content.get("min_version", 1)) > VERSION
            values: dict[str, object] = {"version": 1}
            for known in fields(cls):
                if known.name not in content:
                    if known.default is MISSING and known.default_factory is MISSING:
                        raise _FieldError(f"{known.name} is missing")
                    continue
                try:
                    values[known.name] = _FIELDS[known.name](content[known.name])
                except _FieldError as error:
                    if too_new and known.name not in _IDENTITY:
                        continue
                    raise _FieldError(f"{known.name} {error}") from None
            nodes, rank = values.get("nodes", 1), values.get("node_rank", 0)
            if rank >= nodes and not too_new:  # type: ignore[operator]  # checked by _FIELDS
                raise _FieldError(f"node_rank must be below the number of nodes, {nodes}: {rank}")
            for name, kind in (("role", Role), ("state", State)):
                if name in values:
                    values[name] = _member(kind, name, str(values[name]), allow_unknown=newer)
        except (_FieldError, ValueError, RecursionError) as error:
            raise DiscoveryError(f"is not a valid record: {error}") from None
        return cls(**values)  # type: ignore[arg-type]  # checked by _FIELDS


def number(value: object) -> float | None:
    """Return `value` as a float if it is a number from 0 to 2^63; else None."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if numeric and 0 <= value < _LARGEST else None  # type: ignore[arg-type,operator]  # `numeric` checks the type


class _FieldError(Exception):
    """A value that is not allowed; the name of the field precedes the message."""


def _parse(text: bytes) -> dict[str, Json]:
    """Parse the object; numbers that JSON cannot represent (NaN, 1e999) become None."""
    if len(text) > MAX_BYTES:
        raise _FieldError(f"it is larger than {MAX_BYTES} bytes")
    content = json.loads(
        text,
        parse_constant=lambda _: None,
        parse_float=lambda digits: _finite(float(digits)),
        object_pairs_hook=_unique,
    )
    if not isinstance(content, dict):
        raise _FieldError(f"it is {_shown(content)}, not an object")
    return content


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _FieldError(f"{_shown(twice)} occurs twice in an object")
    return content


def _member(kind: type[StrEnum], name: str, value: str, *, allow_unknown: bool) -> str:
    """Return the member of `kind` for `value`; an unknown `value` itself if it is allowed."""
    try:
        return kind(value)
    except ValueError:
        if allow_unknown:
            return value
        known = ", ".join(kind)
        raise _FieldError(f"{name} must be one of {known}, not {_shown(value)}") from None


def _version(value: Json) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < _LARGEST:
        return value
    raise _FieldError(f"has a version that is not a positive integer: {_shown(value)}")


def _id(value: Json) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**64:
        return value
    raise _FieldError(f"must be an integer from 1 to 2^64-1, not {_shown(value)}")


def _text(value: Json) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or _UNPRINTABLE.search(value):
        wanted = f"a string of at most {_LONGEST_TEXT} characters without control characters"
        raise _FieldError(f"must be {wanted}, not {_shown(value)}")
    return value


def _name(value: Json) -> str:
    text = _text(value)
    if not text:
        raise _FieldError("must not be empty")
    return text


def _names(value: Json) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _FieldError(f"must be an array of names, not {_shown(value)}")
    try:
        return tuple(dict.fromkeys(_name(name) for name in value))
    except _FieldError as error:
        raise _FieldError(f"has a name that {error}") from None


def _flag(value: Json) -> bool:
    if not isinstance(value, bool):
        raise _FieldError(f"must be true or false, not {_shown(value)}")
    return value


def _time(value: Json) -> float:
    time = number(value)
    if time is None:
        raise _FieldError(f"must be a Unix time in seconds, not {_shown(value)}")
    return time


def _url(value: Json) -> str | None:
    if value is None:
        return None
    wanted = "must be null or http://HOST:PORT or https://HOST:PORT, without credentials or query"
    text = _text(value)
    try:
        parts = urlsplit(text)
        usable = (
            parts.scheme in ("http", "https")
            and _resolvable(parts.hostname)
            and parts.port != 0
            and parts.username is None
            and not re.search(r"[\s?#\\]", text)
        )
    except ValueError:
        usable = False
    if not usable:
        raise _FieldError(f"{wanted}, not {_shown(text)}")
    return text.rstrip("/")  # paths are appended


def _resolvable(host: str | None) -> bool:
    """Return whether a name can be resolved.

    Raises:
        ValueError: The resolver cannot encode the name.
    """
    return bool((host or "").encode("idna"))


def _path(value: Json) -> str:
    text = _text(value)
    if not re.fullmatch(r"/[^\s?#\\]*", text):
        raise _FieldError(f"must be a path that begins with '/', not {_shown(text)}")
    return text


def _address(value: Json) -> str | None:
    if value is None:
        return None
    text = _text(value)
    try:
        parts = urlsplit(f"//{text}")
        usable = parts.netloc == text and _resolvable(parts.hostname) and bool(parts.port)
    except ValueError:
        usable = False
    if not usable or re.search(r"[\s@\\]", text):
        raise _FieldError(f"must be null or HOST:PORT, not {_shown(text)}")
    return text


def _count(value: Json) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST:
        return value
    raise _FieldError(f"must be an integer from 0 to 2^63-1, not {_shown(value)}")


def _nodes(value: Json) -> int:
    count = _count(value)
    if count == 0:
        raise _FieldError("must be an integer from 1 to 2^63-1, not 0")
    return count


def _cards(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise _FieldError(f"must be an object, not {_shown(value)}")
    for name, card in value.items():
        _name(name)
        _check_card(card, _DEEPEST_CARD)
    return value


def _check_card(card: Json, levels: int) -> None:
    """Check a part of an entry that the frontend's `/v1/models` returns to clients.

    Raises:
        _FieldError: The entry is too deeply nested, or has an unpaired surrogate.
    """
    if levels == 0:
        raise _FieldError(f"is nested deeper than {_DEEPEST_CARD} levels")
    if isinstance(card, str) and not _encodable(card):
        raise _FieldError(f"has an unpaired surrogate: {_shown(card)}")
    if isinstance(card, list):
        for member in card:
            _check_card(member, levels - 1)
    elif isinstance(card, dict):
        for name, member in card.items():
            _check_card(name, levels)
            _check_card(member, levels - 1)


def _facts(value: Json) -> Mapping[str, Json]:
    """Return those entries of `engine_info` that a page can show: strings and numbers."""
    if not isinstance(value, dict):
        return {}
    return {
        name: fact
        for name, fact in value.items()
        if _encodable(name)
        and ((isinstance(fact, str) and _encodable(fact)) or number(fact) is not None)
    }


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """Return a short form of a value, in ASCII, for a message."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    try:
        text = ascii(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}…"


_FIELDS: Final[Mapping[str, Callable[[Json], object]]] = {
    "role": _name,
    "id": _id,
    "namespace": _text,
    "component": _text,
    "endpoint": _text,
    "models": _names,
    "mode": _name,
    "engine": _text,
    "stream_usage": _flag,
    "labels_header": _text,
    "request_url": _url,
    "system_url": _url,
    "metrics_path": _path,
    "bootstrap": _address,
    "nodes": _nodes,
    "node_rank": _count,
    "group": _text,
    "epoch": _count,
    "gpu_uuids": _names,
    "model_info": _cards,
    "engine_info": _facts,
    "state": _name,
    "since": _time,
    "version": _version,
    "min_version": _version,
}
# The fields that a reader needs to show a record, even a record that the reader cannot use.
_IDENTITY: Final = frozenset({"role", "id", "namespace", "component"})
