"""What the trials of a search are to do: one object for the search, from which each trial's own follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray

from faithad.config.study import Study
from faithad.features import Normalization
from faithad.pipelines.search.plan import MODEL, Trial, trial_location, trial_study
from faithad.pipelines.training.places import Places
from faithad.pipelines.training.task import TrainingTask
from faithad.runs import layout


@dataclass(frozen=True)
class SearchTask:
    """What the trials of a search have in common.

    Attributes:
        study: the study.
        normalization: of the features.
        clips: as in a `TrainingTask`.
        is_tested: whether there are labelled test clips, which each trial scores in the end.
        labels: of the test clips by clip_id, for the objective `test_auc` alone: the others never see a label.
        places: what the workers of a trial get.
        ray_is_ours: whether Ray was started for this search alone.
    """

    study: Study
    normalization: Normalization
    clips: Mapping[str, ray.ObjectRef] | None
    is_tested: bool
    labels: Mapping[str, int] | None
    places: Places
    ray_is_ours: bool

    def task_of(self, trial: Trial) -> TrialTask:
        study = trial_study(self.study, trial.cell)
        training = TrainingTask(
            study,
            MODEL,
            trial.seed,
            self.normalization,
            self.places.threads,
            state=trial_location(study.root, trial, layout.STATE),
            fingerprint=trial.name,
            clips=self.clips,
            trial=trial.name,
        )
        return TrialTask(self, trial, training)


@dataclass(frozen=True)
class TrialTask:
    """One trial of a search. The study of its `training` is the study of its cell."""

    search: SearchTask
    trial: Trial
    training: TrainingTask

    @property
    def stop_note(self) -> str:
        """Where the scheduler's note is that stops the trial."""
        return trial_location(self.search.study.root, self.trial, layout.TRIAL_STOP)
