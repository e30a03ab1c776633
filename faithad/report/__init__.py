"""A study's tables in, one self-contained HTML file out.

Reads Parquet and `study.yaml` below a study's root, local or remote, and needs neither torch nor Ray: a report can be
made again on any machine that sees the tables.
"""

from faithad.report.render import render_report

__all__ = ["render_report"]
