"""What a model says of clips: their scores and explanations, and how well these agree with labels and with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import PAPER_METHODS, choose_methods
from faithad.audit.clip_rows import clip_score
from faithad.audit.model import AuditEnsemble, AuditModel, prepare_audit
from faithad.audit.shard import audit_clips
from faithad.config.sections import Attribution, Audit
from faithad.errors import ConfigError, RecordingError
from faithad.evaluation import temporal
from faithad.evaluation.arrays import Bools
from faithad.evaluation.faithfulness import errors_after_replacement, faithfulness_score, segment_masks
from faithad.evaluation.peaks import curve, peak_frames
from faithad.evaluation.temporal import Intervals, Localization
from faithad.library.arrays import Array, as_batch, duration_of, fill_short, n_heard, references_of
from faithad.model.masking import mean_per_clip
from faithad.model.micro_batches import forwards_at_once
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble, load_any
from faithad.settings import AttributionSettings


def load_model(folder: str | Path) -> AnyModel:
    """A trained model, with its features, its normalisation and its alarm, on the CPU and in eval mode.

    Args:
        folder: that holds `model.safetensors`, or `ensemble.safetensors` with its members: a local path or a URI.
            Nothing in it is unpickled or run.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    return load_any(str(folder))


def score(model: AnyModel, log_mels: Array, *, reference: Array | None = None) -> pd.DataFrame:
    """The anomaly score of each clip, the same as an audit computes.

    Args:
        model: from `load_model`.
        log_mels: (B, F, frames) or (F, frames), from `log_mel`.
        reference: (F,), or (B, F) for clips of several recordings, from `recording_spectrum`. Models with
            `features.reference: recording` need it, others do not look at it.

    Returns:
        One row for each clip, with the columns of the table `scores`: `score`, the mean of the squared reconstruction
        error; `worst_second_score`, that of its worst second, which begins at `worst_onset_s`; `worst_mel_band`, from
        0; `threshold` and `alarm` of the alarm that is stored with the model, and of clips that alarm the values of
        their `windows` of 0.25 s beside `window_threshold`; `spectrum_difference_db` and `level_difference_db` from the
        nearest training clip; `level_db` and `loudest_second_db`, which need no model. A model that gives a score only
        has neither a worst second nor a worst band. An ensemble's `score` is the sum of its members' calibrated scores,
        and `raised_by` names the member that the clip is explained by.

    Raises:
        RecordingError: the log-mels have other mel bands than the model needs or less than a second of sound, the
            reference is missing or has another shape, or a score is not a finite number.
    """
    filled, n_frames = fill_short(model, log_mels)
    references = references_of(model, reference, len(filled))
    clips = [
        {"clip_id": str(number), "recording": f"clip {number}", "onset_s": 0.0, "duration_s": duration_of(model, n),
         "intervals": None, "annotated": False, "keep_maps": False,
         "reference": None if references is None else references[number].tolist()}
        for number, n in enumerate(n_frames)
    ]  # fmt: skip
    rows = audit_clips(_prepared(model), clips, filled, explain=False)
    if failed := [row for row in rows["ledger"] if row["status"] == "failed"]:
        raise RecordingError(f"{failed[0]['recording']}: {failed[0]['reason']}")
    unknown = dict.fromkeys(["spectrum_difference_db", "level_difference_db", "window_threshold"], float)  # None is NaN
    return pd.DataFrame(rows["scores"]).drop(columns=["clip_id", "model", "seed", "paper_score"]).astype(unknown)


def attribute(
    model: AnyModel,
    log_mels: Array,
    *,
    methods: Iterable[str] = PAPER_METHODS,
    settings: AttributionSettings | None = None,
    seed: int = 0,
    clip_ids: Sequence[str] | None = None,
    reference: Array | None = None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Which cells the score of each clip comes from, by several methods.

    Args:
        model: one that is explained: `model.explained`.
        log_mels: (B, F, frames) or (F, frames).
        methods: names from `faithad.attribution.methods.METHODS`.
        settings: the constants of the methods; those of the paper where there are none.
        seed: of the noise of SmoothGrad and GradSHAP, and of baselines that are drawn from normals.
        clip_ids: B names that these are keyed by, so that a clip has the same map in every batch; by default
            the clips' numbers.
        reference: as for `score`.

    Returns:
        For each method its maps (B, F, T), or with fewer frames if the log-mels have fewer.

    Raises:
        ConfigError: the model is not explained, or a method is unknown.
        RecordingError: as `score`.
    """
    if not model.explained:
        raise ConfigError(f"The model {model.name!r} is scored only; give one that is explained, such as 'mae'.")
    x, n_frames = _network_input(model, log_mels, reference)
    ids = list(clip_ids or [str(number) for number in range(len(x))])
    if len(ids) != len(x):
        raise ConfigError(f"{len(x)} clips need as many ids, which key their noise; {len(ids)} were given.")
    chosen = [method.name for method in choose_methods(methods)]
    maps = {method: torch.full_like(x, torch.nan) for method in chosen}
    for part, numbers in _parts(model, log_mels, reference):
        of_part = attribute_batch(
            _explained(part),
            x[numbers],
            n_frames=[n_frames[k] for k in numbers],
            methods=chosen,
            settings=settings or AttributionSettings(),
            seed=seed,
            clip_ids=[ids[k] for k in numbers],
            score=part.detector,
            normals=part.trained.normals,
        )
        for method, of_method in of_part.items():
            maps[method][numbers] = of_method
    for of_method in maps.values():
        for of_clip, n in zip(of_method, n_frames, strict=True):
            of_clip[:, n:] = torch.nan
    width = as_batch(log_mels).shape[-1]
    return {method: of_method[..., :width].cpu().numpy() for method, of_method in maps.items()}


def peaks(maps: Array, percentile: float | Sequence[float] = 95.0) -> Bools:
    """The frames that maps point at: those whose sum over the mel bands reaches the clip's own percentile.

    Args:
        maps: (..., F, T); NaN after the end of a short clip, where there are no peaks.
        percentile: 0 to 100, one or several.

    Returns:
        bool (..., T), or (..., P, T) for several percentiles.

    Raises:
        ValueError: a percentile is below 0 or above 100.
    """
    curves, percentiles = curve(maps), np.atleast_1d(percentile).tolist()
    several = np.zeros((*curves.shape[:-1], len(percentiles), curves.shape[-1]), dtype=np.bool_)
    for place in np.ndindex(curves.shape[:-1]):
        own = curves[place][: n_heard(~np.isnan(curves[place]))]
        several[place][:, : len(own)] = peak_frames(own, percentiles)
    return several if np.ndim(percentile) else several[..., 0, :]


def localization(model: AnyModel, peaks: Bools, intervals: Intervals) -> Localization:
    """How well the seconds that hold a peak agree with those that are annotated, for one clip.

    Args:
        model: whose features say how many frames a second has.
        peaks: bool (..., T), from `peaks`.
        intervals: the annotated intervals of the clip, (onset, offset) in seconds from its start.

    Returns:
        Counts of seconds `tp`, `fp`, `fn`, and `precision`, `recall`, `f_score`; arrays (...).
    """
    return temporal.localization(peaks, intervals, frames_per_s=model.features.frames_per_s)


def faithfulness(
    model: AnyModel,
    log_mels: Array,
    maps: Array,
    *,
    percentile: float | Sequence[float] = 95.0,
    intervals: Sequence[Intervals] | None = None,
    reference: Array | None = None,
) -> npt.NDArray[np.float64]:
    """The share of each clip's score that goes where the frames at the peaks are replaced by their reconstruction.

    Args:
        model: one that reconstructs: `model.reconstructs`.
        log_mels: (B, F, frames) or (F, frames).
        maps: of one method, (B, F, T) or (F, T), from `attribute`.
        percentile: of the peaks, one or several.
        intervals: of each clip, see `localization`. Where they are given, all annotated frames of each second that
            holds a peak are replaced (mode `segment` of the tables), else the peaks alone (mode `frame`).
        reference: as for `score`.

    Returns:
        (B,) from 0 to 1, or (B, P) for several percentiles.

    Raises:
        ConfigError: the model gives a score only.
        RecordingError: as `score`.
        ValueError: maps or intervals do not fit the clips.
    """
    if not model.reconstructs:
        raise ConfigError(f"The model {model.name!r} reconstructs nothing, so that nothing can be replaced.")
    x, n_frames = _network_input(model, log_mels, reference)
    masks = peaks(as_batch(maps), np.atleast_1d(percentile).tolist())
    width = min(x.shape[-1], as_batch(log_mels).shape[-1])
    if masks.shape[0] != len(x) or masks.shape[-1] != width:
        raise ValueError(f"{len(x)} clips of {width} frames need as many maps, got {tuple(np.shape(maps))}")
    if intervals is not None:
        frames_per_s = model.features.frames_per_s
        of_clips = [segment_masks(mask, spans, frames_per_s) for mask, spans in zip(masks, intervals, strict=True)]
        masks = np.stack(of_clips)
    masks = np.pad(masks, ((0, 0), (0, 0), (0, x.shape[-1] - width)))
    values = np.empty(masks.shape[:2])
    for part, numbers in _parts(model, log_mels, reference):
        values[numbers] = _faithfulness(part, x[numbers], masks[numbers], [n_frames[k] for k in numbers])
    return values if np.ndim(percentile) else values[:, 0]


def _faithfulness(part: AuditModel, x: Tensor, masks: Bools, n_frames: Sequence[int]) -> npt.NDArray[np.float64]:
    """Of clips (B, F, T) that one model explains, with masks (B, P, T): (B, P)."""
    detector, n_masks = part.detector, masks.shape[1]
    ids = {number: str(number) for number in range(len(x))}
    with torch.inference_mode():
        reconstruction = part.network(x)
        if detector is None:
            scores = mean_per_clip((reconstruction - x).square(), n_frames, dtype=torch.float64)
        else:
            scores = detector.raw(x, list(ids.values()), n_frames)
    before, owners = scores.cpu().numpy(), np.repeat(np.arange(len(x)), n_masks)
    after = errors_after_replacement(
        part.network, x, reconstruction, masks.reshape(-1, masks.shape[-1]), owners, error_before=before,
        micro_batch=forwards_at_once(None, x.device), n_frames=n_frames,
        score=None if detector is None else clip_score(detector, ids),
    )  # fmt: skip
    return faithfulness_score(before[owners], after).reshape(len(x), n_masks)


def _prepared(model: AnyModel) -> AuditModel | AuditEnsemble:
    """The model as an audit uses it, on the device where its network lies; `attribute` has methods of its own."""
    return prepare_audit(model, attribution=Attribution(), audit=Audit(explain="none"), device=_device(model))


def _parts(model: AnyModel, log_mels: Array, reference: Array | None) -> list[tuple[AuditModel, list[int]]]:
    """Each model that explains clips, with the numbers of these clips: of an ensemble the member that raised them."""
    prepared = _prepared(model)
    if isinstance(prepared, AuditModel):
        return [(prepared, list(range(len(as_batch(log_mels)))))]
    raised_by = score(model, log_mels, reference=reference)["raised_by"].to_numpy()
    parts = [(part, np.flatnonzero(raised_by == part.trained.name).tolist()) for part in prepared.members]
    return [(part, numbers) for part, numbers in parts if numbers]


def _explained(part: AuditModel) -> torch.nn.Module:
    if part.explained is None:
        raise ConfigError(f"The model {part.trained.name!r} is scored only; give one that is explained, such as 'mae'.")
    return part.explained


def _device(model: AnyModel) -> torch.device:
    one = next(iter(model.members.values())) if isinstance(model, TrainedEnsemble) else model
    tensors = [*one.network.parameters(), *one.network.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _network_input(model: AnyModel, log_mels: Array, reference: Array | None) -> tuple[Tensor, list[int]]:
    """Normalised clips (B, F, T) on the network's device, and how many frames of each hold sound."""
    filled, n_frames = fill_short(model, log_mels)
    return model.prepare(filled, references_of(model, reference, len(filled))).to(_device(model)), n_frames
