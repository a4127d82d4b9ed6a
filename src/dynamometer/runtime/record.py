"""What a process says of itself in discovery: one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from dynamometer.errors import DiscoveryError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Role(StrEnum):
    """What kind of process it is."""

    WORKER = "worker"
    FRONTEND = "frontend"
    EXPORTER = "exporter"


class State(StrEnum):
    """Whether requests go there: to the ready ones only."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


AGGREGATED: Final = "aggregated"

# What `Record.engine_info` may hold, of the whole worker: where the engine has data-parallel
# ranks, theirs are added.
ENGINE_VERSION: Final = "version"
CONTEXT_LENGTH: Final = "context_length"
TOTAL_KV_BLOCKS: Final = "total_kv_blocks"
KV_BLOCK_SIZE: Final = "kv_block_size"
MAX_SEQUENCES: Final = "max_sequences"
MAX_BATCHED_TOKENS: Final = "max_batched_tokens"
_LARGEST: Final = 2**63


@dataclass(frozen=True, kw_only=True)
class Record:
    """A process in discovery, there from its start to its clean end whatever its engine does.

    `models` are the names that a request may ask for; `model_info` holds, for each, what the
    engine's `/v1/models` says. `engine_info` is what it says of itself, once it has been asked:
    numbers and texts by the names above, each of which may be missing. `since` is the Unix time,
    in seconds, of the last change of `state`.
    """

    role: Role
    id: int
    namespace: str
    component: str
    endpoint: str = ""
    models: tuple[str, ...] = ()
    mode: str = AGGREGATED
    engine: str = ""
    request_url: str | None = None
    system_url: str | None = None
    bootstrap: str | None = None
    model_info: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    engine_info: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    state: State = State.STARTING
    since: float = 0.0

    def __hash__(self) -> int:
        """By identity of the process: a record's mapping has no hash."""
        return hash((self.id, self.state, self.since))

    def to_json(self) -> bytes:
        """The record as one line of JSON."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        mappings = {"model_info": dict(self.model_info), "engine_info": dict(self.engine_info)}
        return json.dumps(content | mappings).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """The record that `text` holds; fields of a later version are passed over.

        Raises:
            DiscoveryError: it holds none, or one with a field of the wrong type.
        """
        try:
            content = json.loads(text)
            known = {f.name for f in fields(cls)}
            values = {key: value for key, value in content.items() if key in known}
            record = cls(**values)
            record = replace(
                record,
                role=Role(record.role),
                state=State(record.state),
                models=tuple(record.models),
                engine_info=_facts(record.engine_info),
            )
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DiscoveryError(f"is no record of an instance: {error}") from None
        wrong = next(record._wrong_fields(), None)
        if wrong is not None:
            raise DiscoveryError(f"is no record of an instance: {wrong} is not what it must be")
        return record

    def _wrong_fields(self) -> Iterator[str]:
        """Names of the fields whose values nobody should have to expect."""
        if not (isinstance(self.id, int) and 0 < self.id < 2**64):
            yield "id"
        if not all(_is_text(model) for model in self.models):
            yield "models"
        for name, kind in (("model_info", Mapping), ("since", int | float)):
            if not isinstance(getattr(self, name), kind):
                yield name
        for name in ("namespace", "component", "endpoint", "mode", "engine"):
            if not _is_text(getattr(self, name)):
                yield name
        for name in ("request_url", "system_url"):
            value = getattr(self, name)
            if value is not None and not (_is_text(value) and _is_address(value)):
                yield name


def number(value: object) -> float | None:
    """`value` where it is a number, 0 or more, that a gauge can show; else None."""
    counted = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if counted and 0 <= value < _LARGEST else None  # type: ignore[arg-type,operator]  # a number, as was asked


def _facts(content: object) -> Mapping[str, Json]:
    """What can be used of an `engine_info`: nobody needs the rest, so it spoils no record."""
    if not isinstance(content, Mapping):
        return {}
    return {
        name: value
        for name, value in content.items()
        if _is_text(name) and (_is_text(value) or number(value) is not None)
    }


def _is_text(value: object) -> bool:
    """Whether it can stand on a page: text without half characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
