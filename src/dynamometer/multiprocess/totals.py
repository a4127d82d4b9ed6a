"""What files that are read no more have added to the totals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.baseline import less
from dynamometer.multiprocess.cells import Cells

_LAST_BITS: Final = 4


def fold(
    values: NDArray[np.float64],
    places: NDArray[np.int32],
    baseline: NDArray[np.float64] | None,
    cells: Cells,
) -> None:
    """Add a file's values to the base of their cells.

    Args:
        values: as last read; none of a gauge, which has no past.
        places: the cell of each.
        baseline: what each counts from; None for zero.
        cells: where the base is.
    """
    if not values.size:
        return
    added = values if baseline is None else less(values, baseline)
    with np.errstate(invalid="ignore"):  # infinities of two signs
        np.add.at(cells.base, places, added)
    cells.based[places] = True


def keep(before: NDArray[np.float64], cells: Cells, apply: Callable[[], None]) -> None:
    """Added up in another order, a total must not lose its last bit.

    For Prometheus that would be a counter's reset.

    Args:
        before: the cells' values before files were folded; others may have come since.
        cells: the cells.
        apply: computes their values.
    """
    apply()
    known = before.size
    short = np.flatnonzero(cells.based[:known] & (cells.values[:known] < before))
    for _ in range(_LAST_BITS):
        if not short.size:
            return
        missing = before[short] - cells.values[short]
        smallest = np.nextafter(cells.base[short], np.inf) - cells.base[short]
        cells.base[short] += np.maximum(missing, smallest)
        apply()
        short = short[cells.values[short] < before[short]]
