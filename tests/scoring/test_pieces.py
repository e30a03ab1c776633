from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from faithad.features import fill_up
from faithad.model.alarm import AlarmThreshold
from faithad.scoring.pieces import cut_pieces, piece_lengths, piece_scores
from faithad.scoring.score import ClipBatch, places_of
from tests.scoring.ensembles import SETTINGS, N, T, small_ensemble, sound


def test_lengths_are_those_below_a_clip() -> None:
    assert piece_lengths(10.0) == [1, 2, 3, 5, 7]
    assert piece_lengths(3.0) == [1, 2]
    assert piece_lengths(1.0) == []
    assert piece_lengths(60.0) == [1, 2, 3, 5, 7, 10, 20, 30, 50]


def test_pieces_lie_side_by_side_in_clips_that_are_long_enough() -> None:
    clips = sound(7, 3)
    n_frames = [T, 30, T, 20, 19, T, 65]
    parts = list(cut_pieces([clips[:3], clips[3:5], clips[5:]], n_frames, 20))
    assert [len(part) for part in parts] == [9, 1, 7]  # of 81 frames 4, of 30 and 20 one, of 65 three
    pieces = torch.cat(parts)
    places = []
    for piece in pieces:
        ((k, start),) = [
            (k, s) for k in range(7) for s in range(T - 19) if torch.equal(clips[k, :, s : s + 20], piece[:, :20])
        ]
        assert start + 20 <= n_frames[k]
        assert torch.equal(piece, fill_up(piece[:, :20], T))
        places.append((k, start))
    assert all(before[0] < after[0] or before[1] + 20 == after[1] for before, after in pairwise(places))
    assert torch.equal(pieces, torch.cat(list(cut_pieces([clips], n_frames, 20)))), "whatever the parts are"
    many = list(cut_pieces([clips] * 100, [T] * 700, 20))
    assert [len(part) for part in many] == [7] * 100, "one of each clip where clips are many"


def test_scores_of_pieces_leave_out_their_own_recording() -> None:
    trained = small_ensemble()
    detector = trained.ensemble.members["frame_pca"]
    x = trained.normalization.apply(sound(N, 0))
    ids, recordings = [f"normal {k}" for k in range(N)], [f"recording {k // 3}" for k in range(N)]
    n_frames = [30 if k == 4 else T for k in range(N)]
    parts = [
        ClipBatch(x[k : k + 5], ids[k : k + 5], recordings[k : k + 5], n_frames[k : k + 5]) for k in range(0, N, 5)
    ]
    normals, n = detector.normals, SETTINGS.frames_in(1.0)
    assert normals is not None
    scores = piece_scores(detector, parts, n_frames, normals.recordings, {1.0: n})
    assert list(scores) == [1.0]
    pieces = torch.cat(list(cut_pieces([x], n_frames, n)))
    numbers = [k for k in range(N) if k != 4]  # a clip of 81 frames has one piece of 41, one of 30 has none
    for piece, score, k in zip(pieces, scores[1.0], numbers, strict=True):
        raw = detector.raw(piece[None], ids[k : k + 1], [n])[0].log()
        others = [j for j in range(N) if j // 3 != k // 3]
        distance = (normals.places[others].double() - places_of(piece[None], [n])[0].double()).square().sum(dim=1)
        nearest = torch.tensor(others)[distance.argsort(stable=True)[:15]]
        assert score.item() == pytest.approx((raw - normals.scores[nearest].mean()).item())


def test_thresholds_between_lengths() -> None:
    alarm = AlarmThreshold("quantile", "mean", 0.05, 1.0, 18.0, 20, by_length=((1.0, 3.0), (2.0, 2.0), (5.0, 2.5)))
    for duration_s, threshold in [(0.5, 3.0), (1.0, 3.0), (2**0.5, 2.5), (2.0, 2.0), (5.0, 2.5), (50**0.5, 1.75)]:
        assert alarm.of_length(duration_s, clip_s=10.0).threshold == pytest.approx(threshold)
    assert alarm.of_length(10.0, clip_s=10.0) is alarm
    assert alarm.of_length(11.0, clip_s=10.0) is alarm
    old = AlarmThreshold("quantile", "mean", 0.05, 1.0, 18.0, 20)
    assert old.of_length(1.0, clip_s=10.0) is old
