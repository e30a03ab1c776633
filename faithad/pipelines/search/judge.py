"""How good a trial's weights are, judged on clips that they have not learned from.

The weights are always the best so far, those of the lowest validation loss, which `faithad train` would keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from faithad import parquet
from faithad.evaluation.detection import auc
from faithad.evaluation.disturbances import disturbed_clips, proxy_auc
from faithad.model.masking import mean_per_clip
from faithad.model.micro_batches import forwards_at_once
from faithad.model.precision import arithmetic
from faithad.model.training import Training
from faithad.pipelines.features import load_n_frames
from faithad.pipelines.search.clips import clips_root, load_clips
from faithad.pipelines.search.plan import MODEL, trial_location
from faithad.pipelines.search.records import Record
from faithad.pipelines.search.task import TrialTask
from faithad.pipelines.training.task import network_of
from faithad.pipelines.training.trained import never_learned
from faithad.runs import layout

_TEST_SCORES = pa.schema([pa.field("clip_id", pa.string(), nullable=False), pa.field("score", pa.float64())])


class Judge:
    """Computes the objective and the record of one trial.

    Normal and disturbed validation clips stay on the device, as the network takes them in. The test clips, which may be
    many, join them when they are first scored.
    """

    def __init__(self, task: TrialTask, device: torch.device) -> None:
        study = task.training.study
        self._task, self._study, self._device = task, study, device
        clip_ids, validation, references = load_clips(study, "validation")
        disturbed = disturbed_clips(
            validation.numpy(), clip_ids, settings=study.feature_settings, seed=study.search.seed
        )
        self._normal = self._prepared(validation, references)
        references = None if references is None else references[torch.from_numpy(disturbed.sources)]
        self._disturbed = self._prepared(torch.from_numpy(disturbed.log_mels), references)
        self._network = network_of(study, MODEL).to(device).eval()

    def objective(self, training: Training) -> float | None:
        """The objective of the best weights so far, None before there are any."""
        if training.best is None:
            return None
        objective = self._study.search.objective
        if objective == "validation_loss":
            return training.best.validation_loss
        return self._test_auc(training) if objective == "test_auc" else self._proxy_auc(training)

    def record(self, training: Training, values: Sequence[float | None]) -> Record:
        """The record of the trial as it ends; writes the scores of the test clips first.

        Args:
            training: of the trial.
            values: the objective after each epoch.
        """
        best, history, trial = training.best, training.history, self._task.trial
        diverged, duration_s = sum(epoch.diverged for epoch in history), sum(epoch.duration_s for epoch in history)
        n = self._study.train.epochs
        if best is None:
            reason = never_learned(self._study)
            return Record(
                *trial, "failed", reason, tuple(values), diverged_epochs=diverged, duration_s=duration_s, epochs=n
            )
        if self._task.search.is_tested:
            table = pa.table({"clip_id": self._test[0], "score": self._test_scores(training)}, schema=_TEST_SCORES)
            location = trial_location(self._study.root, trial, layout.TRIAL_SCORES)
            parquet.write_table(table, location, schema=_TEST_SCORES)
        return Record(
            *trial,
            status="done" if training.finished else "stopped",
            values=tuple(values),
            proxy_auc=self._proxy_auc(training),
            validation_loss=best.validation_loss,
            best_epoch=best.epoch,
            diverged_epochs=diverged,
            duration_s=duration_s,
            epochs=n,
        )

    def _proxy_auc(self, training: Training) -> float:
        # Short clips count as filled up: a disturbance may lie anywhere in them.
        return proxy_auc(self._scores(self._normal, training), self._scores(self._disturbed, training))

    def _test_auc(self, training: Training) -> float:
        labels = self._task.search.labels
        assert labels is not None
        scores = dict(zip(self._test[0], self._test_scores(training), strict=True))
        known = [clip_id for clip_id in scores if clip_id in labels]
        return auc([scores[clip_id] for clip_id in known], [labels[clip_id] for clip_id in known])

    @cached_property
    def _test(self) -> tuple[list[str], torch.Tensor, list[int]]:
        """The clip_ids of the test clips, the clips, and how many frames of each hold sound."""
        clip_ids, log_mels, references = load_clips(self._study, "test")
        n_frames = load_n_frames(self._study, "test", MODEL, root=clips_root(self._study, "test"))
        return clip_ids, self._prepared(log_mels, references), n_frames

    def _test_scores(self, training: Training) -> np.ndarray:
        _, x, n_frames = self._test
        return self._scores(x, training, n_frames)

    def _prepared(self, log_mels: torch.Tensor, references: torch.Tensor | None) -> torch.Tensor:
        """Clips (n, F, T) as the network takes them in."""
        frames = log_mels[..., : self._study.n_frames(MODEL)]
        return self._task.training.normalization.apply(frames, references).to(self._device)

    def _scores(self, x: torch.Tensor, training: Training, n_frames: Sequence[int] = ()) -> np.ndarray:
        """E(x) of clips (n, F, T) by the best weights, (n,) float64; over `n_frames` of each, if not all T."""
        self._network.load_state_dict(training.best_weights())
        limit = forwards_at_once(self._study.audit.micro_batch, x.device)
        with torch.inference_mode(), arithmetic("float32"):
            parts = [
                mean_per_clip((self._network(part) - part).square(), n_frames[k * limit : (k + 1) * limit])
                for k, part in enumerate(x.split(limit))
            ]
        scores: np.ndarray = torch.cat([*parts, torch.zeros(0, device=x.device)]).double().cpu().numpy()
        return scores
