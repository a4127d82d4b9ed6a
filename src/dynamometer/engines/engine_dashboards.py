"""The dashboards of all engines' own families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dynamometer.engines import sglang_panels
from dynamometer.panels import Dashboard

ENGINE_DASHBOARDS: Final[Sequence[Dashboard]] = (sglang_panels.ENGINE,)
