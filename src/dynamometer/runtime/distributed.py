"""A process's place among others, and what it counts there.

    runtime = DistributedRuntime()
    endpoint = runtime.namespace("dynamo").component("backend").endpoint("generate")
    requests = endpoint.metrics.create_counter("requests", "Requests that came")
    with runtime.serve() as server:
        ...

What is created at a level has the labels of the level; `runtime.metrics.render()` is the page, and
`runtime.serve()` serves it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector

from dynamometer import settings
from dynamometer.errors import ArgumentError, SettingsError
from dynamometer.metrics.hierarchy import Hierarchy, Metrics
from dynamometer.metrics.page import DEADLINE_SECONDS, MetricsPage
from dynamometer.names import distributed_runtime, labels
from dynamometer.runtime import system
from dynamometer.runtime.identity import hexadecimal, new_id
from dynamometer.runtime.record import State
from dynamometer.runtime.system_server import SystemServer

logger = logging.getLogger(__name__)

NO_LABELS: Final[Mapping[str, str]] = {}


class DistributedRuntime:
    """The top level: one process of a distributed system.

    Attributes:
        instance_id: the process's number, 64 bits; `worker_id` on pages is its hexadecimal.
        metrics: its instruments have no labels of a level.
    """

    def __init__(
        self, *, instance_id: int | None = None, deadline: float = DEADLINE_SECONDS
    ) -> None:
        """Create a runtime with the metrics that every process has.

        Args:
            instance_id: a random number by default.
            deadline: seconds that callbacks and engines together may take at a scrape before the
                current one is skipped; each further one may take one second.

        Raises:
            SettingsError: PROMETHEUS_MULTIPROC_DIR was set when prometheus_client was imported.
        """
        self.instance_id = new_id() if instance_id is None else instance_id
        self._hierarchy = Hierarchy(deadline=deadline)
        self.metrics = self._hierarchy.level(NO_LABELS)
        # Any thread adds to it (`setdefault`, under the interpreter's lock), and none removes; the
        # server's thread iterates over a copy.
        self._endpoints: dict[tuple[str, str, str], Endpoint] = {}
        _count_process(self._hierarchy.registry, self.metrics, hexadecimal(self.instance_id))

    @property
    def registry(self) -> CollectorRegistry:
        """The registry for families of other names than `dynamo_component_*`, without labels."""
        return self._hierarchy.registry

    @property
    def page(self) -> MetricsPage:
        """The page that `/metrics` returns."""
        return self._hierarchy.page

    def namespace(self, name: str) -> Namespace:
        """Return the namespace of a name.

        Raises:
            ArgumentError: the name has other characters than letters, digits, `_`, `-` and `.`.
        """
        return Namespace(self, _checked("namespace", name))

    def level(self, level_labels: Mapping[str, str]) -> Metrics:
        """Return the metrics of a level; see `Namespace.metrics`."""
        return self._hierarchy.level(level_labels)

    def endpoint(self, namespace: str, component: str, name: str) -> Endpoint:
        """Return the endpoint of these names; see `Component.endpoint`."""
        key = (namespace, component, name)
        return self._endpoints.setdefault(key, Endpoint(self, *key))

    def serve(self, *, host: str | None = None, port: int | None = None) -> SystemServer:
        """Serve `/metrics`, `/health` and `/live` in a thread of their own.

        Works with and without an event loop. DYN_SYSTEM_PORT, DYN_SYSTEM_HOST and the variables
        of health mean what they mean for a worker. Messages go to Python's logging, under
        `dynamometer`.

        Args:
            host: DYN_SYSTEM_HOST by default, or 127.0.0.1.
            port: DYN_SYSTEM_PORT by default, or 8081, or any free port where 8081 is in use;
                0 is any free port, -1 no server.

        Returns:
            The server, which is a context manager.

        Raises:
            SettingsError: a variable has a value that is not allowed.
            ArgumentError: `port` is not a port, or `host` not an address of this machine.
            AddressError: the port cannot be listened on.
        """
        environment = settings.read()
        for variable, meant in settings.unknown():
            logger.warning("%s means nothing here: is %s meant?", variable, meant)
        if port is not None:
            _check_port(port)
        self._state()  # what is ready from now on has been so, whether or not anybody asks
        status = system.SystemStatus(self._state, self._endpoint_states, health=environment.health)
        try:
            listener = system.listen(
                host or environment.system_host,
                environment.system_port if port is None else port,
                settings=("host, DYN_SYSTEM_HOST", "port, DYN_SYSTEM_PORT"),
            )
        except SettingsError as error:
            raise (ArgumentError(str(error)) if host else error) from None
        return SystemServer(system.application(self.page, status), listener)

    def _state(self) -> State:
        """Without an endpoint a process is ready at once."""
        return _worst([endpoint.look() for endpoint in list(self._endpoints.values())])

    def _endpoint_states(self) -> Mapping[str, State]:
        """By name; of namesakes in several components all must be ready."""
        states: dict[str, State] = {}
        for (_, _, name), endpoint in list(self._endpoints.items()):
            states[name] = _worst([states.get(name, State.READY), endpoint.look()])
        return states

    def __repr__(self) -> str:
        return f"DistributedRuntime({hexadecimal(self.instance_id)})"


class Namespace:
    """The components that belong together.

    Attributes:
        name: the label `dynamo_namespace`.
        metrics: what is created here has that label.
    """

    def __init__(self, runtime: DistributedRuntime, name: str) -> None:
        """See `DistributedRuntime.namespace`."""
        self._runtime = runtime
        self.name = name
        self.metrics = runtime.level({labels.NAMESPACE: name})

    def __repr__(self) -> str:
        return f"Namespace({self.name})"

    def component(self, name: str) -> Component:
        """Return the component of a name.

        Raises:
            ArgumentError: the name has other characters than letters, digits, `_`, `-` and `.`.
        """
        return Component(self._runtime, self.name, _checked("component", name))


class Component:
    """The processes that do the same work.

    Attributes:
        name: the label `dynamo_component`.
        metrics: what is created here has that label, and the namespace's.
    """

    def __init__(self, runtime: DistributedRuntime, namespace: str, name: str) -> None:
        """See `Namespace.component`."""
        self._runtime = runtime
        self._namespace = namespace
        self.name = name
        self.metrics = runtime.level({labels.NAMESPACE: namespace, labels.COMPONENT: name})

    def __repr__(self) -> str:
        return f"Component({self._namespace}.{self.name})"

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint of a name: the same object for the same name.

        Raises:
            ArgumentError: the name has other characters than letters, digits, `_`, `-` and `.`.
        """
        return self._runtime.endpoint(self._namespace, self.name, _checked("endpoint", name))


class Endpoint:
    """What a component can be asked for.

    Attributes:
        name: the label `dynamo_endpoint`.
        labels: those of the level.
        metrics: what is created here has the labels of all levels.
    """

    def __init__(
        self, runtime: DistributedRuntime, namespace: str, component: str, name: str
    ) -> None:
        """See `Component.endpoint`."""
        self._runtime = runtime
        self.name = name
        self.labels: Mapping[str, str] = {
            labels.NAMESPACE: namespace,
            labels.COMPONENT: component,
            labels.ENDPOINT: name,
        }
        self.metrics = runtime.level(self.labels)
        # Any thread sets these, and the server's reads them: each is a single value.
        self._ready = True
        self._was_ready = False

    def __repr__(self) -> str:
        return f"Endpoint({'.'.join(self.labels.values())})"

    @property
    def ready(self) -> bool:
        """Whether the endpoint takes requests, which `/health` reports; true until it is set."""
        return self._ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready
        self._was_ready = self._was_ready or ready

    def look(self) -> State:
        """Return the state for `/health`: starting until the endpoint is set, or seen, ready."""
        self._was_ready = self._was_ready or self._ready
        if self._ready:
            return State.READY
        return State.FAILED if self._was_ready else State.STARTING

    def connection_id(self) -> int:
        """Return the number of the process's instance, 64 bits."""
        return self._runtime.instance_id

    @property
    def worker_id(self) -> str:
        """The instance's number as pages have it: 16 hexadecimal digits."""
        return hexadecimal(self._runtime.instance_id)


def _worst(states: Collection[State]) -> State:
    """Of several: failed where one is, starting where one still is, else ready."""
    return next((s for s in (State.FAILED, State.STARTING) if s in states), State.READY)


def _checked(level: str, name: str) -> str:
    try:
        return settings.name(name) if isinstance(name, str) else settings.name("")
    except ValueError as error:
        raise ArgumentError(f"{level} {name!r}: {error}") from None


def _check_port(port: int) -> None:
    try:
        settings.system_port(str(port))
    except ValueError as error:
        raise ArgumentError(f"port={port!r}: {error}") from None


def _count_process(registry: CollectorRegistry, metrics: Metrics, worker_id: str) -> None:
    """Register what every process shows: its uptime, and the `process_*` families."""
    begun = time.monotonic()
    uptime = metrics.create_gauge(
        distributed_runtime.UPTIME_SECONDS,
        "Total uptime of the DistributedRuntime in seconds",
        const_labels={labels.WORKER_ID: worker_id},
    )
    uptime.set_function(lambda: time.monotonic() - begun)
    ProcessCollector(registry=registry)
