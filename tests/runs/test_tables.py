"""Reading the tables below a root, those of older releases among them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from faithad import schemas
from faithad.clips.manifest import ClipRow, manifest_table
from faithad.errors import StudyError
from faithad.runs.tables import read_manifest


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


def test_a_root_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="There is no table"):
        read_manifest(str(tmp_path))
