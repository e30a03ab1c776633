"""The local calibration against its definition, and what scores do not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from faithad.errors import StudyError
from faithad.scoring import calibration
from faithad.scoring.calibration import NEIGHBOURS, gather_normals, mean_spectrum

N, F = 60, 8


def made(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores and places of clips in three clusters."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(3, size=n)
    places = 5 * cluster[:, None] + rng.normal(size=(n, F))
    return torch.from_numpy(rng.gamma(2.0, size=n) * 10.0**cluster), torch.from_numpy(places).float()


def slow(score: float, place: Tensor, normals: list[tuple[float, Tensor]]) -> float:
    """Log s less the mean log s of the nearest."""
    by_distance = sorted(normals, key=lambda normal: float(((normal[1].double() - place.double()) ** 2).sum()))
    return math.log(score) - sum(math.log(s) for s, _ in by_distance[:NEIGHBOURS]) / len(by_distance[:NEIGHBOURS])


@pytest.mark.parametrize("n", [N, 9])
def test_a_score_is_compared_with_the_nearest_normals(n: int) -> None:
    (scores, places), (new, at) = made(n, 0), made(20, 1)
    recordings = [f"r{k // 4}" for k in range(n)]
    normals = gather_normals(scores, places, recordings)
    known = list(zip(scores.tolist(), places, strict=True))
    expected = [slow(score, place, known) for score, place in zip(new.tolist(), at, strict=True)]
    assert normals.calibrated(new, at).tolist() == pytest.approx(expected)
    themselves = [
        slow(scores[k].item(), places[k], [known[j] for j in range(n) if recordings[j] != recordings[k]])
        for k in range(n)
    ]
    assert normals.of_themselves().tolist() == pytest.approx(themselves)


def test_clips_of_another_loudness_in_another_place_have_equal_scores() -> None:
    """What the calibration is for: each cluster's scores are ten times those of the one before."""
    scores, places = made(300, 0)
    normals = gather_normals(scores, places, [str(k) for k in range(300)])
    calibrated = normals.of_themselves()
    levels = [calibrated[(places.mean(dim=1) / 5).round() == cluster].median().item() for cluster in range(3)]
    assert max(levels) - min(levels) < 0.3


def test_a_score_does_not_depend_on_what_else_is_scored_by_a_bit() -> None:
    normals = gather_normals(*made(N, 0), [str(k) for k in range(N)])
    new, at = made(20, 1)
    together = normals.calibrated(new, at)
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(0)).repeat(2)
    assert torch.equal(normals.calibrated(new[shuffled], at[shuffled]), together[shuffled])
    assert torch.equal(torch.cat([normals.calibrated(new[k : k + 1], at[k : k + 1]) for k in range(20)]), together)


def test_the_normals_are_bounded_and_sampled_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_NORMALS", 25)
    scores, places = made(N, 0)
    recordings = [str(k // 5) for k in range(N)]
    held, again, other = (gather_normals(scores, places, recordings, seed=seed) for seed in (0, 0, 1))
    assert len(held.scores) == len(held.places) == len(held.recordings) == 25
    assert torch.equal(held.scores, again.scores)
    assert not torch.equal(held.scores, other.scores)
    rows = [int((places == place).all(dim=1).nonzero()[0]) for place in held.places]
    assert rows == sorted(set(rows))
    assert held.scores.exp().tolist() == pytest.approx(scores[rows].tolist())
    same = [[recordings[p] == recordings[q] for p in rows] for q in rows]
    assert (held.recordings[:, None] == held.recordings).tolist() == same


def test_what_cannot_be_calibrated_is_said() -> None:
    scores, places = made(N, 0)
    with pytest.raises(StudyError, match="The 60 normal clips come from one recording"):
        gather_normals(scores, places, ["a"] * N).of_themselves()
    with pytest.raises(StudyError, match="no normal clips"):
        gather_normals(scores[:0], places[:0], [])


def test_digital_silence_has_a_finite_score() -> None:
    scores, places = made(N, 0)
    scores[:2] = 0
    calibrated = gather_normals(scores, places, [str(k) for k in range(N)]).of_themselves()
    assert calibrated.isfinite().all()


def test_the_place_of_a_clip_is_its_mean_spectrum() -> None:
    x = torch.randn(3, F, 20)
    assert torch.equal(mean_spectrum(x), x.mean(dim=2))
