"""Scores are rated as a slow computation, score by score and clip by clip, rates them."""

from __future__ import annotations

import numpy as np
import torch

from faithad.evaluation.detection import auc
from faithad.evaluation.disturbances import KINDS, disturbed_clips
from faithad.evaluation.score_selection import rate_scores
from faithad.model.linear import fit_linear
from faithad.model.table import build_network
from faithad.scoring.calibration import NormalScores
from faithad.scoring.choices import PAPER, Score, all_scores
from faithad.scoring.score import ClipBatch, Detector, fit_detector, places_of
from faithad.settings import FeatureSettings

F, T = 16, 41
SETTINGS = FeatureSettings(n_mels=F, n_fft=4000, hop_samples=5000)


def clips_of(n: int, seed: int, *, recordings: int = 3) -> ClipBatch:
    x = torch.randn(n, F, T, generator=torch.Generator().manual_seed(seed))
    ids = [f"{seed} {k}" for k in range(n)]
    return ClipBatch(x, ids, [f"recording {k % recordings}" for k in range(n)], [T - k % 3 for k in range(n)])


def test_every_score_is_rated_as_its_detector_scores() -> None:
    network = build_network("frame_pca", F, T).eval()
    normals, held_back = clips_of(12, 0), clips_of(9, 1, recordings=5)
    fit_linear(network, normals.x.split(4), n_clips=12, seed=0)  # type: ignore[arg-type]
    # Three of the recordings are also those of the normals, and must not be compared with themselves.
    made = disturbed_clips(held_back.x.numpy(), held_back.clip_ids, settings=SETTINGS, seed=0, kinds=KINDS)
    assert set(made.kinds) == set(KINDS)
    disturbed = ClipBatch(
        torch.from_numpy(made.log_mels),
        [f"{n} {kind}" for n, kind in zip(made.sources, made.kinds, strict=True)],
        [held_back.recordings[n] for n in made.sources],
    )
    scores = all_scores("frame_pca")
    assert len(scores) == 2 * 2 * 4 * 2
    assert scores[0] == PAPER
    assert Score("inpainting") not in scores
    assert Score("inpainting") in all_scores("mae")
    rated = rate_scores(
        network, scores, normals=normals, held_back=held_back, disturbed=disturbed,
        frames_per_s=SETTINGS.frames_per_s, fit_threshold=lambda usual: float(np.sort(usual)[-2]),
    )  # fmt: skip
    assert {each.score for each in rated} == set(scores)
    names = sorted(set(normals.recordings))
    for each in rated:
        detector, _ = fit_detector(network, each.score, lambda: [normals], frames_per_s=SETTINGS.frames_per_s)

        def of(clips: ClipBatch, detector: Detector = detector) -> np.ndarray:
            raw = detector.raw(clips.x, clips.clip_ids, clips.n_frames)
            if isinstance(detector.normals, NormalScores):
                own = torch.tensor([names.index(name) if name in names else -1 for name in clips.recordings])
                raw = detector.normals.calibrated(raw, places_of(clips.x, clips.n_frames), own)
            values: np.ndarray = raw.detach().double().numpy()
            return values

        usual, unusual = of(held_back), of(disturbed)
        labels = [0] * len(usual) + [1] * len(unusual)
        np.testing.assert_allclose(each.proxy_auc, auc(np.concatenate([usual, unusual]), labels), atol=1e-3)
        np.testing.assert_allclose(each.caught, (unusual > np.sort(usual)[-2]).mean(), atol=0.02)
    order = [(each.caught, each.proxy_auc) for each in rated]
    assert order == sorted(order, reverse=True)
