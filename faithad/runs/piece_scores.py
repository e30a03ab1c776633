"""The scores of pieces of a model's validation clips, in the model's folder: `schemas.PIECE_SCORES`.

Models of earlier releases have none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, schemas, storage
from faithad.runs import layout
from faithad.vocabulary import POOLINGS


def write_piece_scores(folder: str, pieces: Mapping[float, pa.Table]) -> None:
    """Write the scores of pieces, by their duration in seconds; each table has the columns of VALIDATION_SCORES."""
    schema = schemas.PIECE_SCORES
    tables = [
        table.select(schema.names[1:])
        .add_column(0, "duration_s", pa.array([duration_s] * table.num_rows, pa.float64()))
        .cast(schema)
        for duration_s, table in pieces.items()
    ]
    parquet.write_table(
        pa.concat_tables([schema.empty_table(), *tables]), storage.join(folder, layout.PIECE_SCORES), schema=schema
    )


def read_pieces(folder: str) -> dict[float, pa.Table]:
    """The scores of pieces, by their duration in seconds; empty where the model has none."""
    location = storage.join(folder, layout.PIECE_SCORES)
    if not storage.exists(location):
        return {}
    table = parquet.read_table(location)
    return {
        duration_s: table.filter(pc.equal(table["duration_s"], duration_s)).drop_columns(["duration_s"])
        for duration_s in pc.unique(table["duration_s"]).to_pylist()
    }


def read_piece_scores(folder: str, pooling: str) -> dict[float, np.ndarray]:
    """The scores (n,) of a pooling, by the pieces' duration; empty where the model has none."""
    column = POOLINGS[pooling].column
    of_pieces = {
        duration_s: (paper_scores(table) if pooling == "mean" else table[column]).drop_null()
        for duration_s, table in read_pieces(folder).items()
    }
    return {duration_s: scores.to_numpy() for duration_s, scores in of_pieces.items() if len(scores)}


def paper_scores(table: pa.Table) -> pa.ChunkedArray:
    """The mean squared errors of clips or pieces, which the table may hold in addition to another score."""
    has_both = "paper_score" in table.column_names and not table["paper_score"].null_count and table.num_rows
    return table["paper_score" if has_both else "score"]
