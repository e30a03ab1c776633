"""Ensembles are rated and chosen as a slow computation, clip by clip, rates and chooses them."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from faithad.evaluation.detection import auc
from faithad.evaluation.member_selection import RatedEnsemble, rate_ensembles

N, D, MODELS = 40, 60, ("frame_pca", "frame_ridge", "mae")
RECORDINGS = [f"recording {k % 7}" for k in range(D)]


def second_largest(scores: np.ndarray) -> float:
    return float(np.sort(scores)[-2])


def scores_of(shifts: dict[str, float], *, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores of normal clips, and of disturbed ones, which a model raises by its shift; in units of its own."""
    rng = np.random.default_rng(seed)
    normal, disturbed = {}, {}
    for number, (name, shift) in enumerate(shifts.items()):
        scale = 10.0**number
        normal[name] = scale * rng.normal(3, 1, N)
        disturbed[name] = scale * (rng.normal(3, 1, D) + shift)
    return normal, disturbed


def rated(shifts: dict[str, float], *, seed: int = 0) -> list[RatedEnsemble]:
    return rate_ensembles(*scores_of(shifts, seed=seed), RECORDINGS, network="mae", fit_threshold=second_largest)


@pytest.mark.parametrize("seed", range(5))
def test_every_ensemble_is_rated_as_a_sum_of_standardised_scores(seed: int) -> None:
    shifts = dict(zip(MODELS, np.random.default_rng(seed).uniform(0, 3, 3), strict=True))
    normal, disturbed = scores_of(shifts, seed=seed)
    ensembles = rated(shifts, seed=seed)
    wanted = {
        tuple(name for name, taken in zip(MODELS, takes, strict=True) if taken) for takes in product((0, 1), repeat=3)
    }
    assert {each.members for each in ensembles} == wanted - {()}
    assert len(ensembles) == 7
    alarms = {}
    for each in ensembles:
        usual, unusual = [0.0] * N, [0.0] * D
        for name in each.members:
            mean = sum(normal[name]) / N
            deviation = math.sqrt(sum((score - mean) ** 2 for score in normal[name]) / N)
            usual = [total + (score - mean) / deviation for total, score in zip(usual, normal[name], strict=True)]
            unusual = [
                total + (score - mean) / deviation for total, score in zip(unusual, disturbed[name], strict=True)
            ]
        alarms[each.members] = [float(score > sorted(usual)[-2]) for score in unusual]
        assert each.caught == sum(alarms[each.members]) / D
        assert each.proxy_auc == pytest.approx(auc([*usual, *unusual], [0] * N + [1] * D))
    order = [(-each.caught, -each.proxy_auc, len(each.members)) for each in ensembles]
    assert order == sorted(order)
    best = alarms[ensembles[0].members]
    for each in ensembles:
        differences = [a - b for a, b in zip(best, alarms[each.members], strict=True)]
        assert each.behind == pytest.approx(sum(differences) / D)
        # The mean without each recording in turn.
        groups = sorted(set(RECORDINGS))
        left = [
            np.mean([value for value, name in zip(differences, RECORDINGS, strict=True) if name != group])
            for group in groups
        ]
        squares = sum((mean - sum(differences) / D) ** 2 for mean in left)
        assert each.behind_se == pytest.approx(math.sqrt((len(groups) - 1) / len(groups) * squares), abs=1e-12)
    (chosen,) = (each for each in ensembles if each.chosen)
    linear = next(each for each in ensembles if "mae" not in each.members)
    assert linear.behind_se is not None
    assert chosen == (linear if linear.behind <= 2 * linear.behind_se else ensembles[0])


def test_a_network_is_chosen_only_where_it_adds_something() -> None:
    for shifts in ({"frame_pca": 0.0, "frame_ridge": 0.0, "mae": 6.0}, {"frame_pca": 1.0, "mae": 4.0}):
        ensembles = rated(shifts)
        assert ensembles[0].chosen
        assert ensembles[0].members == ("mae",), "models that know nothing are left out"
    # One that finds the same as a linear model adds nothing, even if its sum with it is a little better by chance.
    normal, disturbed = scores_of({"frame_pca": 2.0})
    disturbed["mae"], normal["mae"] = disturbed["frame_pca"].copy(), normal["frame_pca"].copy()
    disturbed["mae"][disturbed["mae"].argmin()] += 9.0
    ensembles = rate_ensembles(normal, disturbed, RECORDINGS, network="mae", fit_threshold=second_largest)
    (chosen,) = (each for each in ensembles if each.chosen)
    assert chosen.members == ("frame_pca",)
    assert 0 < chosen.behind == 1 / D
    assert "mae" in ensembles[0].members


def test_equal_ensembles_begin_with_the_fewest_members_and_one_recording_proves_nothing() -> None:
    normal, disturbed = scores_of(dict.fromkeys(MODELS, 50.0))
    ensembles = rate_ensembles(normal, disturbed, RECORDINGS, network="mae", fit_threshold=second_largest)
    assert [each.caught for each in ensembles] == [1.0] * 7
    assert [len(each.members) for each in ensembles] == [1, 1, 1, 2, 2, 2, 3]
    assert (ensembles[0].members, ensembles[0].chosen) == (("frame_pca",), True)
    strong = scores_of({"frame_pca": 0.0, "mae": 6.0})
    ensembles = rate_ensembles(*strong, ["one"] * D, network="mae", fit_threshold=second_largest)
    assert ensembles[0].members == ("mae",)
    assert [each.chosen for each in ensembles] == [each.members == ("frame_pca",) for each in ensembles]
    assert {each.behind_se for each in ensembles} == {None}
