"""Format numbers as Go does; prometheus_client writes the values of samples in the same form.

The form is Python's `repr`, except that positive numbers from 1e6 to 1e16 have an exponent, and
that the special values are `NaN`, `+Inf` and `-Inf`.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import orjson
from numpy.typing import NDArray

# Between these bounds orjson writes the same text as `repr`, ten times faster.
_SMALLEST_PLAIN: Final = 1e-4
_SMALLEST_EXPONENT: Final = 1e6
_DIGITS_BEFORE_EXPONENT: Final = 6


def format_number(value: float) -> str:
    """Return the text of one number: `1.0`, `1.5e+06`, `NaN`, `+Inf`."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    text = repr(float(value))
    dot = text.find(".")
    if value > 0 and dot > _DIGITS_BEFORE_EXPONENT:
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{dot - 1:02d}"
    return text


def format_lines(values: NDArray[np.float64]) -> list[bytes]:
    """Return the texts of many numbers, each with the newline that ends a sample line.

    Args:
        values: shape (n,).
    """
    if not values.size:
        return []
    digits = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    lines = (digits[1:-1].replace(b",", b"\n") + b"\n").splitlines(keepends=True)
    magnitude = np.abs(values)
    plain = (values < _SMALLEST_EXPONENT) & (magnitude >= _SMALLEST_PLAIN) & (values > -np.inf)
    plain |= magnitude == 0
    if not plain.all():
        for index in np.flatnonzero(~plain).tolist():
            lines[index] = f"{format_number(float(values[index]))}\n".encode()
    return lines
