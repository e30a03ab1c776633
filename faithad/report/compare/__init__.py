"""Several runs side by side (`faithad compare`): what differs, what is new, what drifted.

runs        the runs and their names, and the settings that differ
audits      numbers, clips and events of two audits
drifts      whether recorders or single recordings changed, and what that did to the scores
studies     numbers and clips of two studies
page        all of it as a page and as tables
"""

from faithad.report.compare.page import compare_runs

__all__ = ["compare_runs"]
