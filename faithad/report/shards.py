"""Reading the shards of an audit's tables: many small files, of which a page needs few columns and fewer rows.

Curves exist for every explained clip and whole (F, T) maps may too, so arrays are read for a few clips only: first the
`clip_id` column of each shard, then the shards that hold a chosen clip.

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faithad import schemas, storage

Row = dict[str, Any]

_ROWS_AT_ONCE = 64

_T = TypeVar("_T")


@dataclass(frozen=True)
class Example:
    """One clip as one model sees it. Grids are (F, T); `log_mel` is in the unit of the features."""

    clip_id: str
    model: str
    seed: int
    log_mel: np.ndarray
    reconstruction: np.ndarray
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    degenerate: frozenset[str] = frozenset()


def each(read: Callable[[str], _T], files: Iterable[str]) -> list[_T]:
    """What `read` gives for each file, in their order; side by side, since a remote file takes its time to answer."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(read, files))


def columns_of(files: list[str], columns: list[str], schema: pa.Schema) -> pa.Table:
    """These columns of all rows."""
    tables = each(lambda file: storage.read_table(file, columns=columns), files)
    return pa.concat_tables(tables) if tables else schema.empty_table().select(columns)


def matching(
    files: list[str], columns: list[str], schema: pa.Schema, *, clip_ids: Collection[str], **equal: Any
) -> pa.Table:
    """These columns of the rows of the given clips whose other columns have the given values (or one of a list).

    Shards are read one by one and only the rows that are wanted are kept.
    """
    wanted = {"clip_id": list(clip_ids)} | {
        key: value if isinstance(value, list) else [value] for key, value in equal.items()
    }
    needed = list(dict.fromkeys([*columns, *wanted]))
    allowed = {key: pa.array(values, schema.field(key).type) for key, values in wanted.items()}
    condition = None
    for key, values in allowed.items():
        this = pc.field(key).isin(values)
        condition = this if condition is None else condition & this

    def read(file: str) -> pa.Table:
        return storage.read_rows(file, columns=needed, condition=condition).select(columns)

    tables = each(read, files) if clip_ids else []
    return pa.concat_tables(tables) if tables else schema.empty_table().select(columns)


def clip_ids(file: str) -> set[str]:
    """The clips of one shard."""
    return {str(clip_id) for clip_id in storage.read_table(file, columns=["clip_id"])["clip_id"].to_pylist()}


def examples(pictures: list[str], attributions: list[str], chosen: list[str]) -> list[Example]:
    """The chosen clips as far as their spectrograms are in the shards `pictures`, in the order in which they come."""
    explained = _rows_of(attributions, chosen)
    found = _rows_of(pictures, chosen)
    return [_example(row, explained.get(clip_id, [])) for clip_id, rows in found.items() for row in rows]


def _rows_of(files: list[str], chosen: list[str]) -> dict[str, list[Row]]:
    """Rows of the given clips by clip, arrays as NumPy; fixed-size lists that hold (F, T) come back in that shape."""
    found: dict[str, list[Row]] = defaultdict(list)
    for file, held in zip(files, each(clip_ids, files), strict=True):
        if not held & set(chosen):
            continue
        with storage.open_input(file) as source, pq.ParquetFile(source) as shard:
            shape = schemas.shape_of(storage.plain(shard.schema_arrow, file))
            # A null map takes as much memory as a real one, so a large shard is read a few rows at a time.
            for batch in shard.iter_batches(batch_size=_ROWS_AT_ONCE):
                for index, clip_id in enumerate(batch["clip_id"].to_pylist()):
                    if clip_id in chosen:
                        row = {name: _cell(batch[name][index], shape) for name in shard.schema_arrow.names}
                        found[clip_id].append(row)
    return found


def _cell(value: pa.Scalar[Any], shape: tuple[int, int]) -> Any:
    if not isinstance(value, pa.FixedSizeListScalar):
        return value.as_py()
    if not value.is_valid:
        return None
    numbers = np.asarray(value.values, dtype=np.float32)
    return numbers.reshape(shape) if numbers.size == shape[0] * shape[1] else numbers


def _example(picture: Row, rows: list[Row]) -> Example:
    rows = [row for row in rows if (row["model"], row["seed"]) == (picture["model"], picture["seed"])]
    return Example(
        clip_id=picture["clip_id"],
        model=picture["model"],
        seed=picture["seed"],
        log_mel=picture["log_mel"],
        reconstruction=picture["reconstruction"],
        curves={row["method"]: row["curve"] for row in rows},
        maps={row["method"]: row["map"] for row in rows if row["map"] is not None},
        degenerate=frozenset(row["method"] for row in rows if row["degenerate"]),
    )
