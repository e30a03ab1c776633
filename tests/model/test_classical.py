"""The classical detectors against scikit-learn, which fitted them."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM
from torch import Tensor

from faithad.errors import ConfigError, StudyError
from faithad.model.classical import ClassicalDetector, fit_classical
from faithad.model.table import MODELS

F, T = 16, 25
CLASSICAL = [name for name, row in MODELS.items() if not row.reconstructs]


def clips(n: int, *, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Spectrograms around a common shape, as those of one machine."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.linspace(-1, 1, F)[:, None]
    loudness = torch.randn(n, 1, 1, generator=generator)
    return scale * (shape + 0.3 * loudness + 0.5 * torch.randn(n, F, T, generator=generator))


def flat(x: Tensor) -> Any:
    return x.flatten(1).numpy()


def sklearn_svm(x: Tensor) -> OneClassSVM:
    return OneClassSVM(gamma="auto").fit(flat(x).astype(np.float64))


@pytest.mark.parametrize("n", [2, 40, 300])
def test_the_svm_is_that_of_scikit_learn(n: int) -> None:
    x, new = clips(n), torch.cat([clips(20, seed=1), clips(5, seed=2) + 1])
    svm = sklearn_svm(x)
    scores = fit_classical("one_class_svm", x, seed=0)(new).numpy()
    decision = np.exp(-scores) * svm.dual_coef_.sum() - svm.offset_
    np.testing.assert_allclose(decision, svm.decision_function(flat(new).astype(np.float64)), atol=1e-6)
    assert scores.min() >= 0


@pytest.mark.parametrize(("n", "seed"), [(2, 0), (40, 3), (300, 2**40 + 1)])
def test_the_forest_is_that_of_scikit_learn(n: int, seed: int) -> None:
    x, new = clips(n), torch.cat([clips(20, seed=1), 10 * clips(5, seed=2)])
    forest = IsolationForest(random_state=seed % 2**32).fit(flat(x))
    scores = fit_classical("isolation_forest", x, seed=seed)(new).numpy()
    np.testing.assert_allclose(scores, -forest.score_samples(flat(new)), atol=1e-6)
    if n > 2:
        assert len(np.unique(scores)) > 5


def test_the_forest_asks_at_the_very_threshold_as_scikit_learn_does() -> None:
    """Few values make clips that lie on the thresholds and leaves that hold several equal clips."""
    x = clips(60).round()
    forest = IsolationForest(random_state=1).fit(flat(x))
    scores = fit_classical("isolation_forest", x, seed=1)(x).numpy()
    np.testing.assert_allclose(scores, -forest.score_samples(flat(x)), atol=1e-6)
    same = torch.zeros(5, F, T)
    assert fit_classical("isolation_forest", same, seed=1)(same).tolist() == pytest.approx([0.5] * 5)


def test_the_forests_seed_counts_and_the_svm_has_none() -> None:
    x, new = clips(40), clips(10, seed=1)
    one, again, other = (fit_classical("isolation_forest", x, seed=seed)(new) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(*(fit_classical("one_class_svm", x, seed=seed)(new) for seed in (0, 1)))


def test_clips_in_decibels_are_told_apart_where_scikit_learn_rounds() -> None:
    x = clips(40, scale=14)
    far = torch.stack([clips(1, seed=1, scale=14)[0] + shift for shift in (0.0, 2.0, 4.0, 6.0)])
    rounded = sklearn_svm(x).decision_function(flat(far).astype(np.float64))
    assert np.ptp(rounded) < 1e-15
    scores = fit_classical("one_class_svm", x, seed=0)(far)
    assert (scores.diff() > 1).all()


def test_scores_beyond_the_smallest_number_stay_finite() -> None:
    x = clips(20)
    score = fit_classical("one_class_svm", x, seed=0)(x[:1] + 100)
    assert 9_000 < float(score) < 11_000


@settings(max_examples=15, deadline=None, derandomize=True)
@given(name=st.sampled_from(CLASSICAL), sizes=st.lists(st.integers(1, 150), min_size=1, max_size=4))
def test_neither_batch_nor_order_changes_a_score(name: str, sizes: list[int]) -> None:
    detector = DETECTORS[name]
    x = clips(sum(sizes), seed=9)
    together = detector(x)
    assert together.dtype == torch.float64
    apart = torch.cat([detector(part) for part in x.split(sizes)])
    torch.testing.assert_close(apart, together, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(detector(x.flip(0)), together.flip(0), rtol=1e-12, atol=1e-12)


DETECTORS = {name: fit_classical(name, clips(60), seed=0) for name in CLASSICAL}


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_detector_finds_what_is_odd(name: str) -> None:
    normal, odd = clips(60, seed=3), clips(20, seed=4)
    odd[:, :, 10:20] += 2
    scores = DETECTORS[name](torch.cat([normal, odd]))
    assert roc_auc_score([0] * 60 + [1] * 20, scores) > 0.95


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_cell_that_is_no_number_gives_no_score(name: str, value: float) -> None:
    x = clips(3)
    x[1, 2, 3] = value
    assert DETECTORS[name](x).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_detector_is_buffers_alone(name: str) -> None:
    detector = DETECTORS[name]
    assert not list(detector.parameters())
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    copy = ClassicalDetector(name, F, T, state)
    assert torch.equal(copy(clips(5)), detector(clips(5)))
    assert detector(clips(0)).shape == (0,)
    with pytest.raises(ConfigError, match=r"fitted on \(clips, 16 mel bands, 25 frames\) and was given \(2, 16, 24\)"):
        detector(torch.zeros(2, F, T - 1))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("one_class_svm", {"support": None}, "support is missing"),
        ("one_class_svm", {"feature": torch.zeros(3)}, "feature is unknown"),
        ("one_class_svm", {"support": torch.zeros(60, 7)}, r"support is torch.float32 \(60, 7\) instead of"),
        (
            "one_class_svm",
            {"log_weight": torch.zeros(9)},
            r"log_weight is torch.float32 \(9,\) instead of torch.float64",
        ),
        ("one_class_svm", {"support": torch.zeros(0, F * T)}, "support is "),
        ("isolation_forest", {"left": torch.zeros(100, 7, dtype=torch.int64)}, r"left is torch.int64 \(100, 7\)"),
        ("isolation_forest", {"feature": F * T}, "feature points outside its 400 values"),
        ("isolation_forest", {"right": -1}, "right points outside"),
    ],
)
def test_tensors_that_cannot_be_a_detectors_are_refused(name: str, change: dict[str, Any], message: str) -> None:
    tensors: dict[str, Tensor] = dict(DETECTORS[name].state_dict())
    for key, value in change.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = torch.full_like(tensors[key], value) if isinstance(value, int) else value
    with pytest.raises(ConfigError, match=message):
        ClassicalDetector(name, F, T, tensors)


def test_trees_that_go_in_circles_come_to_an_end() -> None:
    tensors = dict(DETECTORS["isolation_forest"].state_dict())
    tensors["left"] = tensors["right"] = (torch.zeros_like(tensors["left"]) + 1) % tensors["left"].shape[1]
    tensors["left"][:, 1] = tensors["right"][:, 1] = 0
    assert ClassicalDetector("isolation_forest", F, T, tensors)(clips(2)).isfinite().all()


def test_what_cannot_be_fitted_is_named() -> None:
    with pytest.raises(ConfigError, match="no detector 'svm' to fit; allowed: one_class_svm, isolation_forest"):
        fit_classical("svm", clips(5), seed=0)
    for name in CLASSICAL:
        with pytest.raises(StudyError, match=f"{name} needs two clips or more to be fitted on, found 1"):
            fit_classical(name, clips(1), seed=0)
        x = clips(5)
        x[2, 0, 0] = math.nan
        with pytest.raises(StudyError, match="1 of 5 training clips hold NaN"):
            fit_classical(name, x, seed=0)


def test_scoring_needs_no_scikit_learn() -> None:
    """An audit's worker loads the module for every model; scikit-learn takes seconds to import."""
    code = "import sys, faithad.model.checkpoint; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
