"""The hierarchy of a process in a distributed system: runtime, namespace, component, endpoint.

    runtime = DistributedRuntime()
    endpoint = runtime.namespace("dynamo").component("backend").endpoint("generate")
    requests = endpoint.metrics.create_counter("requests", "Requests received")
    with runtime.serve() as server:
        ...

Each level creates metrics that have the labels of the level. `runtime.metrics.render()` returns the
page with all metrics, and `runtime.serve()` serves the page.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.registry import Collector

from dynamometer import settings
from dynamometer.errors import ArgumentError, SettingsError
from dynamometer.metrics.hierarchy import Hierarchy, Metrics
from dynamometer.metrics.page import SOURCE_DEADLINE_SECONDS, MetricsPage
from dynamometer.names import distributed_runtime, labels
from dynamometer.runtime import system
from dynamometer.runtime.identity import hexadecimal, new_id
from dynamometer.runtime.record import State
from dynamometer.runtime.server_thread import SystemServer

logger = logging.getLogger(__name__)

NO_LABELS: Final[Mapping[str, str]] = {}


class DistributedRuntime:
    """The top level: one process of a distributed system.

    Attributes:
        instance_id: the number of the process, 64 bits; `worker_id` on pages, in hexadecimal.
        metrics: creates metrics that have no level labels.
    """

    def __init__(
        self,
        *,
        instance_id: int | None = None,
        deadline: float = SOURCE_DEADLINE_SECONDS,
        process_collector: Collector | None = None,
    ) -> None:
        """Create a runtime with the metrics that every process has.

        Args:
            instance_id: the number of the process; random by default.
            deadline: the time that the callbacks and engines of one scrape may take, in seconds. A
                callback or engine that still runs at the deadline is skipped; after that, each
                further callback or engine may take one second.
            process_collector: the collector of the `process_*` families; by default, of this
                process alone.

        Raises:
            ArgumentError: `instance_id` or `deadline` is not allowed.
            SettingsError: PROMETHEUS_MULTIPROC_DIR was set when prometheus_client was imported.
        """
        if instance_id is not None:
            _check_instance_id(instance_id)
        self.instance_id = new_id() if instance_id is None else instance_id
        self._hierarchy = Hierarchy(deadline=deadline)
        self.metrics = self._hierarchy.level(NO_LABELS)
        # Any thread adds endpoints (`setdefault`, under the interpreter's lock); no thread removes
        # endpoints. The thread of the server iterates over a copy.
        self._endpoints: dict[tuple[str, str, str], Endpoint] = {}
        self.registry.register(process_collector or ProcessCollector(registry=None))
        _register_uptime(self.metrics, hexadecimal(self.instance_id))

    @property
    def registry(self) -> CollectorRegistry:
        """The registry for metrics whose names do not begin with `dynamo_component_`."""
        return self._hierarchy.registry

    @property
    def page(self) -> MetricsPage:
        """The page that `/metrics` returns."""
        return self._hierarchy.page

    def namespace(self, name: str) -> Namespace:
        """Return the namespace with this name.

        Raises:
            ArgumentError: The name has other characters than letters, digits, `_`, `-` and `.`.
        """
        return Namespace(self, _checked("namespace", name))

    def level(self, level_labels: Mapping[str, str]) -> Metrics:
        """Return the object that creates metrics with these labels."""
        return self._hierarchy.level(level_labels)

    def endpoint(self, namespace: str, component: str, name: str) -> Endpoint:
        """Return the endpoint with these names; see `Component.endpoint`."""
        key = (namespace, component, name)
        return self._endpoints.setdefault(key, Endpoint(self, *key))

    def serve(self, *, host: str | None = None, port: int | None = None) -> SystemServer:
        """Serve `/metrics`, `/health` and `/live` from a new thread.

        The caller needs no event loop. DYN_SYSTEM_PORT, DYN_SYSTEM_HOST and the variables of
        `/health` apply as in a worker. Messages go to Python's logger `dynamometer`.

        Args:
            host: the address to listen on; by default DYN_SYSTEM_HOST, else 127.0.0.1.
            port: the port to listen on; by default DYN_SYSTEM_PORT, else 8081, or any free port
                if 8081 is in use. 0 selects any free port, -1 starts no server.

        Returns:
            The server, which is a context manager.

        Raises:
            SettingsError: A variable has a value that is not allowed.
            ArgumentError: `port` is not a port, or `host` is not an address of this machine.
            AddressError: The port is not available.
        """
        environment = settings.read()
        for variable, suggestion in settings.misspelled():
            logger.warning("%s has no effect: did you mean %s?", variable, suggestion)
        if port is not None:
            _check_port(port)
        self._state()  # record which endpoints are ready when the server starts
        status = system.SystemStatus(self._state, self._endpoint_states, health=environment.health)
        try:
            listener = system.listen(
                host or environment.system_host,
                environment.system_port if port is None else port,
                settings=("serve(host=...), DYN_SYSTEM_HOST", "serve(port=...), DYN_SYSTEM_PORT"),
            )
        except SettingsError as error:
            raise (ArgumentError(str(error)) if host else error) from None
        return SystemServer(system.application(self.page, status), listener)

    def _state(self) -> State:
        """Return the worst state of all endpoints; ready while no endpoint exists."""
        return _worst([endpoint.observe_state() for endpoint in list(self._endpoints.values())])

    def _endpoint_states(self) -> Mapping[str, State]:
        """Return the state for each endpoint name; if components share a name, the worst state."""
        states: dict[str, State] = {}
        for (_, _, name), endpoint in list(self._endpoints.items()):
            states[name] = _worst([states.get(name, State.READY), endpoint.observe_state()])
        return states

    def __repr__(self) -> str:
        return f"DistributedRuntime({hexadecimal(self.instance_id)})"


class Namespace:
    """A group of components.

    Attributes:
        name: the value of the label `dynamo_namespace`.
        metrics: creates metrics with that label.
    """

    def __init__(self, runtime: DistributedRuntime, name: str) -> None:
        """See `DistributedRuntime.namespace`."""
        self._runtime = runtime
        self.name = name
        self.metrics = runtime.level({labels.NAMESPACE: name})

    def __repr__(self) -> str:
        return f"Namespace({self.name})"

    def component(self, name: str) -> Component:
        """Return the component with this name.

        Raises:
            ArgumentError: The name has other characters than letters, digits, `_`, `-` and `.`.
        """
        return Component(self._runtime, self.name, _checked("component", name))


class Component:
    """A group of processes that do the same work.

    Attributes:
        name: the value of the label `dynamo_component`.
        metrics: creates metrics with that label and the label of the namespace.
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
        """Return the endpoint with this name: the same object for the same name.

        Raises:
            ArgumentError: The name has other characters than letters, digits, `_`, `-` and `.`.
        """
        return self._runtime.endpoint(self._namespace, self.name, _checked("endpoint", name))


class Endpoint:
    """A service of a component.

    Attributes:
        name: the value of the label `dynamo_endpoint`.
        labels: the labels of namespace, component and endpoint.
        metrics: creates metrics with these labels.
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
        # Any thread sets these values, and the server's thread reads them; no lock is needed.
        self._ready = True
        self._was_ready = False

    def __repr__(self) -> str:
        return f"Endpoint({'.'.join(self.labels.values())})"

    @property
    def ready(self) -> bool:
        """True if the endpoint accepts requests; initially True. `/health` reports the value."""
        return self._ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready
        self._was_ready = self._was_ready or ready

    def observe_state(self) -> State:
        """Return the state for `/health`.

        An endpoint that is not ready is `failed` if this function or the setter of `ready` saw it
        ready before, else `starting`.
        """
        self._was_ready = self._was_ready or self._ready
        if self._ready:
            return State.READY
        return State.FAILED if self._was_ready else State.STARTING

    def connection_id(self) -> int:
        """Return the instance number of the process, 64 bits."""
        return self._runtime.instance_id

    @property
    def worker_id(self) -> str:
        """The instance number as pages show it: 16 hexadecimal digits."""
        return hexadecimal(self._runtime.instance_id)


def _worst(states: Collection[State]) -> State:
    """Return `failed` if any state is failed, else `starting` if any is starting, else `ready`."""
    return next((s for s in (State.FAILED, State.STARTING) if s in states), State.READY)


def _checked(level: str, name: str) -> str:
    try:
        return settings.name(name) if isinstance(name, str) else settings.name("")
    except ValueError as error:
        raise ArgumentError(f"{level} {name!r}: {error}") from None


def _check_instance_id(instance_id: object) -> None:
    if not isinstance(instance_id, int) or not 0 <= instance_id < 2**64:
        raise ArgumentError(f"instance_id={instance_id!r}: must be an integer from 0 to 2**64 - 1")


def _check_port(port: int) -> None:
    try:
        settings.system_port(str(port))
    except ValueError as error:
        raise ArgumentError(f"port={port!r}: {error}") from None


def _register_uptime(metrics: Metrics, worker_id: str) -> None:
    started_at = time.monotonic()
    uptime = metrics.create_gauge(
        distributed_runtime.UPTIME_SECONDS,
        "Total uptime of the DistributedRuntime in seconds",
        const_labels={labels.WORKER_ID: worker_id},
    )
    uptime.set_function(lambda: time.monotonic() - started_at)
