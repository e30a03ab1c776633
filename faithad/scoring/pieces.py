"""Pieces of normal clips, to which the thresholds of short clips are fitted.

The score of a short clip is that of the frames that hold sound, and fewer frames have another distribution: a mean
spreads more, the worst of fewer windows is lower. So pieces of 1, 2, 3, 5, 7 s (of longer clips, 10, 20, 30, ... as
well) are cut from the same normal clips, filled up as short clips are, and scored in the same way.
`AlarmThreshold.of_length` interpolates between them.

Each clip gives one piece of each length; where clips are few, several pieces that do not overlap, as a quantile of few
values is uncertain. Pieces are cut from spectrograms. Those of a recording's end have a mirrored edge that these lack:
one frame of 41.

Shape letters: B clips, F mel bands, T frames, n frames of a piece, N pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from faithad.features import fill_up
from faithad.scoring.score import ClipBatch, Detector, places_of

# Of each power of ten of seconds.
_LENGTHS_S = (1.0, 2.0, 3.0, 5.0, 7.0)
# Pieces of each length, if the clips have this many.
_PIECES = 600


def piece_lengths(clip_s: float) -> list[float]:
    """The durations of pieces, in seconds, in rising order; all are shorter than a clip."""
    return [length_s * 10.0**k for k in range(4) for length_s in _LENGTHS_S if length_s * 10.0**k < clip_s]


def cut_pieces(clips: Iterable[Tensor], n_frames: Sequence[int], n: int) -> Iterator[Tensor]:
    """Pieces of n frames, filled up to T, of the clips that have n frames or more; the clip's number draws their
    starts.

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
            for first in _first_frames(number, n_frames, n)
        ]
        start += len(part)
        if pieces:
            yield torch.stack(pieces)


def _first_frames(number: int, n_frames: Sequence[int], n: int) -> list[int]:
    """Where the pieces of a clip start, one after the other."""
    count = min(n_frames[number] // n, -(-_PIECES // len(n_frames)))
    room = n_frames[number] - count * n
    first = int(np.random.default_rng([number, n]).integers(room + 1))
    return [first + k * n for k in range(count)]


def piece_scores(
    detector: Detector,
    parts: Iterable[ClipBatch],
    n_frames: Sequence[int],
    recordings: Tensor,
    lengths: Mapping[float, int],
) -> dict[float, Tensor]:
    """The calibrated scores of pieces of normal clips, (N,) by their duration.

    As with whole clips, no piece is compared with clips of its own recording.

    Args:
        detector: with the normal clips that its scores are compared with.
        parts: the clips, whole or short.
        n_frames: how many frames of each clip hold sound.
        recordings: of each clip, the number of its recording as in the detector's `normals`, -1 for none of them.
        lengths: how many frames a piece of each duration has.
    """
    scores: dict[float, list[Tensor]] = {duration_s: [] for duration_s in lengths}
    number = 0
    with torch.no_grad():
        for part in parts:
            for k, (clip, clip_id) in enumerate(zip(part.x, part.clip_ids, strict=True)):
                offsets = None if part.offsets is None else part.offsets[k : k + 1]
                for duration_s, n in lengths.items():
                    for first in _first_frames(number, n_frames, n):
                        piece = fill_up(clip[:, first : first + n], part.x.shape[-1])[None]
                        raw, place = detector.raw(piece, [clip_id], [n]), places_of(piece, [n], offsets)
                        scores[duration_s].append(detector.calibrate(raw, place, recordings[number : number + 1]))
                number += 1
    return {duration_s: torch.cat(of_length) for duration_s, of_length in scores.items() if of_length}
