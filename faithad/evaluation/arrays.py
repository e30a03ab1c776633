"""Names for the NumPy arrays that the metrics take and return, and the way from a column of lists to one array."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Reals = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def list_arrays(column: pa.ChunkedArray) -> list[npt.NDArray[np.float32]]:
    """A column of lists, whatever their lengths, as one array for each row."""
    return [np.asarray(row.values, dtype=np.float32) for row in column]
