"""`docs/tables.md` says what the schemas say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from faithad import schemas
from faithad.runs import layout

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_of_today(tables: ModuleType) -> None:
    assert (DOCS / "tables.md").read_text() == tables.page(), "run `make docs`"


def test_every_column_has_a_meaning_and_every_meaning_a_column() -> None:
    columns = {(name, column) for name, place in layout.TABLES.items() for column in place.schema.names}
    used = {f"{table}.{column}" if f"{table}.{column}" in schemas.MEANINGS else column for table, column in columns}
    assert used == set(schemas.MEANINGS)


def test_every_schema_is_a_table_of_the_page() -> None:
    import pyarrow as pa

    named = {name for name, value in vars(schemas).items() if isinstance(value, pa.Schema)}
    shown = {name for name in named if any(getattr(schemas, name) is place.schema for place in layout.TABLES.values())}
    assert named == shown
