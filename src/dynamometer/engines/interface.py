"""The contract of an engine: everything that differs between engines, for the rest of the code.

An engine is a base URL, a health route, inference routes, and metric sources: an `Engine`. An
engine that a worker can start is a command line too: a `StartableEngine`. The worker and the
frontend forward by its routes, the worker and the exporter read its metrics. Any process may have
started an engine.

Variants: `sglang` and `mocker`, listed in `kinds`; tests/engines/test_contract.py runs against
each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from dynamometer.metrics.derivation import Derivation
from dynamometer.runtime.record import AGGREGATED, Json

PREFILL: Final = "prefill"
DECODE: Final = "decode"


class Usage(Enum):
    """The dialect of a route's answers, by where they say how many tokens they took.

    NONE: nowhere. OPENAI: a `usage` object; in a stream, in the last chunk where the
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
    """An inference route: its path, its name in metrics (`endpoint`), its answers' dialect."""

    path: str
    name: str
    usage: Usage = Usage.NONE

    @property
    def counts_tokens(self) -> bool:
        """Whether answers say how many tokens they took."""
        return self.usage is not Usage.NONE

    @property
    def takes_stream_options(self) -> bool:
        """Whether a stream says its tokens only where the request asks for usage."""
        return self.usage is Usage.OPENAI


@dataclass(frozen=True, kw_only=True)
class MetricSources:
    """Where an engine's families are: neither source, either, or both.

    Attributes:
        directory: of prometheus_client's multiprocess files.
        page_url: of its own `/metrics`, where that has families that its files have not.
    """

    directory: Path | None = None
    page_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start an engine, and how to reach it then.

    Attributes:
        command: the command line.
        environment: the whole environment.
        url: where it answers.
        model: the name that it serves, by its command line; its own list is read once it is up.
        model_path: the model as the command line names it.
        sources: where its families are.
        mode: see `Record.mode`: the whole of the work, or its prefill or decode phase alone.
        stream_usage: see `Record.stream_usage`: every stream ends with its usage.
        api_key: what its routes want as a bearer token.
        notes: for the user: what was added to the command line, and why.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    url: str
    model: str
    model_path: str
    sources: MetricSources = MetricSources()
    mode: str = AGGREGATED
    stream_usage: bool = False
    api_key: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> bool:
        """Whether the engine counts anything at all."""
        return self.sources != MetricSources()

    @property
    def component(self) -> str:
        """The worker's component where the user names none: NVIDIA Dynamo's of the mode."""
        return PREFILL if self.mode == PREFILL else "backend"


@dataclass(frozen=True, kw_only=True)
class ModelCards:
    """The models that an engine serves, each with its entry of the engine's `/v1/models`."""

    cards: Mapping[str, Json] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a request may ask for, the base model first."""
        return tuple(self.cards)


@dataclass(frozen=True, kw_only=True)
class CommandFacts:
    """What the command line of an engine that somebody else started says of it.

    Attributes:
        model: the name that it serves; empty where the command line has none.
        host: on which it listens; empty where the command line has none.
        port: on which it listens.
        page_has_more: whether families are on its own page alone; None where that is not known.
    """

    model: str
    host: str
    port: int
    page_has_more: bool | None


class LoadSignals(Derivation, Protocol):
    """Load signals of one engine, concluded from its families at each refresh of the page."""

    def shown_by(self, prefixes: Sequence[str]) -> bool:
        """Return whether families whose names begin with `prefixes` (none: all) are enough."""


class Engine(Protocol):
    """A kind of engine, however it was started.

    Attributes:
        name: its kind, in records and labels.
        title: its name for users.
        routes: its inference routes, by path. A path has the same name at each engine.
        health_path: a GET that answers 200 when a forward pass came back.
        probe_path: a GET that answers 200 while the engine serves; may be asked every few seconds.
        models_path: a GET that lists the models, see `read_models`.
        info_path: a GET that says how it runs, see `read_info`.
        metric_prefixes: what the names of its families begin with.
    """

    name: str
    title: str
    routes: Mapping[str, Route]
    health_path: str
    probe_path: str
    models_path: str
    info_path: str
    metric_prefixes: Sequence[str]

    def read_models(self, answer: Json) -> ModelCards:
        """Return the models of an answer of `models_path`; none where the answer is nonsense."""

    def request_name(self, model: str, card: Json) -> str:
        """Return the name by which a request asks for a model that the engine lists.

        Args:
            model: the name in the list.
            card: the model's entry of it.
        """

    def read_info(self, answer: Json, models: ModelCards) -> Mapping[str, Json]:
        """Return `Record.engine_info` of an answer of `info_path`, without what it does not say."""

    def load_signals(
        self,
        owner: str,
        constant: Callable[[], Mapping[str, str]],
        *,
        component: bool = False,
        complete: Callable[[], bool] = lambda: True,
    ) -> LoadSignals:
        """Return what concludes `dynamometer_engine_*` from the engine's families.

        Args:
            owner: whose sources show the engine.
            constant: returns the labels of the series, at each refresh.
            component: whether to add the KV cache's families of a worker's component.
            complete: returns whether all sources of the engine are known: a counter that none of
                them has is 0 then.
        """

    def launch_arguments(self, command: Sequence[str]) -> Sequence[str] | None:
        """Return the flags of a command line that starts such an engine; None for any other."""

    def is_process(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line belongs to such an engine."""

    def command_facts(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], directory: Path
    ) -> CommandFacts:
        """Return what the flags of a running engine say of it.

        Args:
            arguments: see `launch_arguments`.
            environment: of its process; empty where it cannot be read.
            directory: in which it runs.
        """


@dataclass(frozen=True, kw_only=True)
class CommandHelp:
    """Texts of `dyno NAME --help` that speak of the engine.

    Attributes:
        description: what the command does.
        examples: command lines.
        component: the default of `--component`.
    """

    description: str
    examples: str
    component: str


class StartableEngine(Engine, Protocol):
    """An engine that a worker can start."""

    help: CommandHelp

    def plan(self, arguments: Sequence[str], *, directory: Path, python: str) -> Launch:
        """Return how to start the engine from the user's flags.

        Args:
            arguments: the engine's flags, without those that the worker owns.
            directory: the worker's own, for metrics files.
            python: the interpreter that has the engine.

        Raises:
            SettingsError: The flags do not say what is needed; the message names the flag.
        """

    def describe_exit(self, log: Sequence[str], exit_code: int, launch: Launch) -> str:
        """Return why the engine ended, in one line, from the last lines of its log."""

    def describe_progress(self, log: Sequence[str]) -> str:
        """Return the last line of its log that tells how far it is; empty where none does."""
