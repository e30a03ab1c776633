"""The scores of pieces of a model's validation clips, in the model's folder: `schemas.PIECE_SCORES`.

Models of earlier releases have none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.runs import layout
from faithad.vocabulary import POOLINGS


def write_piece_scores(folder: str, pieces: Mapping[float, pa.Table]) -> None:
    """Write the scores of pieces, by their duration in seconds; each table has the columns of VALIDATION_SCORES."""
    tables = [
        table.select(["score", "worst_second_score"]).add_column(
            0, schemas.PIECE_SCORES.field("duration_s"), pa.array([duration_s] * table.num_rows, pa.float64())
        )
        for duration_s, table in pieces.items()
    ]
    table = pa.concat_tables([schemas.PIECE_SCORES.empty_table(), *tables])
    storage.write_table(table, storage.join(folder, layout.PIECE_SCORES), schema=schemas.PIECE_SCORES)


def read_piece_scores(folder: str, pooling: str) -> dict[float, np.ndarray]:
    """The scores (n,) of a pooling, by the pieces' duration; empty where the model has none."""
    location = storage.join(folder, layout.PIECE_SCORES)
    if not storage.exists(location):
        return {}
    table = storage.read_table(location).select(["duration_s", POOLINGS[pooling].column]).drop_null()
    return {
        duration_s: table.filter(pc.equal(table["duration_s"], duration_s))[1].to_numpy()
        for duration_s in pc.unique(table["duration_s"]).to_pylist()
    }
