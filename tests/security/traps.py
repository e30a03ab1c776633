"""Pickles that betray whoever loads them: unpickling one makes a folder."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType


class Trap:
    """Armed pickles of all kinds; `sprung` once one of them was loaded."""

    def __init__(self, folder: Path) -> None:
        self.witness = folder / "witness"

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.witness),)

    @property
    def sprung(self) -> bool:
        return self.witness.exists()

    @property
    def pickled(self) -> bytes:
        return pickle.dumps(self)

    @property
    def saved(self) -> bytes:
        """As `torch.save` writes it."""
        buffer = io.BytesIO()
        torch.save({"training": self}, buffer)
        return buffer.getvalue()

    @property
    def array(self) -> bytes:
        """As `numpy.save` writes an array of objects."""
        buffer = io.BytesIO()
        np.save(buffer, np.array([self], dtype=object))
        return buffer.getvalue()

    @property
    def yaml(self) -> str:
        return f'!!python/object/apply:os.mkdir ["{self.witness}"]'

    def column(self, n_rows: int) -> pa.Array:
        """A column whose values Ray Data's extension type unpickles when they are looked at."""
        return ArrowPythonObjectType().wrap_array(pa.array([self.pickled] * n_rows, pa.large_binary()))

    def arm(self, table: Path, column: str) -> None:
        """Put traps in place of a column's values."""
        content = pq.read_table(table)
        place = content.schema.get_field_index(column)
        pq.write_table(content.set_column(place, column, self.column(content.num_rows)), table)
