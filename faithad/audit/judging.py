"""A clip's curves → what they are worth: their peaks against the annotations, and the score once peaks are replaced.

Each protocol of the study judges the same curves. Lines are judged in the same way as the methods:
curves that need no model and, under `corrected`, the error of the linear model, random frames, and the frames with the
highest error; the last two also in an audit of recordings, at the percentile of its events. `corrected` judges the
first frames of a clip, those on the grid that all models share.

Shape letters: B clips, F mel bands, T frames, P percentiles, K draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from faithad.evaluation.arrays import Bools, Reals
from faithad.evaluation.controls import LINEAR, NO_MODEL, ORACLE, OUTLIER, RANDOM, no_model_curves, random_frames
from faithad.evaluation.faithfulness import (
    ClipScore,
    MaskErrors,
    errors_after_replacement,
    faithfulness_score,
    normalized_faithfulness,
    segment_masks,
    signed_faithfulness,
)
from faithad.evaluation.peaks import PEAKS, Floats, curve, is_flat
from faithad.evaluation.temporal import localization
from faithad.model.micro_batches import forwards_at_once
from faithad.vocabulary import CORRECTED, PAPER

if TYPE_CHECKING:
    from faithad.audit.model import AuditModel

TableRow = dict[str, Any]


class MaskSet(NamedTuple):
    """The frames of one clip that are replaced, for each percentile.

    Attributes:
        protocol: which chose the frames.
        mode: `frame` or `segment`.
        name: of the method or the line whose peaks they are.
        is_line: whether it is a line.
        masks: (P, T) with the T that the protocol judges; of random frames (K P, T), draw by draw.
        percentiles: P of them.
    """

    protocol: str
    mode: str
    name: str
    is_line: bool
    masks: Bools
    percentiles: Sequence[float]


@dataclass
class Clip:
    """What is known of one clip on its way through the audit; `n_frames` of its frames hold sound.

    `curves` are those of its methods that `corrected` judges, on the frames that it judges.
    """

    row: TableRow
    keys: TableRow
    n_frames: int
    is_short: bool
    intervals: list[tuple[float, float]]
    masks: list[MaskSet] = field(default_factory=list)
    curves: dict[str, Floats] = field(default_factory=dict)


def judge_method(clip: Clip, method: str, summed: Floats, model: AuditModel) -> list[TableRow]:
    """The rows of `localization` of one method's curve (T,); the masks of its peaks are added to the clip's."""
    rows: list[TableRow] = []
    frames_per_s, percentiles = model.trained.features.frames_per_s, model.audit.percentiles
    for protocol, peaks in _peaks(clip, summed, model, model.judging.protocols, percentiles):
        clip.masks.append(MaskSet(protocol, "frame", method, False, peaks, percentiles))
        if protocol == CORRECTED:
            clip.curves[method] = summed[: peaks.shape[-1]]
        if not clip.row["annotated"]:
            continue
        in_intervals = segment_masks(peaks, clip.intervals, frames_per_s)
        clip.masks.append(MaskSet(protocol, "segment", method, False, in_intervals, percentiles))
        agreement = localization(peaks, clip.intervals, frames_per_s=frames_per_s)
        for position, percentile in enumerate(percentiles):
            rates = {name: getattr(agreement, name)[position].item() for name in vars(agreement)}
            rows.append({**clip.keys, "method": method, "protocol": protocol, "percentile": percentile, **rates})
    return rows


def judge_lines(
    clip: Clip, log_mel: Tensor, error: Tensor | None, linear: Floats | None, model: AuditModel
) -> tuple[list[TableRow], list[TableRow]]:
    """The rows of `lines`, and the F-scores of `controls`; the masks of the lines' peaks are added to the clip's.

    Args:
        clip: an explained one.
        log_mel: (F, T), in the unit of the features.
        error: squared error of each cell, (F, T).
        linear: error curve (T,) of the linear model; None where there is none.
        model: the audited model.
    """
    features, percentiles = model.trained.features, model.audit.percentiles
    training = model.training
    curves: dict[str, Floats] = dict(
        no_model_curves(
            log_mel.numpy(),
            power_of_ten=features.power_of_ten,
            training=None if training is None else (training.mean.numpy(), training.std.numpy()),
        )
    )
    if linear is not None:
        curves[LINEAR] = linear
    lines = [{**clip.keys, "line": line, "curve": summed} for line, summed in curves.items()]
    rows: list[TableRow] = []
    for line, summed in curves.items():
        for protocol, peaks in _peaks(clip, summed, model, model.judging.protocols, percentiles):
            if protocol == CORRECTED and line in (OUTLIER, LINEAR):
                clip.masks.append(MaskSet(protocol, "frame", line, True, peaks, percentiles))
            if clip.row["annotated"] and (protocol == CORRECTED or line in NO_MODEL):
                f_scores = localization(peaks, clip.intervals, frames_per_s=features.frames_per_s).f_score
                rows += _line_rows(clip, protocol, "f_score", line, percentiles, f_scores)
    at = {CORRECTED: percentiles, PAPER: model.judging.chance_at}
    for protocol in model.judging.protocols:
        if at[protocol]:
            n_frames = n_judged(protocol, clip, model)
            draws = random_frames(clip.row["clip_id"], n_frames, at[protocol]).reshape(-1, n_frames)
            clip.masks.append(MaskSet(protocol, "frame", RANDOM, True, draws, at[protocol]))
            assert error is not None, "explained models reconstruct"
            for _, best in _peaks(clip, curve(error), model, [protocol], at[protocol]):
                clip.masks.append(MaskSet(protocol, "frame", ORACLE, True, best, at[protocol]))
    return lines, rows


def judge_faithfulness(
    model: AuditModel,
    clips: Sequence[tuple[int, Clip]],
    x: Tensor,
    reconstruction: Tensor,
    scores: Reals,
    n_frames: Sequence[int],
    score: ClipScore | None = None,
) -> tuple[list[TableRow], list[TableRow]]:
    """The rows of `faithfulness`, and those of `controls` that are about it.

    Args:
        model: the audited model.
        clips: each with its position in the shard.
        x: all clips of the shard as the network takes them in, (B, F, T).
        reconstruction: what it makes of them, (B, F, T).
        scores: their E, (B,).
        n_frames: how many frames of each hold sound, (B,).
        score: what E is, see `errors_after_replacement`.
    """
    answers: list[list[tuple[MaskSet, Reals]]] = [[] for _ in clips]
    known: MaskErrors | None = None
    for stream in _streams(model):
        # All distinct masks of the shard at once, those of the first stream as if there were no other.
        of_clips = [[masks for masks in clip.masks if (masks.protocol, masks.is_line) in stream] for _, clip in clips]
        numbers = [number for number, _ in clips]
        known = _replaced(model, numbers, of_clips, x, reconstruction, scores, n_frames, score, known)
        end = 0
        for answer, sets in zip(answers, of_clips, strict=True):
            for mask_set in sets:
                start, end = end, end + len(mask_set.masks)
                of_draws = known.errors[start:end].reshape(-1, len(mask_set.percentiles))
                answer.append((mask_set, of_draws.mean(axis=0)))
    rows: list[TableRow] = []
    lines: list[TableRow] = []
    for protocol in model.judging.protocols:
        for (number, clip), answer in zip(clips, answers, strict=True):
            of_protocol = [part for part in answer if part[0].protocol == protocol]
            new_rows, new_lines = _faithfulness_rows(clip, float(scores[number]), of_protocol)
            rows += new_rows
            lines += new_lines
    return rows, lines


def _streams(model: AuditModel) -> list[set[tuple[str, bool]]]:
    """The groups of masks that are computed together, by protocol and by whether they belong to a line. Lines under
    `paper` come last: the rounding of its other numbers does not depend on them.
    """
    streams = [{(protocol, False), (protocol, True)} for protocol in model.judging.protocols]
    if PAPER in model.judging.protocols:
        streams[model.judging.protocols.index(PAPER)].remove((PAPER, True))
        streams.append({(PAPER, True)})
    return streams


def _replaced(
    model: AuditModel,
    numbers: Sequence[int],
    of_clips: Sequence[Sequence[MaskSet]],
    x: Tensor,
    reconstruction: Tensor,
    scores: Reals,
    n_frames: Sequence[int],
    score: ClipScore | None,
    known: MaskErrors | None,
) -> MaskErrors:
    """What the error of each clip becomes with each of its masks, in the order of the clips and their masks."""
    all_sets = [mask_set.masks for sets in of_clips for mask_set in sets]
    masks = np.zeros((sum(map(len, all_sets)), x.shape[-1]), dtype=np.bool_)
    end = 0
    for mask in all_sets:
        start, end = end, end + len(mask)
        masks[start:end, : mask.shape[1]] = mask
    owners = np.repeat(
        np.asarray(numbers, dtype=np.int64), [sum(len(mask_set.masks) for mask_set in sets) for sets in of_clips]
    )
    errors = errors_after_replacement(
        model.network,
        x,
        reconstruction,
        masks,
        owners,
        error_before=scores,
        micro_batch=forwards_at_once(model.audit.micro_batch, model.device),
        n_frames=n_frames,
        score=score,
        known=known,
    )
    return MaskErrors(masks, owners, errors)


def _faithfulness_rows(
    clip: Clip, before: float, answers: Sequence[tuple[MaskSet, Reals]]
) -> tuple[list[TableRow], list[TableRow]]:
    """The rows of one clip under one protocol; `answers` are the errors (P,) after each set of masks was replaced."""
    rows: list[TableRow] = []
    lines: list[TableRow] = []
    is_corrected = bool(answers) and answers[0][0].protocol == CORRECTED
    if is_corrected and before == 0:  # nothing to explain
        return rows, lines
    score = signed_faithfulness if is_corrected else faithfulness_score
    values = [score(before, after) for _, after in answers]
    of_lines = {masks.name: part for (masks, _), part in zip(answers, values, strict=True) if masks.is_line}
    known_at = next((masks.percentiles for masks, _ in answers if masks.name == RANDOM and masks.is_line), ())
    for (masks, after), part in zip(answers, values, strict=True):
        normalized = np.full(part.shape, np.nan)
        if masks.mode == "frame" and ORACLE in of_lines:
            at = [list(masks.percentiles).index(percentile) for percentile in known_at]
            normalized[at] = normalized_faithfulness(part[at], of_lines[RANDOM], of_lines[ORACLE])
        if masks.is_line:
            for metric, shown in (("faithfulness", part), ("normalized_faithfulness", normalized)):
                lines += _line_rows(clip, masks.protocol, metric, masks.name, masks.percentiles, shown)
            continue
        replaced = masks.masks.sum(axis=1) / masks.masks.shape[1]
        for position, percentile in enumerate(masks.percentiles):
            known = bool(np.isfinite(normalized[position]))
            rows.append(
                {
                    **clip.keys,
                    "method": masks.name,
                    "protocol": masks.protocol,
                    "mode": masks.mode,
                    "percentile": percentile,
                    "replaced_fraction": float(replaced[position]),
                    "error_before": before,
                    "error_after": float(after[position]),
                    "faithfulness": float(part[position]),
                    "normalized": float(normalized[position]) if known else None,
                }
            )
    return rows, lines


def _line_rows(
    clip: Clip, protocol: str, metric: str, line: str, percentiles: Sequence[float], values: Reals
) -> list[TableRow]:
    keys = {**clip.keys, "protocol": protocol, "metric": metric, "line": line}
    pairs = zip(percentiles, values.tolist(), strict=True)
    return [{**keys, "percentile": percentile, "value": value} for percentile, value in pairs if np.isfinite(value)]


def _peaks(
    clip: Clip, summed: Floats, model: AuditModel, protocols: Sequence[str], percentiles: Sequence[float]
) -> Iterator[tuple[str, Bools]]:
    """Each protocol and the peaks (P, T) of a curve; `corrected` leaves flat curves out."""
    for protocol in protocols:
        judged = summed[: n_judged(protocol, clip, model)]
        if protocol != CORRECTED or not is_flat(judged):
            yield protocol, PEAKS[protocol](judged, percentiles)


def n_judged(protocol: str, clip: Clip, model: AuditModel) -> int:
    """The frames of a clip that a protocol judges."""
    grid = model.judging.n_frames if protocol == CORRECTED else None
    return clip.n_frames if grid is None else min(clip.n_frames, grid)
