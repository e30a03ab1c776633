"""The tables of an audit as arrays: the test clips of a manifest, and one value per (seed, clip, column).

Reading stays in Arrow and numpy throughout: a study of the paper's size has millions of rows.

Shape letters: S seeds, N clips, C columns (one curve point each: model, method, percentile …).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faithad.errors import StudyError
from faithad.evaluation.peaks import Bools
from faithad.evaluation.temporal import Intervals

Values = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clips:
    """The test clips of a manifest, sorted by `clip_id`, as columns (N,)."""

    all_ids: pa.Array[Any]
    ids: list[str]
    recording: Codes
    label: Values
    annotated: Bools
    anomaly_type: npt.NDArray[np.object_]
    intervals: list[Intervals]


@dataclass(frozen=True)
class Cube:
    """One value per (seed, clip, column), NaN where a clip was not measured."""

    values: Values
    columns: list[tuple[Any, ...]]

    def of_clips(self, chosen: Bools) -> Cube:
        return Cube(self.values[:, chosen], self.columns)


def read_test_clips(manifest: pa.Table) -> Clips:
    """The rows of schemas.MANIFEST whose split is `test`."""
    manifest = manifest.sort_by("clip_id")
    test = manifest.filter(pc.equal(manifest["split"], pa.scalar("test")))
    names = np.array(test["recording"].to_pylist(), dtype=object)
    return Clips(
        all_ids=manifest["clip_id"].combine_chunks(),
        ids=[str(clip_id) for clip_id in test["clip_id"].to_pylist()],
        recording=np.unique(names, return_inverse=True)[1].astype(np.int64),
        label=np.array([math.nan if label is None else label for label in test["label"].to_pylist()], dtype=np.float64),
        annotated=np.array(test["annotated"].to_pylist(), dtype=np.bool_),
        anomaly_type=np.array(test["anomaly_type"].to_pylist(), dtype=object),
        intervals=[
            [(interval["onset_s"], interval["offset_s"]) for interval in intervals or ()]
            for intervals in test["intervals"].to_pylist()
        ],
    )


def read_cube(table: pa.Table, value: str, keys: Sequence[str], clips: Clips) -> Cube:
    """One value column of an audit's table, by seed, test clip and the key columns; rows of other clips are left out.

    Raises:
        StudyError: rows of clips that the manifest does not hold, rows given twice, or values that are not finite.
    """
    known = pc.is_in(table["clip_id"], value_set=clips.all_ids)
    if not pc.all(known).as_py() and table.num_rows:
        stranger = table["clip_id"].filter(pc.invert(known))[0].as_py()
        raise StudyError(
            f"The audit's tables hold clip {stranger}, which the manifest does not: they belong to another index. "
            "Run the audit again."
        )
    clip = pc.index_in(table["clip_id"], value_set=pa.array(clips.ids, pa.string()))
    table = table.filter(pc.is_valid(clip))
    clip_codes = pc.drop_null(clip).to_numpy().astype(np.int64)
    seed_codes, seeds = _codes(table["seed"])
    columns, column_codes = _combinations([_codes(table[key]) for key in keys])
    values = table[value].to_numpy()
    _refuse_not_finite(values, value)
    shape = (len(seeds), len(clips.ids), len(columns))
    cells = np.ravel_multi_index((seed_codes, clip_codes, column_codes), shape) if len(values) else clip_codes
    if len(cells) and np.bincount(cells).max() > 1:
        raise StudyError(
            f"The table of {value} holds several rows for one clip, seed and {', '.join(keys)}. A shard was probably "
            "written twice: delete the audit's folder and run it again."
        )
    cube = np.full(shape, np.nan)
    cube.reshape(-1)[cells] = values
    return Cube(values=cube, columns=columns)


def _codes(column: pa.ChunkedArray[Any]) -> tuple[Codes, list[Any]]:
    """The distinct values, sorted, and for each row the number of its value."""
    encoded = column.combine_chunks().dictionary_encode()
    found: list[Any] = encoded.dictionary.to_pylist()
    order = sorted(range(len(found)), key=lambda index: found[index])
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    return rank[encoded.indices.to_numpy()], [found[index] for index in order]


def _combinations(keys: Sequence[tuple[Codes, list[Any]]]) -> tuple[list[tuple[Any, ...]], Codes]:
    """The combinations of keys that occur, in order, and for each row the number of its combination."""
    if not len(keys[0][0]):
        return [], keys[0][0]
    sizes = tuple(len(values) for _, values in keys)
    flat, codes = np.unique(np.ravel_multi_index([code for code, _ in keys], sizes), return_inverse=True)
    parts = np.unravel_index(flat, sizes)
    names = [[values[index] for index in part] for (_, values), part in zip(keys, parts, strict=True)]
    return list(zip(*names, strict=True)), codes


def _refuse_not_finite(values: Values, name: str) -> None:
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise StudyError(
            f"{n_bad} of {len(values)} values of {name} are NaN or infinite. The model behind them has probably "
            "diverged: look at its validation loss."
        )
