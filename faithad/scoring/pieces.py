"""Pieces of normal clips, to which the thresholds of short clips are fitted.

The score of a short clip is that of the frames that hold sound, and fewer frames have another distribution: a mean
spreads more, the worst of fewer windows is lower. So pieces of 1, 2, 3, 5, 7 s (of longer clips, 10, 20, 30, ... as
well) are cut from the same normal clips, one of each length from each clip that is as long, filled up as short clips
are and scored in the same way. `AlarmThreshold.of_length` interpolates between them.

Pieces are cut from spectrograms. Those of a recording's end have a mirrored edge that these lack: one frame of 41.

Shape letters: B clips, F mel bands, T frames, n frames of a piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from faithad.features import fill_up
from faithad.scoring.score import Clips, Detector, places_of
from faithad.settings import FeatureSettings

# Of each power of ten of seconds.
_LENGTHS_S = (1.0, 2.0, 3.0, 5.0, 7.0)


def piece_lengths(clip_s: float) -> list[float]:
    """The durations of pieces, in seconds, in rising order; all are shorter than a clip."""
    return [length_s * 10.0**k for k in range(4) for length_s in _LENGTHS_S if length_s * 10.0**k < clip_s]


def cut_pieces(clips: Iterable[Tensor], n_frames: Sequence[int], n: int) -> Iterator[Tensor]:
    """One piece of n frames from each clip that has as many, filled up to T; where it starts is drawn by its number.

    Args:
        clips: (B, F, T) in parts.
        n_frames: how many frames of each clip hold sound.
        n: at most T.

    Yields:
        (b, F, T), one for each part with pieces.
    """
    start = 0
    for part in clips:
        pieces = [
            fill_up(clip[:, first : first + n], part.shape[-1])
            for number, clip in enumerate(part, start)
            if (first := _first_frame(number, n_frames[number], n)) is not None
        ]
        start += len(part)
        if pieces:
            yield torch.stack(pieces)


def _first_frame(number: int, n_frames: int, n: int) -> int | None:
    return None if n_frames < n else int(np.random.default_rng([number, n]).integers(n_frames - n + 1))


def piece_scores(detector: Detector, parts: Iterable[Clips], settings: FeatureSettings) -> dict[float, Tensor]:
    """The calibrated scores of pieces of the normal clips that calibrate a detector, (N,) by their duration.

    As for the clips themselves, none is compared with clips of its own recording. Clips that are shorter than a piece
    have no such piece: their score is not a number.

    Args:
        detector: whose `normals` are these clips, in this order.
        parts: the clips, whole or short.
        settings: of the features.
    """
    lengths = {duration_s: settings.frames_in(duration_s) for duration_s in piece_lengths(settings.clip_s)}
    scores: dict[float, list[Tensor]] = {duration_s: [] for duration_s in lengths}
    number = 0
    with torch.no_grad():
        for part in parts:
            n_frames = [part.x.shape[-1]] * len(part.x) if part.n_frames is None else part.n_frames
            for clip, clip_id, n_heard in zip(part.x, part.clip_ids, n_frames, strict=True):
                for duration_s, n in lengths.items():
                    first = _first_frame(number, n_heard, n)
                    score = torch.tensor([torch.nan], dtype=torch.float64)
                    if first is not None:
                        piece = fill_up(clip[:, first : first + n], part.x.shape[-1])[None]
                        raw, place = detector.raw(piece, [clip_id], [n]), places_of(piece, [n])
                        score = detector.calibrate(raw, place, without=number)
                    scores[duration_s].append(score)
                number += 1
    return {duration_s: torch.cat(of_length) for duration_s, of_length in scores.items()}
