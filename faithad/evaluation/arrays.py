"""Names for the NumPy arrays that the metrics take and return, and the way from a column of lists to one array."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Reals = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def stacked(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of N lists of fixed length L as an array (N, L)."""
    numbers = np.asarray(column.combine_chunks().flatten(), dtype=np.float32)
    return numbers.reshape(len(column), column.type.list_size)
