"""Numbers are written as prometheus_client writes them."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.utils import floatToGoString

from dynamometer.exposition.numbers import format_lines, format_number

EDGES = [
    *(sign * 10.0**power for power in range(-12, 25) for sign in (1, -1)),
    *(
        999999.0,
        999999.9999999999,
        1234567.5,
        1e15 + 0.5,
        0.1 + 0.2,
        5e-324,
        1.7976931348623157e308,
    ),
    *(0.0, -0.0, float("inf"), float("-inf"), float("nan")),
]


@given(values=st.lists(st.floats() | st.integers(-(2**60), 2**60).map(float)))
@example(values=EDGES)
def test_same_as_prometheus_client(values: list[float]) -> None:
    expected = [floatToGoString(value) for value in values]
    assert [format_number(value) for value in values] == expected
    assert format_lines(np.array(values, np.float64)) == [f"{text}\n".encode() for text in expected]
