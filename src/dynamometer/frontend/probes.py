"""The frontend's answers to probes: `/health`, `/live` and `/v1/health/ready`.

The answers use only facts that this process already has, so that a probe never waits for discovery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

from dynamometer.frontend.member import Member
from dynamometer.http.exchange import Request
from dynamometer.http.messages import Response
from dynamometer.runtime.fleet import Fleet

ENDING = "this frontend is ending"


class Probes:
    """The handlers of probes.

    Attributes:
        draining: True after the signal that ends the frontend; `/health` and `/v1/health/ready`
            then return 503.
    """

    def __init__(self, fleet: Fleet, member: Member | None) -> None:
        """Store the arguments.

        Args:
            fleet: the workers.
            member: for one process of a frontend that has several; None for the only process.
        """
        self._fleet = fleet
        self._member = member
        self.draining = False

    async def health(self, _: Request) -> Response:
        """Return the ready workers of every mode, in the form of NVIDIA Dynamo."""
        instances = [
            {
                "namespace": worker.namespace,
                "component": worker.component,
                "endpoint": worker.endpoint,
                "instance_id": worker.id,
                "transport": {"http": worker.request_url},
            }
            for worker in self._fleet.ready
        ]
        endpoints = sorted(
            {f"dyn://{i['namespace']}.{i['component']}.{i['endpoint']}" for i in instances}
        )
        health: dict[str, object] = {
            "status": "draining" if self.draining else "healthy",
            "endpoints": endpoints,
            "instances": instances,
            **self._processes(),
        }
        if fault := self._fleet.fault():
            health["message"] = fault
        return Response.of_json(health, 503 if self.draining else 200)

    async def live(self, _: Request) -> Response:
        """Return that this process answers."""
        return Response.of_json({"status": "live", "message": "Service is live"})

    async def ready(self, request: Request) -> Response:
        """Return 200 if the models in the query, or any model, can be served now; else 503."""
        query = parse_qs(request.query.decode("latin-1"), keep_blank_values=True)
        models = query.get("model", [])
        reason = self._missing_reason(models)
        outcome = {"status": "ready" if reason is None else "notready"}
        if reason is not None:
            outcome["reason"] = reason
        body = {**outcome, "models": sorted(self._fleet.models), **self._processes()}
        return Response.of_json(body, 200 if reason is None else 503)

    def _missing_reason(self, models: Sequence[str]) -> str | None:
        """Return why one of the models, or any without `models`, cannot be served; None if all can.

        Args:
            models: names as in the `model` of a request.
        """
        fleet = self._fleet
        if self.draining:
            return ENDING
        for model in models:
            name = fleet.resolve(model)
            if name not in fleet.models:
                return fleet.missing_reason(name or model)
        return None if fleet.models else fleet.missing_reason(None)

    def _processes(self) -> Mapping[str, object]:
        """Return the state of all processes of a frontend that has several."""
        return {} if self._member is None else {"processes": self._member.channel.state}
