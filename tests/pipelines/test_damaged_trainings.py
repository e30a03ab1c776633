"""Files of a finished training that are damaged are named, so that the same command trains again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from faithad import parquet
from faithad.config.study import load_study
from faithad.pipelines.training.trained import damage
from tests.pipelines.test_damage import KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.safetensors", "epochs.parquet", "validation_scores.parquet"])
def test_each_damaged_file_of_a_training_is_named(released_study: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "models" / "mae-0"
    shutil.copytree(released_study / "models" / "mae-0", folder)
    for table in ("epochs", "validation_scores"):  # that release wrote no checksums of pages
        rows = parquet.read_table(str(folder / f"{table}.parquet"))
        parquet.write_table(rows, str(folder / f"{table}.parquet"), schema=rows.schema)
    study = load_study(str(folder / "study.yaml"), overrides=[f"root={tmp_path}"])
    assert damage(study, "mae", 0) is None
    damages = flip_a_value if (kind, name[-7:]) == ("flipped", "parquet") else KINDS[kind]
    damages(folder / name)
    text = damage(study, "mae", 0)
    assert text is not None
    assert str(folder) in text
    assert re.search("is gone|no trained model" if kind == "gone" else f"{name} is damaged", text)


def flip_a_value(file: Path) -> None:
    """Change the last byte of a table's first column."""
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(file.read_bytes())
    content[start + column.total_compressed_size - 1] ^= 1
    file.write_bytes(content)
