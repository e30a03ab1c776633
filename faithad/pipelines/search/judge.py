"""What a trial's weights are worth: the objective of the search, and what else its record tells.

All of it is told by clips that the weights have not learned from, and by the best weights so far: those of the lowest
validation loss, as `faithad train` would keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from faithad import storage
from faithad.config.study import parse_study
from faithad.evaluation.detection import auc
from faithad.evaluation.disturbances import disturbed_clips, proxy_auc
from faithad.features import Normalization
from faithad.model.fast_network import arithmetic
from faithad.model.masking import mse_per_clip
from faithad.model.micro_batches import forwards_at_once
from faithad.model.table import build_network
from faithad.model.training import Training
from faithad.pipelines.search.clips import load_clips
from faithad.pipelines.search.plan import MODEL, Record, Trial, trial_folder, write_record

TEST_SCORES = pa.schema([pa.field("clip_id", pa.string(), nullable=False), pa.field("score", pa.float64())])

# The objective after each epoch; None before there were any weights to judge.
Values = list[float | None]

_DIVERGED = (
    "diverged before it learned anything: the validation loss is no finite number. Lower train.learning_rate or set "
    "features.normalization to 'training'"
)


class Judge:
    """What is told of weights by clips that they have not learned from.

    Normal and disturbed validation clips are kept on the device, as the network takes them in; the test clips, which
    may be many, where the objective needs them after each epoch.

    Args:
        arguments: as `train_trial` takes them.
        device: where to judge.
    """

    def __init__(self, arguments: Mapping[str, Any], device: torch.device) -> None:
        study = parse_study(arguments["study"], name="study.yaml")
        self._study, self._device, self._judged_epoch = study, device, 0
        self._is_tested: bool = arguments["is_tested"]
        self._labels: Mapping[str, int] | None = arguments.get("labels")
        self._normalization = Normalization(torch.tensor(arguments["mean"]), torch.tensor(arguments["std"]))
        settings = study.feature_settings
        clip_ids, validation = load_clips(study.root, "validation", settings)
        disturbed = disturbed_clips(validation.numpy(), clip_ids, settings=settings, seed=study.search.seed)
        self._normal = self._prepared(validation)
        self._disturbed = self._prepared(torch.from_numpy(disturbed.log_mels))
        self._test: tuple[list[str], torch.Tensor] | None = None
        self._network = build_network(MODEL, study.features.n_mels, study.n_frames(MODEL)).to(device).eval()

    def value(self, training: Training, values: Values) -> float | None:
        """The objective by the best weights so far; it changes only where these do."""
        if training.best is None:
            return None
        if training.best.epoch != self._judged_epoch or not values:
            self._judged_epoch = training.best.epoch
            return self._objective(training)
        return values[-1]

    def conclude(self, training: Training, trial: Trial, values: Values) -> None:
        """Write what the trial came to: the scores of the test clips, then the record."""
        best, history = training.best, training.history
        status = "failed" if best is None else "done" if training.finished else "stopped"
        if best is not None and self._is_tested:
            clip_ids, scores = self._test_scores(training)
            table = pa.table({"clip_id": clip_ids, "score": scores}, schema=TEST_SCORES)
            storage.write_table(table, scores_location(self._study.root, trial), schema=TEST_SCORES)
        record = Record(
            *trial,
            status=status,
            reason=_DIVERGED if best is None else None,
            values=tuple(values),
            proxy_auc=None if best is None else self._proxy_auc(training),
            validation_loss=None if best is None else best.validation_loss,
            best_epoch=None if best is None else best.epoch,
            diverged_epochs=sum(epoch.diverged for epoch in history),
            duration_s=sum(epoch.duration_s for epoch in history),
        )
        write_record(self._study.root, record)

    def _objective(self, training: Training) -> float:
        objective = self._study.search.objective
        if objective == "validation_loss":
            assert training.best is not None
            return training.best.validation_loss
        if objective == "test_auc":
            assert self._labels is not None
            clip_ids, scores = self._test_scores(training)
            labels = [self._labels.get(clip_id) for clip_id in clip_ids]
            known = [number for number, label in enumerate(labels) if label is not None]
            return auc(scores[known], [label for label in labels if label is not None])
        return self._proxy_auc(training)

    def _proxy_auc(self, training: Training) -> float:
        return proxy_auc(self._scores(self._normal, training), self._scores(self._disturbed, training))

    def _test_scores(self, training: Training) -> tuple[list[str], np.ndarray]:
        """The clip_ids and the scores of the test clips."""
        test = self._test
        if test is None:
            clip_ids, log_mels = load_clips(self._study.root, "test", self._study.feature_settings)
            test = clip_ids, self._prepared(log_mels)
        if self._study.search.objective == "test_auc":
            self._test = test
        return test[0], self._scores(test[1], training)

    def _prepared(self, log_mels: torch.Tensor) -> torch.Tensor:
        """Clips (n, F, T) as the network takes them in."""
        return self._normalization.apply(log_mels[..., : self._study.n_frames(MODEL)]).to(self._device)

    def _scores(self, x: torch.Tensor, training: Training) -> np.ndarray:
        """E(x) of clips (n, F, T) by the best weights, (n,) float64."""
        self._network.load_state_dict(training.best_weights())
        limit = forwards_at_once(self._study.audit.micro_batch, x.device)
        with torch.inference_mode(), arithmetic("float32"):
            parts = [mse_per_clip(self._network(part), part) for part in x.split(limit)]
        scores: np.ndarray = torch.cat([*parts, torch.zeros(0, device=x.device)]).double().cpu().numpy()
        return scores


def scores_location(root: str, trial: Trial) -> str:
    return storage.join(trial_folder(root, trial), "scores.parquet")
