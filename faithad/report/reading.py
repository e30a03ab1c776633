"""What all pages read: configurations, files that must be there, and the arrays of a few clips.

Curves exist for every explained clip, and whole (F, T) maps may, too. So arrays are read for a few clips only: first
the column `clip_id` of each shard, then the shards that hold a chosen clip.

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, schemas, storage
from faithad.config.yaml_text import read_mapping, read_text
from faithad.errors import ConfigError, StudyError
from faithad.runs import layout
from faithad.runs.shards import table_shards
from faithad.runs.tables import read_shards

# Columns that hold a whole (F, T) map.
_GRIDS = ("map", "log_mel", "reconstruction")


@dataclass(frozen=True)
class Example:
    """One clip as one model sees it. Grids are (F, T), where T counts the frames that hold sound; `log_mel` is in the
    unit of the features.
    """

    clip_id: str
    model: str
    seed: int
    log_mel: np.ndarray
    reconstruction: np.ndarray
    curves: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    degenerate: frozenset[str]


def is_study(root: str) -> bool:
    """Whether a folder is the root of a study, and not that of an audit of recordings.

    Raises:
        StudyError: it is neither.
    """
    if storage.exists(storage.join(root, layout.STUDY)):
        return True
    problem = f"There is neither a study nor an audit at {root}: no {layout.STUDY} and no {layout.AUDIT}."
    required(root, layout.AUDIT, StudyError(f"{problem} Check the folder."))
    return False


def required(root: str, path: str, problem: StudyError) -> str:
    """The location of a file below a root; raises the problem where the file is not there."""
    location = storage.join(root, path)
    if not storage.exists(location):
        raise problem
    return location


def read_settings(location: str) -> tuple[str, dict[str, Any]]:
    """The text of a resolved configuration, and the plain mapping that it holds: a page needs no valid study.

    Raises:
        StudyError: it is no YAML, or no mapping.
    """
    try:
        text = read_text(location)
        settings, _ = read_mapping(text, name=location)
    except ConfigError as error:
        raise StudyError(str(error)) from None
    return text, settings


def look_up(settings: dict[str, Any], key: str) -> Any:
    """The value at a dotted key, or None."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def with_one_clock(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest with the column `on_one_clock`: each `recorded_at` by the offset from UTC of the earliest recording.

    The recorders' own clocks jump when summer time ends; this one does not. Where an offset is not known, the time is
    the recorder's own.
    """
    in_utc = manifest["recorded_at"] - pd.to_timedelta(manifest["utc_offset_s"], unit="s")
    first_s = 0.0 if in_utc.isna().all() else manifest["utc_offset_s"][in_utc.idxmin()]
    on_one_clock = (in_utc + pd.Timedelta(seconds=first_s)).fillna(manifest["recorded_at"])
    return manifest.assign(on_one_clock=on_one_clock)


def pictured_clips(audit: str) -> set[str]:
    """The clips whose spectrograms were kept; `audit` is one model's folder."""
    shards = read_shards(audit, "spectrograms", columns=["clip_id"])
    return {str(clip_id) for shard in shards for clip_id in shard["clip_id"].to_pylist()}


def examples(audit: str, clip_ids: Collection[str]) -> list[Example]:
    """Those of the clips whose spectrograms were kept, in the order of the tables."""
    explained = _rows_of(audit, "attributions", clip_ids)
    pictures = _rows_of(audit, "spectrograms", clip_ids)
    return [_example(rows[0], explained[clip_id]) for clip_id, rows in pictures.items()]


def _rows_of(audit: str, table: str, clip_ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of a table by clip, arrays as NumPy; lists that hold (F, T) come in that shape."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    shards = read_shards(audit, table, columns=["clip_id"])
    for (file, checksum), shard in zip(table_shards(audit, table), shards, strict=True):
        chosen = set(clip_ids).intersection(shard["clip_id"].to_pylist())
        if chosen:
            condition = pc.field("clip_id").isin(sorted(chosen))
            kept = parquet.read_rows(file, condition=condition, checksum=checksum)
            n_mels, _ = schemas.shape_of(kept.schema)
            for index, clip_id in enumerate(kept["clip_id"].to_pylist()):
                rows[clip_id].append({name: _cell(name, kept[name][index], n_mels) for name in kept.column_names})
    return rows


def _cell(column: str, value: pa.Scalar[Any], n_mels: int) -> Any:
    # In results of FORMAT 1 and 2, lists have a fixed size.
    if not isinstance(value, pa.ListScalar | pa.FixedSizeListScalar):
        return value.as_py()
    if not value.is_valid:
        return None
    numbers = np.asarray(value.values, dtype=np.float32)
    return numbers.reshape(n_mels, -1) if column in _GRIDS else numbers


def _example(picture: dict[str, Any], explanations: list[dict[str, Any]]) -> Example:
    return Example(
        **{name: picture[name] for name in ("clip_id", "model", "seed", "log_mel", "reconstruction")},
        curves={row["method"]: row["curve"] for row in explanations},
        maps={row["method"]: row["map"] for row in explanations if row["map"] is not None},
        degenerate=frozenset(row["method"] for row in explanations if row["degenerate"]),
    )
