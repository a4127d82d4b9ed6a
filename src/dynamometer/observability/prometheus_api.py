"""Questions to Prometheus' HTTP API, and to the frontend's list of targets."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import aiohttp
import msgspec

from dynamometer.errors import ObserveError
from dynamometer.metrics.remote_page import connection_fault
from dynamometer.observability.configuration import JOB, ROLE

Content = TypeVar("Content")
SCRAPE_SECONDS: Final = 60.0
_DEADLINE: Final = aiohttp.ClientTimeout(total=5)
# About 10,000 targets.
_MOST_BYTES: Final = 16 << 20


@dataclass(frozen=True)
class Target:
    """A page that Prometheus scrapes.

    Attributes:
        name: the role and the address, such as `worker 127.0.0.1:8081`, with the path if it is not
            `/metrics`. Other targets have other names.
        address: the address alone.
        health: `up`, `down`, or `unknown` before the first scrape.
        error: the error of the last scrape; empty if it succeeded.
        scraped: the time of the last scrape, as text.
    """

    name: str
    address: str
    health: str
    error: str
    scraped: str


@dataclass(frozen=True)
class Alert:
    """An alert that fires.

    Attributes:
        labels: all labels, which distinguish the alert from others.
        summary: one sentence; its figures may change while the alert fires.
    """

    labels: Mapping[str, str]
    summary: str

    @property
    def title(self) -> str:
        """The name and the severity."""
        return f"{self.labels.get('alertname', '?')} ({self.labels.get('severity', 'no severity')})"


@dataclass(frozen=True)
class Sample:
    """A value of a query's answer, with the labels of its series."""

    labels: Mapping[str, str]
    value: float


class _Target(msgspec.Struct, rename="camel"):
    labels: dict[str, str]
    scrape_url: str
    health: str
    last_error: str
    last_scrape: str


class _Targets(msgspec.Struct, rename="camel"):
    active_targets: list[_Target]


class _Series(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _Vector(msgspec.Struct):
    result: list[_Series]


class _Alert(msgspec.Struct):
    labels: dict[str, str]
    annotations: dict[str, str]
    state: str


class _Alerts(msgspec.Struct):
    alerts: list[_Alert]


class _AlertsAnswer(msgspec.Struct):
    data: _Alerts


class _TargetsAnswer(msgspec.Struct):
    data: _Targets


class _VectorAnswer(msgspec.Struct):
    data: _Vector


class _Group(msgspec.Struct):
    targets: list[str]


class PrometheusApi:
    """The HTTP API of a Prometheus server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def targets(self) -> Sequence[Target]:
        """Return the targets of this project's job, in the order of their names.

        Raises:
            ObserveError: Prometheus does not answer as expected.
        """
        url = f"{self._url}/api/v1/targets?state=active"
        answer = await _fetch(self._session, url, _TargetsAnswer)
        found = [
            Target(
                _name(one),
                one.labels.get("instance", ""),
                one.health,
                one.last_error,
                one.last_scrape,
            )
            for one in answer.data.active_targets
            if one.labels.get("job") == JOB
        ]
        return sorted(found, key=lambda target: target.name)

    async def firing(self) -> Sequence[Alert]:
        """Return the alerts that fire.

        Raises:
            ObserveError: Prometheus does not answer as expected.
        """
        answer = await _fetch(self._session, f"{self._url}/api/v1/alerts", _AlertsAnswer)
        return [
            Alert(one.labels, one.annotations.get("summary", ""))
            for one in answer.data.alerts
            if one.state == "firing"
        ]

    async def wait_for_scrapes(self, *, targets: int) -> None:
        """Wait until a scrape has started and ended for each of at least `targets` targets.

        Raises:
            ObserveError: Prometheus does not answer, or a target is not up in time.
        """
        seen: dict[str, set[str]] = {}
        deadline = time.monotonic() + SCRAPE_SECONDS
        # The first time can be that of a scrape before this call, the second that of a scrape
        # which began before this call.
        while len(seen) < targets or any(len(times) < 3 for times in seen.values()):
            found = await self.targets()
            for target in found:
                if target.health == "up":
                    seen.setdefault(target.name, set()).add(target.scraped)
            if time.monotonic() > deadline:
                states = ", ".join(f"{one.name}: {one.error or one.health}" for one in found)
                raise ObserveError(
                    f"Prometheus did not scrape {targets} pages in {SCRAPE_SECONDS:.0f} s: "
                    + (states or "it has no targets")
                )
            await asyncio.sleep(0.2)

    async def query(self, promql: str) -> Sequence[Sample]:
        """Return the answer to an instant query; without samples that are not a number.

        Raises:
            ObserveError: Prometheus does not answer as expected.
        """
        url = f"{self._url}/api/v1/query"
        answer = await _fetch(self._session, url, _VectorAnswer, query=promql)
        try:
            found = [Sample(one.metric, float(one.value[1])) for one in answer.data.result]
        except ValueError as error:
            raise ObserveError(f"{url} returned another format: {error}") from None
        return [sample for sample in found if not math.isnan(sample.value)]


def _name(target: _Target) -> str:
    role, instance = target.labels.get(ROLE, "target"), target.labels.get("instance", "?")
    _, _, page = target.scrape_url.partition("://")[2].partition("/")
    return f"{role} {instance}" + ("" if page == "metrics" else f"/{page}")


async def answers(session: aiohttp.ClientSession, url: str) -> bool:
    """Return whether a server answers at `url` with 200."""
    try:
        async with session.get(url, timeout=_DEADLINE) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def discovered(session: aiohttp.ClientSession, sd_url: str) -> Sequence[str]:
    """Return the addresses of the targets that the frontend lists.

    Raises:
        ObserveError: No frontend answers at `sd_url`, or it is not ready yet.
    """
    groups = await _fetch(session, sd_url, list[_Group])
    return [address for group in groups for address in group.targets]


async def _fetch(
    session: aiohttp.ClientSession, url: str, form: type[Content], **query: str
) -> Content:
    try:
        async with session.get(url, params=query, timeout=_DEADLINE) as response:
            body = await _read(response)
            if response.status != 200:
                reason = body.decode("utf-8", "replace").strip()[:200]
                raise ObserveError(f"{url} returned {response.status}: {reason or 'no reason'}")
        return msgspec.json.decode(body, type=form)
    except aiohttp.ClientConnectorError as error:
        raise ObserveError(f"no server answers at {url} ({connection_fault(error)})") from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ObserveError(f"{url} did not answer: {error or 'timeout'}") from None
    # Text that is not UTF-8, and deep nesting, raise the last two errors.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ObserveError(f"{url} returned another format: {error}") from None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _MOST_BYTES:
            raise ObserveError(f"{response.url} returned more than {_MOST_BYTES >> 20} MiB")
    return bytes(body)
