"""The tables of an audit as arrays: the test clips of a manifest, and one value per (seed, clip, column).

Everything stays in Arrow and NumPy: a study of the paper's size has millions of rows.

Shape letters: S seeds, N clips, C columns (one curve point each: model, method, percentile …).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faithad.errors import StudyError
from faithad.evaluation.arrays import Bools, Integers, Reals
from faithad.evaluation.statistics import refuse_not_finite
from faithad.evaluation.temporal import Intervals


@dataclass(frozen=True)
class EvaluatedClips:
    """The test clips of a manifest, sorted by `clip_id`, as columns (N,); `all_ids` are those of all its clips."""

    all_ids: pa.Array[Any]
    ids: list[str]
    recording: Integers
    duration_s: Reals
    label: Reals
    annotated: Bools
    anomaly_type: npt.NDArray[np.object_]
    machine: npt.NDArray[np.object_]
    section: npt.NDArray[np.object_]
    domain: npt.NDArray[np.object_]
    intervals: list[Intervals]


@dataclass(frozen=True)
class Cube:
    """One value per (seed, clip, column), NaN where a clip was not measured."""

    values: Reals
    columns: list[tuple[Any, ...]]

    def of_clips(self, chosen: Bools) -> Cube:
        return Cube(self.values[:, chosen], self.columns)


def read_test_clips(manifest: pa.Table) -> EvaluatedClips:
    """The rows of schemas.MANIFEST whose split is `test`."""
    manifest = manifest.sort_by("clip_id")
    test = manifest.filter(pc.equal(manifest["split"], pa.scalar("test")))
    recordings = np.array(test["recording"].to_pylist(), dtype=object)
    return EvaluatedClips(
        all_ids=manifest["clip_id"].combine_chunks(),
        ids=[str(clip_id) for clip_id in test["clip_id"].to_pylist()],
        recording=np.unique(recordings, return_inverse=True)[1].astype(np.int64),
        duration_s=test["duration_s"].to_numpy(),
        label=np.array([math.nan if label is None else label for label in test["label"].to_pylist()], dtype=np.float64),
        annotated=np.array(test["annotated"].to_pylist(), dtype=np.bool_),
        **{
            name: np.array(test[name].to_pylist(), dtype=object)
            for name in ("anomaly_type", "machine", "section", "domain")
        },
        intervals=[
            [(interval["onset_s"], interval["offset_s"]) for interval in intervals or ()]
            for intervals in test["intervals"].to_pylist()
        ],
    )


def refuse_unknown_clips(clip_ids: pa.ChunkedArray[Any], known: pa.Array[Any]) -> None:
    """Raise `StudyError` where a table of an audit holds clips that its manifest does not."""
    unknown = clip_ids.filter(pc.invert(pc.is_in(clip_ids, value_set=known)))
    if len(unknown):
        raise StudyError(
            f"The audit's tables hold clip {unknown[0].as_py()}, which the manifest does not: they belong to another "
            "index. Run the audit again."
        )


def read_cube(table: pa.Table, value: str, keys: Sequence[str], clips: EvaluatedClips) -> Cube:
    """One value column of an audit's table, by seed, test clip and the key columns; other clips' rows are left out.

    Raises:
        StudyError: the manifest does not hold a clip of the table, a row occurs twice, or a value is not finite.
    """
    refuse_unknown_clips(table["clip_id"], clips.all_ids)
    clip = pc.index_in(table["clip_id"], value_set=pa.array(clips.ids, pa.string()))
    table = table.filter(pc.is_valid(clip))
    clip_codes = pc.drop_null(clip).to_numpy().astype(np.int64)
    seed_codes, seeds = _codes(table["seed"])
    columns, column_codes = _combinations([_codes(table[key]) for key in keys])
    values = table[value].to_numpy()
    refuse_not_finite(values, f"values of {value}")
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


def mean_over_percentiles(cube: Cube, percentiles: Collection[float] = ()) -> Cube:
    """The mean over all percentiles, in columns whose percentile is None; NaN where a clip lacks one of them.

    Args:
        cube: columns (model, name, percentile).
        percentiles: of the experiment. A line that is not known at all of them has no mean.
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for column, (model, name, _) in enumerate(cube.columns):
        columns.setdefault((model, name), []).append(column)
    columns = {
        key: of_name for key, of_name in columns.items() if {cube.columns[k][2] for k in of_name} >= set(percentiles)
    }
    means = [cube.values[:, :, of_name].mean(axis=2) for of_name in columns.values()]
    values = np.stack(means, axis=2) if means else cube.values[:, :, :0]
    return Cube(values, [(*key, None) for key in columns])


def _codes(column: pa.ChunkedArray[Any]) -> tuple[Integers, list[Any]]:
    """For each row the position of its value among the distinct values, and these, sorted."""
    encoded = column.combine_chunks().dictionary_encode()
    rank = pc.rank(encoded.dictionary).to_numpy().astype(np.int64) - 1
    return rank[encoded.indices.to_numpy()], sorted(encoded.dictionary.to_pylist())


def _combinations(keys: Sequence[tuple[Integers, list[Any]]]) -> tuple[list[tuple[Any, ...]], Integers]:
    """The combinations of keys that occur, in order, and for each row the position of its combination."""
    if not len(keys[0][0]):
        return [], keys[0][0]
    sizes = tuple(len(values) for _, values in keys)
    flat, codes = np.unique(np.ravel_multi_index([code for code, _ in keys], sizes), return_inverse=True)
    parts = np.unravel_index(flat, sizes)
    names = [[values[index] for index in part] for (_, values), part in zip(keys, parts, strict=True)]
    return list(zip(*names, strict=True)), codes
