"""The records that the trials of a search leave: what came of each, and which of them have nothing more to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from faithad import listing, storage
from faithad.config.study import Study
from faithad.pipelines.search.plan import TRIAL_NAME, Settings, Trial, is_present, trial_location
from faithad.pipelines.training.more_epochs import EPOCHS
from faithad.runs import layout
from faithad.runs.marks import read_mark
from faithad.runs.stages import ResumableStage


@dataclass(frozen=True)
class Record:
    """What came of a trial.

    Attributes:
        mask_ratio: of the training.
        patch: of the training.
        seed: of the training.
        settings: of the training, as a `Cell` has them.
        status: done, stopped (by the scheduler, early) or failed (it diverged in its first epoch).
        reason: why it failed.
        values: the objective of the best weights so far, after each epoch; None before there were any.
        proxy_auc: of the best weights.
        validation_loss: of the best weights.
        best_epoch: the epoch of the best weights, counted from 1.
        diverged_epochs: how many epochs diverged; after the first the trial went back to its best one.
        duration_s: of all epochs.
        epochs: how many there were to be; None in records of searches that could not get more.
    """

    mask_ratio: float
    patch: int
    seed: int
    settings: Settings
    status: str
    reason: str | None = None
    values: tuple[float | None, ...] = ()
    proxy_auc: float | None = None
    validation_loss: float | None = None
    best_epoch: int | None = None
    diverged_epochs: int = 0
    duration_s: float = 0.0
    epochs: int | None = None

    @property
    def trial(self) -> Trial:
        return Trial(self.mask_ratio, self.patch, self.seed, self.settings)

    @property
    def value(self) -> float | None:
        """The objective of the best weights."""
        return self.values[-1] if self.values else None


def is_over(study: Study, record: Record) -> bool:
    """Whether a trial has nothing more to do: false if it was to have fewer epochs than now, and used all of these."""
    n_epochs = len(record.values)
    return (
        record.status != "done"
        or record.epochs is None
        or n_epochs < record.epochs  # it ended by itself
        or n_epochs >= study.train.epochs
    )


def present_records(study: Study) -> list[Record]:
    """The records of the trials that belong to the search, and have nothing more to do."""
    records = read_records(study.root)
    return [record for record in records if is_present(study, record.trial) and is_over(study, record)]


def note_epochs(study: Study, trials: ResumableStage) -> None:
    """Write into records without it how many epochs their trials were to have, if trials are to have more now."""
    before = (trials.settings_before() or {}).get(EPOCHS)
    for record in read_records(study.root) if before is not None and before < study.train.epochs else ():
        if record.epochs is None:
            write_record(study.root, replace(record, epochs=before))


def write_settings(root: str, trial: Trial) -> None:
    """Say in the folder of a trial which further settings it has; a trial without any is known by its name."""
    if trial.settings:
        text = json.dumps(dict(trial.settings), indent=1)
        storage.write_text(trial_location(root, trial, layout.TRIAL_SETTINGS), text)


def write_record(root: str, record: Record) -> None:
    text = json.dumps(asdict(record) | {"settings": dict(record.settings)}, indent=1, allow_nan=False)
    storage.write_text(trial_location(root, record.trial, layout.TRIAL_RECORD), text)


def read_record(root: str, trial: Trial) -> Record | None:
    """The record of a trial, None before it is finished, or where a power cut has damaged it."""
    values = read_mark(trial_location(root, trial, layout.TRIAL_RECORD))
    if values is None:
        return None
    return Record(**values | {"values": tuple(values["values"]), "settings": trial.settings})


def read_records(root: str) -> list[Record]:
    """The records of all finished trials, in the order of `begun_trials`."""
    return [record for trial in begun_trials(root) if (record := read_record(root, trial)) is not None]


def begun_trials(root: str) -> list[Trial]:
    """All trials that left a file, ordered by mask ratio, patch and seed."""
    files = listing.list_files(storage.join(root, layout.TRIALS), suffixes=[".pt", ".json"])
    names = {relative.split("/")[0] for relative, _ in files}
    trials = [Trial.named(name, _read_settings(root, name)) for name in names]
    return sorted(trial for trial in trials if trial is not None)


def _read_settings(root: str, name: str) -> Settings:
    match = TRIAL_NAME.fullmatch(name)
    if match is None or not match["digest"]:
        return ()
    return tuple((read_mark(storage.join(root, layout.trial(name), layout.TRIAL_SETTINGS)) or {}).items())
