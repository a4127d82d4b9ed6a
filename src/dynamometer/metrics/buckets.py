"""Upper bounds of histogram buckets, without +Inf, as in NVIDIA Dynamo 1.6.1.

Bounds that users can set have their defaults in `variables.BUCKETS`; `settings.read` reads the
users' values. The other bounds are constants here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dynamometer.variables import BucketRange

COMPONENT_DURATION_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600,
)  # fmt: skip
FIRST_RESPONSE_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
STAGE_DURATION_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5)
EVENT_LOOP_DELAY_BUCKETS: Final = (0.0, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
REQUEST_PLANE_QUEUE_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1)
ROUNDTRIP_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


def log_spaced_bounds(bounds_range: BucketRange) -> tuple[float, ...]:
    """Return bounds whose ratios are equal, by the rule of NVIDIA Dynamo.

    The bounds are 0, then `least * (greatest / least) ** (i / (count - 1))` for i from 1 to
    count - 1, each rounded to two significant digits; equal bounds are merged.
    """
    ratio = bounds_range.greatest / bounds_range.least
    steps = (i / (bounds_range.count - 1) for i in range(1, bounds_range.count))
    rounded = (float(f"{bounds_range.least * ratio**step:.1e}") for step in steps)
    return tuple(dict.fromkeys((0.0, *rounded)))


@dataclass(frozen=True)
class FrontendBuckets:
    """Bounds of the frontend's histograms, in seconds and tokens."""

    request_duration: tuple[float, ...]
    time_to_first_token: tuple[float, ...]
    inter_token_latency: tuple[float, ...]
    input_sequence: tuple[float, ...]
    output_sequence: tuple[float, ...]

    @classmethod
    def of(cls, ranges: Mapping[str, BucketRange]) -> FrontendBuckets:
        """Return the bounds for `ranges`, which contains a range for the name of each field."""
        return cls(
            **{field: log_spaced_bounds(bounds_range) for field, bounds_range in ranges.items()}
        )
