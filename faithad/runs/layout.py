"""Where everything is below a root: the root of a study, or the folder that an audit of recordings writes to.

All paths are relative, as marks of stages name them; `storage.join(root, ...)` makes locations of them. A table that
is written shard by shard is a folder of files with the names of `shard`.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from faithad import schemas

MANIFEST = "manifest.parquet"
# Recordings, and parts of recordings, that became no clip.
INDEX_LEDGER = "index_ledger.parquet"
# Levels, channels and faults of each recording, as the index heard it.
HEALTH = "health.parquet"
REPORT = "report.html"
SUMMARY = "summary"
# Which FORMAT the tables have.
FORMAT = "format.json"
# What `faithad prune` removed, and when.
PRUNED = "pruned.json"

# Of a study.
STUDY = "study.yaml"
FEATURES = "features"
FEATURES_LEDGER = "features/ledger"
SEARCH = "search"
TRIALS = "search/trials"
MODELS = "models"
TRAININGS = "training"
AUDITS = "audit"
BEST = "best.yaml"
BEST_MODEL = "best"
BEST_ENSEMBLE = "best_ensemble"
SEARCH_REPORT = "search.html"

# Of runs that are tracked, see `runs.tracking`: the root's own mark, and what each tracker keeps here by default.
TRACKING = "tracking.json"
TENSORBOARD = "tensorboard"
MLFLOW = "mlflow"
WANDB = "wandb"
# In a run's folder of wandb: which part of the run was exported.
WANDB_MARK = "faithad.json"

# Of a comparison of several runs.
COMPARISON = "compare.html"

# Of an audit of recordings: the files that it read, every second of them, its events, its settings, its model's.
INPUTS = "inputs.parquet"
LEDGER = "ledger.parquet"
EVENTS = "events.parquet"
# Which explanations can be trusted, see `audit.reasons`.
REASONS = "reasons.parquet"
# Changes of the sound that last.
STATES = "states.parquet"
# For the report: the sound of each event, and what other thresholds would bring.
SOUNDS = "sounds.parquet"
# The same of a study: the sound of its example clips.
CLIP_SOUNDS = "clip_sounds.parquet"
OPERATING_POINTS = "operating_points.parquet"
# What a reviewer decided about the events, and the labels that follow from it.
DECISIONS = "review/decisions.parquet"
CONFIRMED = "review/confirmed.csv"
REJECTED = "review/rejected.csv"
AUDIT = "audit.yaml"
MODEL = "model.json"

# Folders of marks: of stages that began or ended, of what processes work on at the moment.
STAGES = "stages"
# Which driver works in the root, see `runs.lock`.
DRIVER = f"{STAGES}/driver.json"
ATTEMPTS = "attempts"
HEADER_ATTEMPTS = "header_attempts"
FEATURE_ATTEMPTS = "features/attempts"

# In the folder of a training or of a trial: the last state, from which it goes on.
STATE = "state.pt"
# In a trial's folder: its settings other than those in its name, its result, its test clips' scores, and the
# note by which the scheduler stops it.
TRIAL_SETTINGS = "settings.json"
TRIAL_RECORD = "record.json"
TRIAL_SCORES = "scores.parquet"
TRIAL_STOP = "stop"

# In a model's folder, which may have been copied elsewhere.
VALIDATION_SCORES = "validation_scores.parquet"
PIECE_SCORES = "piece_scores.parquet"
EPOCHS = "epochs.parquet"

# Next to the tables that a step writes shard by shard: its ledgers of shards, see `runs.shards`. EXPLAINED is that of
# an audit that explains its clips in a second step.
SCORED, EXPLAINED = "ledger", "explained"
SHARD_LEDGERS = (SCORED, EXPLAINED)

# Tables of an audit, a folder of shards each.
SCORES = "scores"
# Of an audit of recordings whose model has an alarm for what lasts.
MEDIAN_SPECTRA = "median_spectra"
EXPLANATIONS = ("attributions", "localization", "faithfulness", "controls", "lines", "checks", "spectrograms")


def shard(number: int) -> str:
    """The file of a shard, the same in every table and at every run."""
    return f"part-{number:05d}.parquet"


def features(split: str) -> str:
    return f"{FEATURES}/{split}"


def model(name: str, seed: int) -> str:
    """The folder of a trained model."""
    return f"{MODELS}/{name}-{seed}"


def epochs(name: str, seed: int) -> str:
    return f"{model(name, seed)}/{EPOCHS}"


def validation_scores(name: str, seed: int) -> str:
    return f"{model(name, seed)}/{VALIDATION_SCORES}"


def training(name: str, seed: int) -> str:
    """The folder of a training's last state."""
    return f"{TRAININGS}/{name}-{seed}"


def trial(name: str) -> str:
    """The folder of one trial of a search."""
    return f"{TRIALS}/{name}"


def audit(name: str, seed: int) -> str:
    """The folder of one model's audit in a study."""
    return f"{AUDITS}/{name}-{seed}"


def summary(table: str) -> str:
    return f"{SUMMARY}/{table}.parquet"


class TablePlace(NamedTuple):
    """Where a table lies, and what it holds. A place is None where there is no such table.

    Attributes:
        in_study: a file or a folder of shards below a study's root; `*` stands for each `<model>-<seed>`.
        in_audit: the same, below the folder that an audit of recordings writes to.
        row: what one row is.
        schema: its columns. Where a list's length follows from the model's shape, it is 1 here.
        in_comparison: as the first two, below the folder that `faithad compare` writes to.
    """

    in_study: str | None
    in_audit: str | None
    row: str
    schema: pa.Schema
    in_comparison: str | None = None


def _summary(table: str, row: str, schema: pa.Schema) -> TablePlace:
    return TablePlace(summary(table), summary(table), row, schema)


TABLES = {
    "manifest": TablePlace(MANIFEST, MANIFEST, "clip", schemas.MANIFEST),
    "health": TablePlace(HEALTH, HEALTH, "recording that could be opened", schemas.HEALTH),
    "ledger": TablePlace(summary("ledger"), LEDGER, "clip, or part of a recording that became none", schemas.LEDGER),
    "inputs": TablePlace(None, INPUTS, "recording that was read", schemas.INPUTS),
    "epochs": TablePlace(f"models/*/{EPOCHS}", None, "epoch of a training", schemas.EPOCHS),
    "validation_scores": TablePlace(
        f"models/*/{VALIDATION_SCORES}", None, "validation clip, all of which are normal", schemas.VALIDATION_SCORES
    ),
    "piece_scores": TablePlace(f"models/*/{PIECE_SCORES}", None, "piece of a validation clip", schemas.PIECE_SCORES),
    "scores": TablePlace(f"audit/*/{SCORES}", SCORES, "clip (of a study: test clip) and model", schemas.SCORES),
    **{
        name: TablePlace(f"audit/*/{name}", name, row, schema)
        for name, row, schema in [
            ("attributions", "explained clip, model and method", schemas.attributions(1, 1)),
            ("localization", "annotated clip, model, method, protocol and percentile", schemas.LOCALIZATION),
            ("faithfulness", "explained clip, model, method, protocol, mode and percentile", schemas.FAITHFULNESS),
            ("controls", "explained clip, model, protocol, metric, line and percentile", schemas.CONTROLS),
            ("lines", "explained clip, model and line", schemas.LINES),
            ("checks", "deep clip, model, method, check, and percentile, share or band group", schemas.CHECKS),
            ("spectrograms", "clip whose maps are kept, and model", schemas.spectrograms(1, 1)),
        ]
    },
    "median_spectra": TablePlace(None, MEDIAN_SPECTRA, "clip", schemas.MEDIAN_SPECTRA),
    "events": TablePlace(None, EVENTS, "event: alarms that lie close together", schemas.EVENTS),
    "reasons": TablePlace(None, REASONS, "method that explains clips of the audit", schemas.COMPARISON),
    "states": TablePlace(None, STATES, "change of a recorder's sound that lasts", schemas.STATES),
    "sounds": TablePlace(None, SOUNDS, "event that can be listened to in the report", schemas.SOUNDS),
    "clip_sounds": TablePlace(
        CLIP_SOUNDS, None, "example clip that can be listened to in the report", schemas.CLIP_SOUNDS
    ),
    "operating_points": TablePlace(
        None, OPERATING_POINTS, "threshold that the alarm's rule gives", schemas.OPERATING_POINTS
    ),
    "decisions": TablePlace(None, DECISIONS, "event that was reviewed", schemas.DECISIONS),
    "summary/detection": _summary("detection", "model, score, metric and type of anomaly", schemas.DETECTION_SUMMARY),
    "summary/f_score": _summary("f_score", "model, method, percentile and type of anomaly", schemas.F_SCORE_SUMMARY),
    "summary/faithfulness": _summary(
        "faithfulness", "model, method, metric, mode, percentile and scope", schemas.FAITHFULNESS_SUMMARY
    ),
    "summary/controls": _summary("controls", "model, metric, line, percentile and scope", schemas.CONTROLS_SUMMARY),
    "summary/comparison": _summary(
        "comparison", "question, metric, mode, scope, percentile and method", schemas.COMPARISON
    ),
    "summary/seconds": _summary("seconds", "model, method or line, metric, and which seconds", schemas.SECONDS_SUMMARY),
    "summary/psds": _summary("psds", "model whose error is known, clip by clip", schemas.PSDS_SUMMARY),
    "summary/replacements": _summary("replacements", "model, method, metric and replacement", schemas.REPLACEMENTS),
    "summary/bands": _summary("bands", "model, method or line, and scope", schemas.BANDS),
    "summary/sanity": _summary("sanity", "model, method and check", schemas.SANITY),
    "summary/events": TablePlace(
        None, summary("events"), "kind of detection that is matched with reference intervals", schemas.EVENT_SUMMARY
    ),
    "summary/search": TablePlace(summary("search"), None, "trial of a search", schemas.SEARCH_SUMMARY),
    "summary/search_scores": TablePlace(
        summary("search_scores"), None, "score that was compared with the best trial's model", schemas.SEARCH_SCORES
    ),
    "summary/search_members": TablePlace(
        summary("search_members"), None, "ensemble that was compared, the best first", schemas.SEARCH_MEMBERS
    ),
    "summary/search_comparison": TablePlace(
        summary("search_comparison"), None, "question, `best_cell`, if it was asked", schemas.COMPARISON
    ),
    **{
        f"compared/{name}": TablePlace(None, None, row, schema, in_comparison=f"{name}.parquet")
        for name, row, schema in [
            ("settings", "run and setting that differs", schemas.COMPARED_SETTINGS),
            ("numbers", "run and number", schemas.COMPARED_NUMBERS),
            ("clips", "run, metric, model and method that is compared clip by clip", schemas.COMPARED_CLIPS),
            ("events", "event of a run or of its reference", schemas.COMPARED_EVENTS),
            ("drift", "run, recorder and quantity", schemas.DRIFT),
        ]
    },
}
