"""Read the tables below a root. One that is written shard by shard is many small files, which are read side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad import listing, parquet, schemas, storage
from faithad.clips.recording_names import read_name
from faithad.runs import layout
from faithad.runs.lookahead import side_by_side
from faithad.runs.shards import at_once, table_shards
from faithad.storage import Checksum
from faithad.vocabulary import PAPER

# Columns that tables of an older FORMAT lack, and what they mean there: all maps were judged as in the paper.
_ADDED: dict[str, dict[str, pa.Scalar[Any]]] = {
    "scores": dict.fromkeys(
        ("spectrum_difference_db", "level_difference_db", "level_db", "loudest_second_db"),
        pa.scalar(None, pa.float64()),
    ),
    "localization": {"protocol": pa.scalar(PAPER)},
    "faithfulness": {"protocol": pa.scalar(PAPER), "normalized": pa.scalar(None, pa.float64())},
}


def read_manifest(root: str) -> pa.Table:
    """The manifest below a root, as schemas.MANIFEST.

    Of the columns that an older release did not write, those that the recordings' names give are made from them, and
    the others are null.

    Raises:
        StudyError: there is none.
    """
    manifest = parquet.read_table(storage.join(root, layout.MANIFEST))
    recordings = manifest["recording"].combine_chunks().dictionary_encode()
    names = [read_name(recording) for recording in recordings.dictionary.to_pylist()]
    for column in ("utc_offset_s", "recorder"):
        if column not in manifest.column_names:
            field = schemas.MANIFEST.field(column)
            values = pa.array([getattr(name, column) for name in names], field.type)
            manifest = manifest.append_column(field, pc.take(values, recordings.indices))
    return _with_all_columns(manifest, schemas.MANIFEST)


def read_events(root: str) -> pa.Table:
    """The events of an audit, as schemas.EVENTS; columns that an older release did not write are null.

    Raises:
        StudyError: there is no such table.
    """
    return _with_all_columns(parquet.read_table(storage.join(root, layout.EVENTS)), schemas.EVENTS)


def _with_all_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for field in schema:
        if field.name not in table.column_names and field.nullable:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def shard_files(folder: str) -> list[str]:
    """Locations of the shards of a table, in their order; none where there is no such table."""
    return [location for _, location in listing.list_files(folder, suffixes=[".parquet"])]


def run_folders(root: str, folder: str) -> dict[str, str]:
    """The folders `<model>-<seed>` in a folder of a study, by their names; those that hold anything."""
    files = listing.list_files(storage.join(root, folder), suffixes=[""])
    return {path.split("/")[0]: storage.join(root, folder, path.split("/")[0]) for path, _ in files if "/" in path}


def table_files(root: str, table: str) -> list[str]:
    """Locations of a table's files below the root of a study or an audit, in their order; none where it is not there.

    Args:
        root: a local path or a URI.
        table: a row of `layout.TABLES`, or `summary/<name>` for a summary of `evaluation.summary.SUMMARIES`.
    """
    files: list[str] = []
    for folder, name in _places(root, table):
        location = storage.join(folder, name)
        files += (
            shard_files(location) if not name.endswith(".parquet") else [location] if storage.exists(location) else []
        )
    return files


def read_tables(root: str, table: str, *, columns: Collection[str] | None = None) -> Iterator[pa.Table]:
    """The files of a table, as `table_files` lists them; none where it is not there.

    Raises:
        DamagedError: one is damaged or gone, or the shard is not finished.
    """
    for folder, name in _places(root, table):
        location = storage.join(folder, name)
        if not name.endswith(".parquet"):
            yield from read_shards(folder, name, columns=columns)
        elif storage.exists(location):
            yield parquet.read_rows(location, columns=None if columns is None else list(columns))


def _places(root: str, table: str) -> list[tuple[str, str]]:
    """Each folder that may hold a table, and the name of the table's file or folder of shards in it."""
    place = layout.TABLES.get(table)
    summary = layout.summary(table.removeprefix(f"{layout.SUMMARY}/"))
    patterns = [summary] if place is None else filter(None, (place.in_study, place.in_audit, place.in_comparison))
    places: list[tuple[str, str]] = []
    for pattern in dict.fromkeys(patterns):
        head, star, tail = pattern.partition("*/")
        folders = list(run_folders(root, head.rstrip("/")).values()) if star else [root]
        places += [(folder, tail if star else head) for folder in folders]
    return places


def read_shards(
    folder: str,
    table: str,
    *,
    columns: Collection[str] | None = None,
    condition: pc.Expression | None = None,
    may_lack: Collection[str] = (),
) -> Iterator[pa.Table]:
    """The shards of a table, in their order.

    Args:
        folder: in which the table lies.
        table: its name there.
        columns: what to read, all by default.
        condition: which rows to read, all by default.
        may_lack: columns that are left out of a shard that does not have them.

    Raises:
        DamagedError: a shard is damaged, gone or not finished, see `shards`.
    """

    def read(shard: tuple[str, Checksum | None]) -> pa.Table:
        names = None if columns is None else list(columns)
        rows = parquet.read_rows(
            shard[0], columns=names, condition=condition, checksum=shard[1], may_lack=[*may_lack, *added]
        )
        for name, value in added.items():
            if name not in rows.column_names and (names is None or name in names):
                rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
        return rows

    added = _ADDED.get(table, {})
    shards = table_shards(folder, table)
    yield from side_by_side(read, shards, at_once=at_once(folder), named=lambda shard: shard[0])


def read_whole(
    folder: str,
    table: str,
    schema: pa.Schema,
    *,
    columns: Collection[str] | None = None,
    condition: pc.Expression | None = None,
) -> pa.Table:
    """All shards of a table as one of the schema, without rows where there are none.

    Shards may be of an older FORMAT: columns that they lack are null. The arguments are those of `read_shards`.
    """
    names = schema.names if columns is None else list(columns)
    nothing = schema.empty_table().select(names)
    may_lack = [field.name for field in schema if field.nullable]
    read = read_shards(folder, table, columns=names, condition=condition, may_lack=may_lack)
    shards = (_with_all_columns(shard, nothing.schema) for shard in read)
    return pa.concat_tables([nothing, *shards]).combine_chunks()
