"""The contract of an engine: everything that differs between engines.

An `Engine` has inference routes, a health route and metric sources, whichever process started it. A
`StartableEngine` also has a command line, with which a worker starts it. The frontend and the
worker forward requests to an engine's routes; the worker and the exporter read its metrics.

Variants: `sglang` and `mocker`, listed in `kinds`; tests/engines/test_contract.py runs against
each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Protocol

from dynamometer.exposition.label_bounds import ClientLabels
from dynamometer.metrics.derivation import Derivation
from dynamometer.runtime.engine_metrics import RequestTotals
from dynamometer.runtime.record import AGGREGATED, PREFILL, Json
from dynamometer.variables import LOOPBACK


class Usage(Enum):
    """The dialect of a route's answers: the place of their token counts.

    Attributes:
        NONE: the answers have no token counts.
        OPENAI: the member `usage`; in a stream, of the last chunk, and only if the request has
            `stream_options.include_usage`.
        RESPONSES: `response.usage` of the final event.
        MESSAGES: Anthropic's events `message_start` and `message_delta`.
        GENERATE: SGLang's `meta_info`; in a stream, the counts so far in each event.
    """

    NONE = "none"
    OPENAI = "openai"
    RESPONSES = "responses"
    MESSAGES = "messages"
    GENERATE = "generate"


class Pairing(Enum):
    """The workers that answer a route where prefill and decode are apart.

    Attributes:
        PAIR: a prefill and a decode worker together; the answer is that of the decode worker.
        ALONE: a decode worker alone, because the answer needs no forward pass.
        NONE: none.
    """

    PAIR = "pair"
    ALONE = "alone"
    NONE = "none"


@dataclass(frozen=True)
class Route:
    """An inference route: its path, its `endpoint` label, and the dialect of its answers."""

    path: str
    name: str
    usage: Usage = Usage.NONE
    pairing: Pairing = Pairing.NONE

    @property
    def counts_tokens(self) -> bool:
        """True if the answers report token counts."""
        return self.usage is not Usage.NONE

    @property
    def takes_stream_options(self) -> bool:
        """True if streams report token counts only on request, by `stream_options`."""
        return self.usage is Usage.OPENAI


@dataclass(frozen=True, kw_only=True)
class PairingFields:
    """The members and headers of a request that select the engines of a pair, or their ranks.

    Attributes:
        members: members at the top level of a body that no client may set, in any mode.
        rank_members: further members that no client may set where prefill and decode are apart,
            because both engines derive the rank from the other members.
        headers: headers that are removed from each request, in lower case.
        rank_headers: further headers that are removed where prefill and decode are apart.
    """

    members: frozenset[str]
    rank_members: frozenset[str]
    headers: frozenset[bytes]
    rank_headers: frozenset[bytes]


@dataclass(frozen=True, kw_only=True)
class MetricSources:
    """The sources of an engine's families: none, one, or both.

    Attributes:
        directory: the directory of prometheus_client's multiprocess files.
        page_url: the engine's own `/metrics`, if it has families that the files do not have.
    """

    directory: Path | None = None
    page_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The command that starts an engine, and the address of the started engine.

    Attributes:
        command: the command line.
        environment: the complete environment.
        url: the base URL of the engine.
        port_flags: flags in `command` for which `plan` chose free ports; the first is that of
            `url`.
        model: the served name that the flags contain; the engine's own list of models, see
            `Engine.read_models`, is available only when the engine serves.
        model_path: the model as the command line names it.
        sources: the sources of the engine's families.
        mode: all of the work, or only its prefill or decode phase; see `Record.mode`.
        bootstrap: the address of a prefill engine's bootstrap server; see `Record.bootstrap`.
        nodes: the number of nodes of the engine, each with a worker of its own.
        node_rank: the number of this node, from 0; only node 0 answers requests.
        repeats_node_0: the ranks of this node work on the same requests as those of node 0, so that
            a sum over both counts each request twice.
        group: a name that the workers of all nodes of one engine share; see `Record.group`.
        stream_usage: True if every stream ends with its usage; see `Record.stream_usage`.
        labels_header: the header by which clients set labels; see `Record.labels_header`.
        api_key: the bearer token that the engine's routes require.
        client_labels: the labels of the engine's series whose values come from clients.
        notes: messages for the user about flags that were added to the command line.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    url: str
    model: str
    model_path: str
    port_flags: tuple[str, ...] = ()
    sources: MetricSources = MetricSources()
    mode: str = AGGREGATED
    bootstrap: str | None = None
    nodes: int = 1
    node_rank: int = 0
    repeats_node_0: bool = False
    group: str = ""
    stream_usage: bool = False
    labels_header: str = ""
    api_key: str | None = None
    client_labels: ClientLabels = field(default_factory=ClientLabels)
    notes: tuple[str, ...] = ()

    @property
    def answers_requests(self) -> bool:
        """True if this node has the engine's HTTP API, which the other nodes do not have."""
        return self.node_rank == 0

    @property
    def component(self) -> str:
        """The default component of the worker: the one that NVIDIA Dynamo uses for this mode."""
        return PREFILL if self.mode == PREFILL else "backend"

    def with_other_ports(self, choose: Callable[[], int]) -> Launch:
        """Return the launch for a restart: another program may have taken the former ports.

        Args:
            choose: returns a free port at each call.
        """
        command, changed = list(self.command), {}
        for flag in self.port_flags:
            place = len(command) - command[::-1].index(flag)  # after the last such flag
            port = changed[command[place]] = str(choose())
            command[place] = port

        def moved(address: str) -> str:
            """Return an address, or the beginning of a URL, with its new port."""
            host, _, port = address.rpartition(":")
            return f"{host}:{changed.get(port, port)}"

        url, sources = moved(self.url), self.sources
        if sources.page_url is not None:
            page_url = url + sources.page_url.removeprefix(self.url)
            sources = replace(sources, page_url=page_url)
        bootstrap = self.bootstrap and moved(self.bootstrap)
        return replace(self, command=command, url=url, sources=sources, bootstrap=bootstrap)


@dataclass(frozen=True, kw_only=True)
class ModelCards:
    """The models that an engine serves, each with its entry in the engine's `/v1/models`."""

    cards: Mapping[str, Json] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a request may contain, the base model first."""
        return tuple(self.cards)


@dataclass(frozen=True, kw_only=True)
class CommandFacts:
    """The facts about a running engine that its command line and environment contain.

    Attributes:
        model: the served name; empty if the command line has none.
        host: the address that the engine listens on; empty if the command line has none.
        port: the port that the engine listens on.
        page_has_more: True if the engine's own page has families that its files do not have; None
            if unknown.
        client_labels: the labels of the engine's series whose values come from clients.
    """

    model: str
    host: str
    port: int
    page_has_more: bool | None
    client_labels: ClientLabels = field(default_factory=ClientLabels)


class LoadSignals(Derivation, Protocol):
    """Load signals of one engine, derived from its families at each refresh of the page."""

    def derivable_from(self, prefixes: Sequence[str]) -> bool:
        """Return whether the signals need only families with these name prefixes.

        Without prefixes, all families are available, and the result is True.
        """


class Engine(Protocol):
    """A kind of engine, whichever process started it.

    Attributes:
        name: the kind in records and labels.
        title: the name for users.
        routes: the inference routes, by path. A path has the same name for all engines.
        health_path: a GET route that returns 200 after a successful forward pass.
        probe_path: a GET route that returns 200 while the engine serves; cheap enough for a request
            every few seconds.
        models_path: a GET route that lists the models; see `read_models`.
        info_path: a GET route that describes the configuration; see `read_info`.
        metric_prefixes: the prefixes of the engine's family names.
        client_labels: the labels of its series whose values come from clients, without those that
            only a command line names.
        labels_header: the header by which clients set labels of its series, unless a record names
            another one.
        request_totals: the totals that only requests change.
        pairing_fields: the members and headers of a request that only the frontend may set.
    """

    name: str
    title: str
    routes: Mapping[str, Route]
    health_path: str
    probe_path: str
    models_path: str
    info_path: str
    metric_prefixes: Sequence[str]
    client_labels: ClientLabels
    labels_header: str
    request_totals: RequestTotals
    pairing_fields: PairingFields

    def pair_members(self, bootstrap: str) -> Mapping[str, Json]:
        """Return the members of a request that a prefill and a decode engine answer together.

        Both engines receive the members. The members are other ones at each call.

        Args:
            bootstrap: see `Record.bootstrap`.
        """

    def read_models(self, answer: Json) -> ModelCards:
        """Return the models in an answer of `models_path`; none if the answer is invalid."""

    def request_name(self, model: str, card: Json) -> str:
        """Return the name by which a request selects a model that the engine lists.

        Args:
            model: the name in the list.
            card: the model's entry in the list.
        """

    def read_info(self, answer: Json, models: ModelCards) -> Mapping[str, Json]:
        """Return `Record.engine_info`: the values that an answer of `info_path` contains."""

    def load_signals(
        self,
        owner: str,
        constant_labels: Callable[[], Mapping[str, str]],
        *,
        component: bool = False,
        ranks: bool = False,
        complete: Callable[[], bool] = lambda: True,
        pids: Callable[[], Iterable[int]] = tuple,
    ) -> LoadSignals:
        """Return the derivation of `dynamometer_engine_*` from the engine's families.

        Args:
            owner: the owner of the sources that read the engine.
            constant_labels: returns the labels of all series; called at each refresh.
            component: add the KV cache families of a worker's component.
            ranks: add the load of each data-parallel rank.
            complete: returns whether all sources of the engine are known. Then a counter that is
                missing in all of them is 0.
            pids: returns the processes of the engine; the page's thread calls it.
        """

    def launch_arguments(self, command: Sequence[str]) -> Sequence[str] | None:
        """Return the flags of a command line that starts this engine; None for any other."""

    def is_process(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line belongs to this kind of engine."""

    def command_facts(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], directory: Path
    ) -> CommandFacts:
        """Return the facts in the command line and the environment of a running engine.

        Args:
            arguments: the flags; see `launch_arguments`.
            environment: the environment of the engine's process; empty if it cannot be read.
            directory: the working directory of the engine's process.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class RankBeat:
    """The state of one data-parallel rank.

    Attributes:
        rank: the number of the rank.
        beat: a number that changes while the rank works or idles, and stays when it hangs.
        waiting: the number of requests that wait in a queue of the rank.
    """

    rank: int
    beat: float
    waiting: int


class Canary(Protocol):
    """A function that creates a canary: the smallest request, which an engine does not count."""

    def __call__(self, rank: int, *, ranks: int, mode: str) -> Json:
        """Return the body of the request.

        Args:
            rank: the data-parallel rank that computes the answer.
            ranks: the number of data-parallel ranks.
            mode: see `Launch.mode`.
        """


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Requests that test an engine while it serves, more precisely than its health route does.

    Attributes:
        beats_path: a GET route with the state of each data-parallel rank.
        read_beats: returns the states in an answer of `beats_path`; none if the answer is invalid.
        canary_path: a PUT route that answers a canary as a POST route answers a request.
        canary: creates a canary.
        log_line: finds the lines that these requests cause in the engine's log.
    """

    beats_path: str
    read_beats: Callable[[Json], Sequence[RankBeat]]
    canary_path: str
    canary: Canary
    log_line: re.Pattern[str]


@dataclass(frozen=True, kw_only=True)
class CommandHelp:
    """The parts of a worker's `--help` that are about the engine.

    Attributes:
        description: the purpose of the command, at the start of the help.
        examples: command lines, at the end of the help.
        component: the default of `--component`.
    """

    description: str
    examples: str
    component: str


class StartableEngine(Engine, Protocol):
    """An engine that a worker can start.

    Attributes:
        help: the parts of a worker's `--help`.
        probes: requests that test the engine while it serves; None if only `health_path` does.
    """

    help: CommandHelp
    probes: Probes | None

    def plan(
        self,
        arguments: Sequence[str],
        *,
        directory: Path,
        python: str,
        transfer_host: str = LOOPBACK,
    ) -> Launch:
        """Return the command that starts the engine with the user's flags.

        Args:
            arguments: the engine's flags, without the worker's own.
            directory: the worker's run directory, for metrics files.
            python: the interpreter in which the engine is installed.
            transfer_host: the address of this machine at which a prefill and a decode engine
                transfer KV caches.

        Raises:
            SettingsError: A required flag is missing or wrong; the message names it.
            AddressError: A port that the user chose is in use.
        """

    def describe_exit(self, log: Sequence[str], exit_code: int, launch: Launch) -> str:
        """Return the reason of the engine's end, one line, from the last lines of its log."""

    def public_lines(self) -> Callable[[str], str | None]:
        """Return a filter of the engine's log for readers who may not see requests.

        The filter gets each line in order, and returns the line without the contents of a request;
        None to omit the line.
        """

    def describe_progress(self, log: Sequence[str]) -> str:
        """Return the last line of the log that shows progress; empty if there is none."""
