"""The tables of a study, an audit or a search in, one self-contained HTML file out.

Reads Parquet and YAML below a root, local or remote, and needs neither torch nor Ray: a report can be made again on any
machine that sees the tables.
"""

from faithad.report.audit_page import render_audit_report
from faithad.report.search_page import render_search_report
from faithad.report.study_page import render_report

__all__ = ["render_audit_report", "render_report", "render_search_report"]
