"""What a notebook needs of finished runs: their tables, as pandas frames."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from faithad import storage
from faithad.audit.finished import require_finished
from faithad.config.yaml_text import read_mapping, read_text
from faithad.errors import StudyError
from faithad.runs import layout
from faithad.runs.formats import require_readable
from faithad.runs.prune import SPECTROGRAMS, pruned
from faithad.runs.tables import read_manifest, read_tables, run_folders, table_files


def events(audit: str | Path) -> pd.DataFrame:
    """The events of a finished audit, by time; see the table `events`.

    Args:
        audit: the folder or URI that `faithad audit --out` wrote to.

    Raises:
        StudyError: there is no audit, it has not ended, or a newer faithad made it.
    """
    require_finished(str(audit))
    return read_table(audit, "events")


def read_table(root: str | Path, table: str, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of a study or of an audit, with all shards and models in one frame.

    Args:
        root: of a study, or the folder of an audit; a local path or a URI.
        table: a name from `layout.TABLES`, such as `manifest`, `scores`, `attributions`, `f_score`, `events`.
        columns: which to read, all by default. Curves and maps come as flat arrays, one for each row.

    Raises:
        StudyError: there is no such table, or a newer faithad wrote it.
        DamagedError: a file of it is damaged, gone or not finished.
    """
    require_readable(str(root))
    if not table_files(str(root), table):
        names = ", ".join(_tables_in(str(root))) or "no table at all"
        if table == "spectrograms" and SPECTROGRAMS in pruned(str(root)):
            raise StudyError(f"`faithad prune` removed the table {table!r} from {root}. An audit makes it again.")
        raise StudyError(f"There is no table {table!r} in {root}, but {names}. Check the folder, and the table's name.")
    wanted = None if columns is None else list(columns)
    if table == "manifest":  # older ones lack columns
        manifest = read_manifest(str(root))
        return (manifest if wanted is None else manifest.select(wanted)).to_pandas()
    parts = [part.to_pandas() for part in read_tables(str(root), table, columns=wanted)]
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class StudyResults:
    """The contents of a study's root.

    Attributes:
        root: a local path or a URI.
        settings: the study's resolved configuration, section by section.
        models: the folder of each trained model by its name, such as `mae-0`; see `load_model`.
        tables: the names of the tables that are there; see `read_table`.
    """

    root: str
    settings: dict[str, Any]
    models: dict[str, str]
    tables: tuple[str, ...]

    @functools.cached_property
    def manifest(self) -> pd.DataFrame:
        """One row for each clip."""
        return self.table("manifest")

    def table(self, name: str, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """See `read_table`."""
        return read_table(self.root, name, columns=columns)


def open_study(root: str | Path) -> StudyResults:
    """Open a study that has run, in whole or in part.

    Args:
        root: of the study, a local path or a URI.

    Raises:
        StudyError: there is no study, or a newer faithad made it.
        ConfigError: its `study.yaml` is damaged.
    """
    root = str(root)
    require_readable(root)
    location = storage.join(root, layout.STUDY)
    if not storage.exists(location):
        raise StudyError(f"There is no study in {root}: no {layout.STUDY}. Check the folder, or run the study first.")
    settings, _ = read_mapping(read_text(location), name=location)
    return StudyResults(root, settings, run_folders(root, "models"), tuple(_tables_in(root)))


def _tables_in(root: str) -> list[str]:
    return [name for name in layout.TABLES if table_files(root, name)]
