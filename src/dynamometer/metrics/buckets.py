"""Upper bounds of histogram buckets, without +Inf: those of NVIDIA Dynamo 1.6.1."""

from __future__ import annotations

from typing import Final

REQUEST_DURATION_BUCKETS: Final = (0.0, 2, 4, 8, 16, 32, 64, 130, 260, 510)
TIME_TO_FIRST_TOKEN_BUCKETS: Final = (
    0.0, 0.0022, 0.0047, 0.01, 0.022, 0.047, 0.1, 0.22, 0.47, 1, 2.2, 4.7, 10, 22, 48, 100,
    220, 480,
)  # fmt: skip
INTER_TOKEN_LATENCY_BUCKETS: Final = (
    0.0, 0.0018, 0.0033, 0.0059, 0.011, 0.02, 0.035, 0.064, 0.12, 0.21, 0.38, 0.69, 1.2, 2.3, 4.1,
    7.4, 13, 24, 44, 80,
)  # fmt: skip
INPUT_TOKENS_BUCKETS: Final = (
    0.0, 100, 210, 430, 870, 1800, 3600, 7400, 15000, 31000, 63000, 130000,
)  # fmt: skip
OUTPUT_TOKENS_BUCKETS: Final = (0.0, 100, 210, 430, 880, 1800, 3700, 7600, 16000, 32000)
COMPONENT_DURATION_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600,
)  # fmt: skip
FIRST_RESPONSE_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
