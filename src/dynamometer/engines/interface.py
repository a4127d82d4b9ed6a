"""What the rest of the code knows of an engine.

An engine is a command line, a base URL, a way to tell that its model answers, inference
routes, and metric sources. Each other module here is one engine; the worker starts it, the
frontend knows its routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from dynamometer.runtime.record import AGGREGATED, Json

PREFILL: Final = "prefill"
DECODE: Final = "decode"


class Usage(Enum):
    """Where a route's answer says how many tokens it took.

    NONE: it does not. OPENAI: a `usage` object; in a stream, in the last chunk where the
    request asked for it (`stream_options.include_usage`). RESPONSES: `response.usage` of the
    final event. MESSAGES: Anthropic's `message_start` and `message_delta`. GENERATE: SGLang's
    `meta_info` in each event, cumulative.
    """

    NONE = "none"
    OPENAI = "openai"
    RESPONSES = "responses"
    MESSAGES = "messages"
    GENERATE = "generate"


@dataclass(frozen=True)
class Route:
    """An inference route: its path, its name in metrics (`endpoint`), where its usage stands."""

    path: str
    name: str
    usage: Usage = Usage.NONE


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start an engine, and how to speak to it.

    `model` is the name it serves, as its command line has it; its own list is asked for once it
    is up. `page_url` is its own `/metrics` where that has families which its files have not. `mode`
    is `Record.mode`: the whole of the work, or its prefill or decode phase alone.
    `notes` tell the user what was added to the command line, and why.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    url: str
    model: str
    model_path: str
    metrics: bool
    mode: str = AGGREGATED
    page_url: str | None = None
    api_key: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def component(self) -> str:
        """The worker's component where the user names none: NVIDIA Dynamo's of the mode."""
        return PREFILL if self.mode == PREFILL else "backend"


@dataclass(frozen=True, kw_only=True)
class ModelCards:
    """What the engine serves: the names, and what its `/v1/models` says of each."""

    cards: Mapping[str, Json] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a request may ask for, the base model first."""
        return tuple(self.cards)


class Engine(Protocol):
    """An engine's module, as the worker and the frontend use it."""

    name: str
    routes: Mapping[str, Route]
    health_path: str
    metric_prefixes: Sequence[str]

    def plan(self, arguments: Sequence[str], *, directory: Path, python: str) -> Launch:
        """How to start the engine from the user's flags.

        Args:
            arguments: the engine's flags, those that the worker owns taken out.
            directory: the worker's own, for metrics files.
            python: the interpreter that has the engine.

        Raises:
            SettingsError: the flags do not say what is needed; names the flag.
        """

    def reason(self, log: Sequence[str], exit_code: int, launch: Launch) -> str:
        """Why the engine ended, in one line, out of the last lines of its log."""

    def last_word(self, log: Sequence[str]) -> str:
        """The last line of its log that tells how far it is; empty where there is none."""
