"""Writes `docs/tables.md` from `faithad.schemas` and `faithad.runs.layout`: `python docs/tables.py`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from faithad import schemas
from faithad.runs import layout

PAGE = Path(__file__).with_name("tables.md")
INTRODUCTION = f"""# Tables

Made by `docs/tables.py` from `faithad/schemas/`: `make docs` writes it anew.

Everything that a study or an audit finds is in Parquet files of plain Arrow types, which pandas, DuckDB and Polars read
without faithad. Where a table is a folder, its files are shards: read them all. `*` stands for each `<model>-<seed>`.
`F` and `T` are the model's mel bands and frames; tables with maps hold both in their schema's metadata, under `shape`,
as `FxT`. Times are in seconds where a column ends in `_s`; wall clocks have no zone.

`format.json` in the root says which FORMAT the tables have: {schemas.FORMAT} with this version. FORMAT is raised when a
table gains, loses or changes a column. Results of an older FORMAT are read; those of a newer one are refused by name.
From Python, `faithad.read_table(root, "scores")` gives any of them as a pandas frame.
"""


def page() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    for name, place in layout.TABLES.items():
        where = [f"in a study `{place.in_study}`"] if place.in_study else []
        where += [f"in an audit `{place.in_audit}`"] if place.in_audit else []
        where += [f"in a comparison `{place.in_comparison}`"] if place.in_comparison else []
        rows = [_row(column, _meaning(name, column.name)) for column in place.schema]
        head = "| column | type | may be null | meaning |\n|---|---|---|---|"
        sections.append(
            f"## {name}\n\nOne row per {place.row}; {', '.join(where)}.\n\n" + "\n".join([head, *rows]) + "\n"
        )
    return "\n".join(sections)


def _row(column: pa.Field, meaning: str) -> str:
    return f"| `{column.name}` | `{_type(column)}` | {'yes' if column.nullable else ''} | {meaning} |"


def _meaning(table: str, column: str) -> str:
    return schemas.MEANINGS.get(f"{table}.{column}") or schemas.MEANINGS[column]


def _type(column: pa.Field) -> str:
    """The column's type; the lengths of lists are those that follow from the model's shape."""
    if pa.types.is_fixed_size_list(column.type):
        length = {"curve": "T", "profile": "F"}.get(column.name, "F x T")
        return f"fixed_size_list<{column.type.value_type}>[{length}]"
    if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
        return f"list<struct<{', '.join(f'{part.name}: {part.type}' for part in column.type.value_type)}>>"
    return f"list<{column.type.value_type}>" if pa.types.is_list(column.type) else str(column.type)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
