"""Where everything stands below a root: the root of a study, or the folder that an audit of recordings writes to.

All paths are relative, as marks of stages name them; `storage.join(root, ...)` makes locations of them. A table that
is written shard by shard is a folder of files with the names of `shard`.
"""

from __future__ import annotations

MANIFEST = "manifest.parquet"
# Recordings, and parts of recordings, that became no clip.
INDEX_LEDGER = "index_ledger.parquet"
REPORT = "report.html"
SUMMARY = "summary"

# Of a study.
STUDY = "study.yaml"
FEATURES = "features"
FEATURES_LEDGER = "features/ledger"
SEARCH = "search"
TRIALS = "search/trials"
MODELS = "models"
AUDITS = "audit"
BEST = "best.yaml"
SEARCH_REPORT = "search.html"

# Of an audit of recordings: the files that it read, every second of them, its events, its settings, its model's.
INPUTS = "inputs.parquet"
LEDGER = "ledger.parquet"
EVENTS = "events.parquet"
AUDIT = "audit.yaml"
MODEL = "model.json"

# Folders of marks: of stages that began or ended, of what processes work on at the moment.
STAGES = "stages"
ATTEMPTS = "attempts"

# In the folder of a training or of a trial: the last state, from which it goes on.
STATE = "state.pt"
# In a trial's folder: what came of it, its test clips' scores, and the note by which the scheduler stops it.
TRIAL_RECORD = "record.json"
TRIAL_SCORES = "scores.parquet"
TRIAL_STOP = "stop"

# In a model's folder, which may have been copied elsewhere.
VALIDATION_SCORES = "validation_scores.parquet"

# Tables of an audit, a folder of shards each.
SCORES = "scores"
EXPLANATIONS = ("attributions", "localization", "faithfulness", "spectrograms")


def shard(number: int) -> str:
    """The file of a shard, the same in every table and at every run."""
    return f"part-{number:05d}.parquet"


def features(split: str) -> str:
    return f"{FEATURES}/{split}"


def model(name: str, seed: int) -> str:
    """The folder of a trained model."""
    return f"{MODELS}/{name}-{seed}"


def epochs(name: str, seed: int) -> str:
    return f"{model(name, seed)}/epochs.parquet"


def validation_scores(name: str, seed: int) -> str:
    return f"{model(name, seed)}/{VALIDATION_SCORES}"


def training(name: str, seed: int) -> str:
    """The folder of a training's last state; it goes when the model is there."""
    return f"training/{name}-{seed}"


def trial(name: str) -> str:
    """The folder of one trial of a search."""
    return f"{TRIALS}/{name}"


def audit(name: str, seed: int) -> str:
    """The folder of one model's audit in a study."""
    return f"{AUDITS}/{name}-{seed}"


def summary(table: str) -> str:
    return f"{SUMMARY}/{table}.parquet"
