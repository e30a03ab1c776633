"""The Arrow schema of every table that is written: the contract with everybody downstream.

Plain Arrow types only, so that pandas, DuckDB and Polars read each file without Ray or torch. Long form: one row per
key. Units are in the names (`_s` seconds). Where a column holds a whole (F, T) map it is flattened row by row (mel
band by mel band) and the shape is in the schema's metadata under `shape`.

    recordings      MANIFEST, HEALTH, INPUTS, LEDGER: one file each
    training        EPOCHS, VALIDATION_SCORES, PIECE_SCORES, SEARCH_SUMMARY, SEARCH_SCORES, SEARCH_MEMBERS
    clip_results    SCORES, LOCALIZATION, FAITHFULNESS and others, attributions(), spectrograms():
                    one folder of shards per (model, seed)
    events          EVENTS, STATES, SOUNDS, CLIP_SOUNDS, OPERATING_POINTS, DECISIONS
    summaries       DETECTION_SUMMARY and others, COMPARISON, EVENT_SUMMARY
    compared        COMPARED_SETTINGS and others, DRIFT: of several runs
    meanings        MEANINGS: what each column says

Other modules import all of them from here.
"""

from __future__ import annotations

from faithad.schemas.clip_results import *  # noqa: F403
from faithad.schemas.compared import *  # noqa: F403
from faithad.schemas.events import *  # noqa: F403
from faithad.schemas.meanings import *  # noqa: F403
from faithad.schemas.recordings import *  # noqa: F403
from faithad.schemas.summaries import *  # noqa: F403
from faithad.schemas.training import *  # noqa: F403

# Raised when a table gains, loses or changes a column; older ones are always read. 1: release 0.1.0. 2: the manifest
# has machine, section and domain. 3: the manifest has utc_offset_s, recorder, channel, take and shard, events have
# utc_offset_s, inputs have gone; curves, maps and spectrograms are as long as the clip's sound; scores have
# spectrum_difference_db, level_difference_db, level_db and loudest_second_db; scores and events have raised_by; scores
# have windows and window_threshold, validation_scores worst_windows; localization and faithfulness have protocol
# (before: all of them `paper`), faithfulness has normalized; scores and validation_scores have paper_score;
# summary/detection has score, anomaly_type and n_normal_needed; summary/search has present and settings, epochs have
# gradient_norm; new tables of an audit are sounds (with expected and expected_log_mel), operating_points, decisions,
# lines, reasons, median_spectra and states; events have normalized and trusted; summary/seconds, summary/psds and
# summary/search_scores; clip_sounds of a study; compared/* of a comparison; summary/search_members.
FORMAT = 3
