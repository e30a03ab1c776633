"""Every figure of a report as files for a paper (`faithad figures`)."""

from __future__ import annotations

from collections.abc import Sequence

from faithad import storage
from faithad.errors import ConfigError
from faithad.progress import progress
from faithad.report.audit_figures import audit_drawings
from faithad.report.audit_page import time_line
from faithad.report.audit_tables import read_audit
from faithad.report.drawing import COLUMNS_IN, FORMATS, Drawing
from faithad.report.reading import is_study
from faithad.report.search_page import OBJECTIVES
from faithad.report.search_tables import SUMMARY, read_search
from faithad.report.search_views import scatter_drawings
from faithad.report.study_figures import study_drawings
from faithad.report.study_tables import read_study
from faithad.vocabulary import count


def write_figures(run: str, to: str, *, formats: Sequence[str] = ("pdf",)) -> str:
    """Write each figure of a study's or an audit's page in a column's width and in that of two.

    Args:
        run: the root of a study, or the folder of an audit.
        to: folder or URI; its files are called `<figure>-<width>.<format>`.
        formats: of FORMATS.

    Returns:
        What was written, in words.

    Raises:
        ConfigError: there is no such format.
        StudyError: there is no finished study or audit.
    """
    unknown = [format for format in formats if format not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"--format {','.join(unknown)}: the formats of figures are {', '.join(FORMATS)}.")
    drawings = _drawings(run)
    with progress("figures", len(drawings)) as ticker:
        for number, drawing in enumerate(drawings):
            for column, width_in in COLUMNS_IN.items():
                for format, content in zip(formats, drawing.files(formats, width_in), strict=True):
                    storage.write_bytes(storage.join(to, f"{drawing.name}-{column}.{format}"), content, flush=False)
            ticker.update(number + 1)
    widths = " and ".join(f"{width_in:.2f} in ({column} column)" for column, width_in in COLUMNS_IN.items())
    return f"{count(len(drawings), 'figure')}, {widths} wide, as {', '.join(formats)}: {to}"


def _drawings(run: str) -> list[Drawing]:
    if not is_study(run):
        audit = read_audit(run)
        return audit_drawings(audit, time_line(audit) if len(audit.scores) else None)
    drawings = study_drawings(read_study(run))
    if storage.exists(storage.join(run, SUMMARY)):
        search = read_search(run)
        title = OBJECTIVES.get(search.objective, search.objective)
        drawings += [drawing for _, drawing in scatter_drawings(search, title)]
    return drawings
