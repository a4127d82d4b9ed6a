"""Run Prometheus and Grafana in the foreground, and log the state of targets and alerts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import aiohttp

from dynamometer.errors import ObserveError
from dynamometer.observability import prometheus_api
from dynamometer.observability.configuration import Targets
from dynamometer.observability.programs import Program, started
from dynamometer.observability.prometheus_api import Alert, PrometheusApi, Target
from dynamometer.observability.questions import EXPORTER_QUESTIONS, QUESTIONS
from dynamometer.process import tasks
from dynamometer.process.signals import Stop

logger = logging.getLogger(__name__)

_START_SECONDS: Final = 15.0
# After this time the addresses are logged although a target is down.
_TARGETS_SECONDS: Final = 30.0
_CHECK_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The programs to run.

    Attributes:
        prometheus: None if it is not installed.
        grafana: None if it is not installed.
        targets: the pages that Prometheus scrapes.
    """

    prometheus: Program | None
    grafana: Program | None
    targets: Targets


async def serve(programs: Programs) -> None:
    """Run the programs until a signal asks this process to end.

    Raises:
        ObserveError: A program did not start, or ended.
    """
    stop = Stop()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        watched = []
        for program in filter(None, (programs.prometheus, programs.grafana)):
            logger.info("starting %s; its log: %s", program.title, program.log)
            watched.append(
                await stack.enter_async_context(started(program, immediate=stop.immediate))
            )
        watched.append(asyncio.create_task(_report(session, programs)))
        stack.push_async_callback(tasks.end, watched[-1])
        stopping = asyncio.create_task(stop.requested.wait())
        stack.push_async_callback(tasks.end, stopping)
        done, _ = await asyncio.wait((stopping, *watched), return_when=asyncio.FIRST_COMPLETED)
        if stopping not in done:
            for task in done:
                task.result()


async def _wait_until_ready(session: aiohttp.ClientSession, program: Program | None) -> None:
    """Log when a started program answers: with much data, Prometheus takes minutes."""
    if program is None:
        return
    url = program.url + program.health_path
    started_at = reported = time.monotonic()
    while not await prometheus_api.answers(session, url):
        if time.monotonic() - reported > _START_SECONDS:
            reported = time.monotonic()
            seconds = reported - started_at
            logger.warning("%s does not answer after %.0f s: see its log", program.title, seconds)
        await asyncio.sleep(0.1)
    logger.info("%s answers at %s", program.title, program.url)


async def _report(session: aiohttp.ClientSession, programs: Programs) -> None:
    """Log addresses, and each change of a target, until cancelled."""
    grafana = asyncio.create_task(_wait_until_ready(session, programs.grafana))
    try:
        await _wait_until_ready(session, programs.prometheus)
        if programs.prometheus is None:
            await grafana
            _announce(programs, "")
            await asyncio.Event().wait()
        else:
            await _report_targets(session, programs, programs.prometheus, grafana)
    finally:
        await tasks.end(grafana)


async def _report_targets(
    session: aiohttp.ClientSession,
    programs: Programs,
    prometheus: Program,
    grafana: asyncio.Task[None],
) -> None:
    """Log each change of a target, and the addresses when all targets and Grafana are ready."""
    api = PrometheusApi(session, prometheus.url)
    log = _TargetLog(session, api, programs.targets)
    alerts = _AlertLog(api)
    first_seen: float | None = None
    announced = False
    while True:
        await log.update()
        await alerts.update()
        if log.targets and not announced:
            first_seen = first_seen or time.monotonic()
            complete = log.complete and grafana.done()
            if complete or time.monotonic() - first_seen > _TARGETS_SECONDS:
                announced = True
                up = sum(target.health == "up" for target in log.targets)
                logger.info("%d of %d targets are up", up, len(log.targets))
                _announce(programs, await _find_alerts(session, prometheus.url))
        await asyncio.sleep(_CHECK_SECONDS)


async def _find_alerts(session: aiohttp.ClientSession, url: str) -> str:
    """Return the address of the alerts: Debian's Prometheus has another page than others."""
    for path in ("/alerts", "/classic/alerts"):
        if await prometheus_api.answers(session, url + path):
            return url + path
    return f"{url}/api/v1/alerts"


def _announce(programs: Programs, alerts_url: str) -> None:
    if programs.prometheus:
        logger.info("Prometheus: %s (alerts: %s)", programs.prometheus.url, alerts_url)
    if programs.grafana:
        logger.info("Grafana: %s (folder Dynamometer, without a login)", programs.grafana.url)
    if programs.prometheus:
        logger.info("to start, with promtool query instant %s 'QUERY':", programs.prometheus.url)
        for question in QUESTIONS if programs.targets.sd_url else EXPORTER_QUESTIONS:
            logger.info("  %s (%s)", question.promql, question.title)
    logger.info("running until Ctrl-C")


class _TargetLog:
    """Logs the targets and the frontend's list, whenever they change.

    Attributes:
        targets: the targets at the last update.
        complete: all targets are known, and up.
    """

    def __init__(
        self, session: aiohttp.ClientSession, api: PrometheusApi, configured: Targets
    ) -> None:
        self._session = session
        self._api = api
        self._configured = configured
        # The addresses in the frontend's list, at its last answer.
        self._listed: Sequence[str] = ()
        self._problem = ""
        # The health and the error of each target, as logged.
        self._logged: dict[str, tuple[str, str]] = {}
        # The targets that were down at the last update.
        self._down: Set[str] = frozenset()
        self.targets: Sequence[Target] = ()
        self.complete = False

    async def update(self) -> None:
        problem = ""
        try:
            if self._configured.sd_url:
                self._listed = await prometheus_api.discovered(
                    self._session, self._configured.sd_url
                )
        except ObserveError as error:
            problem = f"{error}; waiting for dyno frontend, or for the one that --sd-url names"
        try:
            targets = await self._api.targets()
        except ObserveError as error:
            targets, problem = self.targets, str(error)
        if problem and problem != self._problem:
            logger.warning("%s", problem)
        elif self._problem and not problem:
            logger.info("%s lists targets: %d", self._configured.sd_url, len(self._listed))
        self._problem = problem
        self._log_changes(targets)
        self.targets = targets
        self.complete = (
            not problem
            and len(targets) >= max(len(self._listed), 1)
            and all(target.health == "up" for target in targets)
        )

    def _log_changes(self, targets: Sequence[Target]) -> None:
        for target in targets:
            state = target.health, target.error
            if self._logged.get(target.name) == state:
                continue
            if target.health == "down" and not self._stays_down(target):
                continue
            self._logged[target.name] = state
            if target.health == "up":
                logger.info("%s is up", target.name)
            elif target.health == "down":
                logger.warning("%s is down: %s", target.name, target.error)
        for name in self._logged.keys() - {target.name for target in targets}:
            del self._logged[name]
            logger.info("%s is no longer a target", name)
        self._down = {target.name for target in targets if target.health == "down"}

    def _stays_down(self, target: Target) -> bool:
        """Return whether a target is down for the second time, and still in its list.

        A process that ends cleanly disappears from the frontend's list before Prometheus reads that
        list again.
        """
        listed = target.address in self._listed or target.address in self._configured.exporters
        return listed and target.name in self._down


class _AlertLog:
    """Logs each alert that starts to fire or is resolved."""

    def __init__(self, api: PrometheusApi) -> None:
        self._api = api
        self._firing: Mapping[frozenset[tuple[str, str]], Alert] = {}

    async def update(self) -> None:
        try:
            firing = {frozenset(one.labels.items()): one for one in await self._api.firing()}
        except ObserveError:
            return  # the log of the targets has the error
        for key, alert in firing.items():
            if key not in self._firing:
                logger.warning("alert %s fires: %s", alert.title, alert.summary)
        for key, alert in self._firing.items():
            if key not in firing:
                logger.info("alert %s is resolved: %s", alert.title, alert.summary)
        self._firing = firing
