"""Names for the NumPy arrays that the metrics take and return, and the way from a column of lists to one array."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Reals = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def stacked(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of N lists of equal length L as an array (N, L)."""
    lists = column.combine_chunks()
    numbers: npt.NDArray[np.float32] = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(lists), -1)
    return numbers
