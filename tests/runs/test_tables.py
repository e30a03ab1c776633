"""Reading the tables below a root, those of older releases among them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from faithad import schemas
from faithad.clips.manifest import ClipRow, manifest_table
from faithad.errors import StudyError
from faithad.runs.tables import read_events, read_manifest, read_tables, read_whole


def test_a_manifest_of_an_older_release_gets_the_new_columns(tmp_path: Path) -> None:
    clips = [ClipRow("a.wav", "/a.wav", 10.0 * k, 10.0, "test", machine="fan") for k in range(3)]
    table = manifest_table(clips)
    pq.write_table(table, tmp_path / "manifest.parquet")
    assert read_manifest(str(tmp_path)).equals(table)
    new = ["machine", "section", "domain"]
    pq.write_table(table.drop_columns(new), tmp_path / "manifest.parquet")
    manifest = read_manifest(str(tmp_path))
    assert manifest.schema.equals(schemas.MANIFEST)
    assert [manifest[name].null_count for name in new] == [3, 3, 3]
    assert manifest.drop_columns(new).equals(table.drop_columns(new))


def test_names_give_the_columns_that_an_older_manifest_lacks(tmp_path: Path) -> None:
    names = ["week/A_20241027T020000+0100.wav", "week/B_20241027_020000.wav", "week/ZOOM0001.wav"]
    table = manifest_table([ClipRow(name, name, 10.0 * k, 10.0, "test") for name in names for k in range(2)])
    pq.write_table(table.drop_columns(["utc_offset_s", "recorder"]), tmp_path / "manifest.parquet")
    manifest = read_manifest(str(tmp_path))
    assert manifest.equals(table)
    assert manifest["utc_offset_s"].to_pylist() == [3600, 3600, None, None, None, None]
    assert manifest["recorder"].to_pylist() == ["week/A_*"] * 2 + ["week/B_*"] * 2 + [None] * 2


def test_events_of_an_older_release_get_the_new_columns(tmp_path: Path) -> None:
    pq.write_table(schemas.EVENTS.empty_table().drop_columns(["utc_offset_s"]), tmp_path / "events.parquet")
    assert read_events(str(tmp_path)).schema.equals(schemas.EVENTS)


def test_a_root_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="There is no table"):
        read_manifest(str(tmp_path))


def test_maps_of_an_older_release_were_judged_as_in_the_paper(released_audit: Path) -> None:
    wanted = pc.field("mode") == "frame"
    rows = read_whole(str(released_audit), "faithfulness", schemas.FAITHFULNESS, condition=wanted)
    assert rows.num_rows > 0
    assert set(rows["protocol"].to_pylist()) == {"paper"}
    assert rows["normalized"].null_count == rows.num_rows
    (frame,) = {tuple(part.column_names) for part in read_tables(str(released_audit), "faithfulness")}
    assert {"protocol", "normalized"} < set(frame)
    few = read_whole(str(released_audit), "faithfulness", schemas.FAITHFULNESS, columns=["clip_id", "protocol"])
    assert few.column_names == ["clip_id", "protocol"]
