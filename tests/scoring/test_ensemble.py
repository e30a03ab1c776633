"""Members that score some clips only: which, what score the others get, and that the promised rate stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faithad.errors import CheckpointError, ConfigError, StudyError
from faithad.evaluation.alarms import fit_alarm, fit_promised_alarm
from faithad.scoring.ensemble import Ensemble, fit_ensemble, with_rescoring
from faithad.scoring.trained_ensemble import TrainedEnsemble, load_any, save_ensemble
from tests.scoring.ensembles import small_ensemble_with_mae
from tests.scoring.test_trained_ensemble import rewrite

NAMES = ("frame_pca", "mae", "frame_ridge")


def ensemble_of(scores: Tensor, *, share: float, is_short: Tensor | None = None) -> Ensemble:
    members: Any = dict.fromkeys(NAMES)
    ensemble = fit_ensemble(members, scores)
    is_short = torch.zeros(scores.shape[1], dtype=torch.bool) if is_short is None else is_short
    return with_rescoring(ensemble, ensemble.standardise(scores), is_short, share)


def draw(n: int, generator: torch.Generator) -> Tensor:
    """Scores (3, n) of clips by three members that agree a little, with a heavy tail."""
    shared = torch.randn(n, generator=generator, dtype=torch.float64)
    return (0.6 * shared + 0.8 * torch.randn(3, n, generator=generator, dtype=torch.float64)).exp()


def test_scores_are_those_of_the_definition() -> None:
    """Clip by clip: short ones, and those above the k-th smallest sum of the linear models, by all three."""
    generator = torch.Generator().manual_seed(0)
    scores, share = draw(40, generator), 0.25
    is_short = torch.arange(40) % 7 == 0
    ensemble = ensemble_of(scores, share=share, is_short=is_short)
    z = (scores - scores.mean(dim=1, keepdim=True)) / scores.std(dim=1, correction=0, keepdim=True)
    first = [float(z[0, k] + z[2, k]) for k in range(40)]
    whole = sorted(first[k] for k in range(40) if not is_short[k])
    threshold = whole[math.ceil((len(whole) + 1) * (1 - share)) - 1]
    by_all = [k for k in range(40) if is_short[k] or first[k] > threshold]
    lowest = min(float(z[:, k].sum()) for k in by_all)
    rescored = ensemble.rescored(ensemble.standardise(scores), is_short)
    assert rescored.nonzero().flatten().tolist() == by_all
    # A member that did not score a clip has no part in its score.
    hidden = ensemble.standardise(scores)
    hidden[1, ~rescored] = math.nan
    total, raised_by = ensemble.add_up(hidden, rescored)
    for k in range(40):
        is_by_all = k in by_all
        expected = float(z[:, k].sum()) if is_by_all else lowest + first[k] - threshold
        assert float(total[k]) == pytest.approx(expected, abs=1e-9)
        among = (0, 1, 2) if is_by_all else (0, 2)
        assert int(raised_by[k]) == max(among, key=lambda member: float(z[member, k]))
    assert float(total[~rescored].max()) == pytest.approx(lowest)


def test_the_promised_rate_of_false_alarms_is_kept() -> None:
    """The observed rate over 500 ensembles is the promised one, (n + 1 - r) / (n + 1), within three standard errors."""
    generator = torch.Generator().manual_seed(1)
    n, n_new, rate, rates = 59, 50, 0.05, []
    for _ in range(500):
        normals, new = draw(n, generator), draw(n_new, generator)
        ensemble = ensemble_of(normals, share=0.1)
        none = torch.zeros(n + n_new, dtype=torch.bool)
        standardised = ensemble.standardise(torch.cat([normals, new], dim=1))
        scores = ensemble.add_up(standardised, ensemble.rescored(standardised, none))[0].numpy()
        assert ensemble.rescoring is not None
        alarm = fit_promised_alarm(scores[:n], false_alarm_rate=rate, clip_s=10.0, lowest=ensemble.rescoring.lowest)
        assert alarm.false_alarm_rate == pytest.approx(3 / 60)
        rates.append(np.mean(scores[n:] > alarm.threshold))
        assert not (scores > alarm.threshold)[~ensemble.rescored(standardised, none).numpy()].any()
    error = np.std(rates) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - 3 / 60) < 3 * error
    assert error < 0.002


def test_a_rate_above_the_share_and_a_fitted_distribution_are_refused() -> None:
    scores = draw(59, torch.Generator().manual_seed(2))
    ensemble = ensemble_of(scores, share=0.1)
    standardised, none = ensemble.standardise(scores), torch.zeros(59, dtype=torch.bool)
    assert ensemble.rescoring is not None
    totals = ensemble.add_up(standardised, ensemble.rescored(standardised, none))[0].numpy()
    options: dict[str, Any] = {"pooling": "ensemble", "clip_s": 10.0, "lowest": ensemble.rescoring.lowest}
    alarm = fit_alarm(totals, rule="conformal", false_alarm_rate=0.05, **options)
    assert alarm.tail is not None
    assert alarm.tail.start >= ensemble.rescoring.lowest, "the tail is one of scores by all members"
    with pytest.raises(StudyError, match=r"0\.2 is above the model's rescore_share"):
        fit_alarm(totals, rule="conformal", false_alarm_rate=0.2, **options)
    with pytest.raises(StudyError, match=r"alarm\.rule is 'gamma'.*Set alarm.rule to quantile or conformal"):
        fit_alarm(totals, rule="gamma", false_alarm_rate=0.05, **options)
    with pytest.raises(StudyError, match="of 59 whole normal clips that leaves none"):
        ensemble_of(scores, share=0.01)
    linear: Any = dict.fromkeys(["frame_pca", "frame_ridge"])
    with pytest.raises(ConfigError, match=r"it needs a linear model, .* and a network"):
        with_rescoring(fit_ensemble(linear, scores[:2]), scores[:2], none, 0.1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedEnsemble, Path]:
    folder = tmp_path_factory.mktemp("saved")
    trained = small_ensemble_with_mae(rescore_share=0.25)
    save_ensemble(trained, str(folder))
    return trained, folder


def test_it_is_stored_with_the_model(saved: tuple[TrainedEnsemble, Path]) -> None:
    trained, folder = saved
    read = load_any(str(folder))
    assert isinstance(read, TrainedEnsemble)
    assert read.ensemble.rescoring == trained.ensemble.rescoring
    assert read.lowest_rescored == trained.lowest_rescored is not None
    rewrite(folder, lambda header, _: header["rescoring"].update(members=list(read.members)))
    with pytest.raises(CheckpointError, match=r"rescoring.members \(they must be some of the members"):
        load_any(str(folder))
