"""Tables: written and read whole, damage found."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from faithad import parquet
from faithad.errors import DamagedError, StudyError

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def test_tables_of_a_folder_are_read_as_one(tmp_path: Path) -> None:
    for number in (1, 0):
        table = pa.table({"extra": ["x"], "n": [number]})
        parquet.write_table(table, str(tmp_path / f"part-{number}.parquet"), schema=SCHEMA)
    assert parquet.read_table(str(tmp_path)).to_pydict() == {"n": [0, 1]}
    assert parquet.read_table(str(tmp_path / "part-1.parquet")).schema == SCHEMA


def test_a_table_that_is_replaced_while_it_is_read_is_read_whole(tmp_path: Path) -> None:
    """A training's `epochs.parquet` is replaced after each epoch, and watched meanwhile."""
    location = str(tmp_path / "epochs.parquet")
    counts = range(1, 400)

    def write() -> None:
        for count in counts:
            parquet.write_table(pa.table({"n": list(range(count))}), location, schema=SCHEMA, flush=False)

    parquet.write_table(pa.table({"n": [0]}), location, schema=SCHEMA)
    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while writer.is_alive():
        rows = parquet.read_table(location)["n"].to_pylist()
        assert rows == list(range(len(rows)))
        seen.add(len(rows))
    writer.join()
    assert len(seen) > 10


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no table at .*absent"):
        parquet.read_table(str(tmp_path / "absent"))


def test_no_flipped_bit_of_a_table_changes_what_is_read(tmp_path: Path) -> None:
    """Each byte in turn, and each length: the rows are those that were written, or the file is damaged."""
    table = pa.table({"clip": ["a", "b", None], "score": [1.0, 2.5, 4.0], "spans": [[1], [], [2, 3]]})
    file = tmp_path / "t.parquet"
    parquet.write_table(table, str(file), schema=table.schema)
    content = file.read_bytes()
    changed = [content[:k] + bytes([byte ^ 1 << k % 8]) + content[k + 1 :] for k, byte in enumerate(content)]
    outcomes = []
    for other in [*changed, *(content[:k] for k in range(0, len(content), 16))]:
        file.write_bytes(other)
        try:
            assert parquet.read_rows(str(file)).equals(table)
            outcomes.append("same")
        except DamagedError:
            outcomes.append("damaged")
    assert outcomes.count("damaged") > len(content) / 2
