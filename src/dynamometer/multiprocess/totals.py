"""What files that are read no more have added to the totals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.baseline import less
from dynamometer.multiprocess.cells import Cells
from dynamometer.multiprocess.file import MultiprocessFile

_LAST_BITS: Final = 4


def fold(file: MultiprocessFile, values: NDArray[np.float64], cells: Cells) -> None:
    """Add a file's values to the base of their cells.

    Args:
        file: of a type that counts; a gauge has no past.
        values: as last read, not less its baseline; shape of `file.cells`.
        cells: where the base is.
    """
    added = values if file.baseline is None else less(values, file.baseline)
    with np.errstate(invalid="ignore"):  # infinities of two signs
        np.add.at(cells.base, file.cells, added)
    cells.based[file.cells] = True


def keep(before: NDArray[np.float64], cells: Cells, apply: Callable[[], None]) -> None:
    """Added up in another order, a total must not lose its last bit.

    For Prometheus that would be a counter's reset.

    Args:
        before: the cells' values before files were folded.
        cells: the cells.
        apply: computes their values.
    """
    apply()
    short = np.flatnonzero(cells.based & (cells.values < before))
    for _ in range(_LAST_BITS):
        if not short.size:
            return
        missing = before[short] - cells.values[short]
        smallest = np.nextafter(cells.base[short], np.inf) - cells.base[short]
        cells.base[short] += np.maximum(missing, smallest)
        apply()
        short = short[cells.values[short] < before[short]]
