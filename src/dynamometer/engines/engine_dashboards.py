"""The dashboards of all engines' own families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dynamometer.engines.sglang_disagg_panels import DISAGGREGATION
from dynamometer.engines.sglang_fleet_panels import FLEET
from dynamometer.engines.sglang_panels import ENGINE
from dynamometer.panels import Dashboard

ENGINE_DASHBOARDS: Final[Sequence[Dashboard]] = (ENGINE, FLEET, DISAGGREGATION)
