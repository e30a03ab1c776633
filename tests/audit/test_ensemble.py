"""The rows of an audit with an ensemble: its score, the member that raised it, and that member's explanation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faithad.attribution.gradient_stream import attribute_batch
from faithad.audit.judging import TableRow
from faithad.audit.model import AuditEnsemble, prepare_audit
from faithad.audit.shard import audit_clips
from faithad.config.sections import Attribution, Audit
from faithad.evaluation.peaks import curve, peak_frames
from faithad.features import fill_up
from faithad.scoring.ensemble import add_up
from faithad.scoring.trained_ensemble import TrainedEnsemble
from faithad.settings import AttributionSettings
from tests.scoring.ensembles import F, N, T, small_ensemble, small_ensemble_with_mae, sound

METHODS = ("error_map", "saliency", "integrated_gradients", "grad_cam")
N_CLIPS, SHORT = 6, 50
NORMALS = [0, 1]  # one for each member


@pytest.fixture(scope="module")
def trained() -> TrainedEnsemble:
    return small_ensemble()


@pytest.fixture(scope="module")
def audit(trained: TrainedEnsemble) -> AuditEnsemble:
    attribution = Attribution(methods=METHODS)
    prepared = prepare_audit(
        trained, attribution=attribution, audit=Audit(percentiles=(90.0, 95.0)), device=torch.device("cpu")
    )
    assert isinstance(prepared, AuditEnsemble)
    return prepared


@pytest.fixture(scope="module")
def log_mels() -> Tensor:
    """The first two are normal clips, the last one is short; three have a disturbance."""
    clips = sound(N_CLIPS, 1)
    clips[:2] = sound(N, 0)[NORMALS]
    clips[3, :, 30:34] += 25.0
    clips[2, 3:5, 20:60] += 20.0
    clips[4, 10:, 5:7] += 25.0
    clips[-1] = fill_up(clips[-1, :, :SHORT], T)
    return clips


def rows_of(numbers: list[int]) -> list[TableRow]:
    return [
        {
            "clip_id": f"clip {k}",
            "recording": "a.wav",
            "onset_s": 2.0 * k,
            "duration_s": (SHORT - 1) / 40 if k == N_CLIPS - 1 else 2.0,
            "intervals": [{"onset_s": 0.5, "offset_s": 1.0}],
            "annotated": True,
            "keep_maps": True,
        }
        for k in numbers
    ]


def lengths(numbers: list[int]) -> list[int]:
    return [SHORT if k == N_CLIPS - 1 else T for k in numbers]


@pytest.fixture(scope="module")
def tables(audit: AuditEnsemble, log_mels: Tensor) -> dict[str, list[TableRow]]:
    return audit_clips(audit, rows_of(list(range(N_CLIPS))), log_mels, explain=True)


def test_a_score_is_that_of_the_ensemble(
    trained: TrainedEnsemble, tables: dict[str, list[TableRow]], log_mels: Tensor
) -> None:
    numbers = list(range(N_CLIPS))
    standardised = trained.ensemble.standardised(trained.prepare(log_mels), [""] * N_CLIPS, lengths(numbers))
    totals, raised_by = add_up(standardised)
    assert [row["score"] for row in tables["scores"]] == totals.tolist()
    assert [row["raised_by"] for row in tables["scores"]] == [list(trained.members)[k] for k in raised_by]
    assert len(set(raised_by.tolist())) == 2  # or nothing below tells the members apart
    assert trained.alarm is not None
    assert [row["alarm"] for row in tables["scores"]] == (totals > trained.alarm.threshold).tolist()
    assert {(row["model"], row["worst_second_score"]) for row in tables["scores"]} == {("robust", None)}
    assert [row["clip_id"] for row in tables["ledger"]] == [f"clip {k}" for k in numbers]


def test_windows_of_alarmed_clips_are_what_the_raising_member_would_score_them(
    trained: TrainedEnsemble, tables: dict[str, list[TableRow]], log_mels: Tensor
) -> None:
    """From the definition: the mean error of each ten frames, calibrated as the clip; the worst one is its score."""
    x, n_frames = trained.prepare(log_mels), lengths(list(range(N_CLIPS)))
    assert trained.alarm is not None
    assert [row["windows"] is not None for row in tables["scores"]] == [row["alarm"] for row in tables["scores"]]
    assert sum(row["alarm"] for row in tables["scores"]) >= 3
    for k, row in enumerate(tables["scores"]):
        if not row["alarm"]:
            assert row["window_threshold"] is None
            continue
        detector, n = trained.ensemble.members[row["raised_by"]], n_frames[k]
        frames = detector.cells(x[k : k + 1], [""])[0, :, :n].double().mean(dim=0)
        starts = [10 * window for window in range(n // 10)]
        means = torch.stack([frames[at : at + 10 if at != starts[-1] else n].mean() for at in starts])
        place = x[k : k + 1, :, :n].mean(dim=-1)
        expected = [float(detector.calibrate(mean[None], place)) for mean in means]
        assert row["windows"].tolist() == pytest.approx(expected, abs=1e-9)
        assert max(row["windows"]) == pytest.approx(float(detector.calibrated(x[k : k + 1], [""], [n])), abs=1e-9)
        number = list(trained.members).index(row["raised_by"])
        assert row["window_threshold"] == trained.alarm.window_thresholds[number]


def test_a_clips_rows_do_not_depend_on_what_else_is_audited(
    audit: AuditEnsemble, tables: dict[str, list[TableRow]], log_mels: Tensor
) -> None:
    order = [3, 5, 0, 3, 1, 1, 4, 2, 5]
    shuffled = audit_clips(audit, rows_of(order), log_mels[order], explain=False)["scores"]
    assert len(shuffled) == len(order)
    known = [listed(row) for row in tables["scores"]]
    assert all(listed(row) == known[int(row["clip_id"].split()[1])] for row in shuffled)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = audit_clips(audit, rows_of([4, 2]), log_mels[[4, 2]], explain=False)["scores"]
        assert [listed(row) for row in found] == [known[4], known[2]]
    finally:
        torch.set_num_threads(threads)


def test_a_network_scores_only_clips_that_the_linear_models_find_suspicious(log_mels: Tensor) -> None:
    """Which clips, and with which score, depends on each clip alone; the short one is always among them."""
    trained = small_ensemble_with_mae(rescore_share=0.25)
    methods = ("error_map", "saliency")
    audit = prepare_audit(
        trained, attribution=Attribution(methods=methods), audit=Audit(percentiles=(95.0,)), device=torch.device("cpu")
    )
    assert isinstance(audit, AuditEnsemble)
    n_scored = 0

    def count(*_: object) -> None:
        nonlocal n_scored
        n_scored += 1

    detector = audit.members[0].detector
    assert detector is not None
    detector.network.register_forward_hook(count)
    numbers = list(range(N_CLIPS))
    rows = audit_clips(audit, rows_of(numbers), log_mels, explain=False)["scores"]
    by_network = n_scored
    is_short = torch.tensor([n < T for n in lengths(numbers)])
    standardised = trained.ensemble.standardised(
        trained.prepare(log_mels), [r["clip_id"] for r in rows], lengths(numbers)
    )
    rescored = trained.ensemble.rescored(standardised, is_short)
    assert by_network == int(rescored.sum())
    assert 2 <= by_network < N_CLIPS, "some clips are not scored by the network, and some whole ones are"
    expected, raised_by = trained.ensemble.add_up(standardised, rescored)
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-5)
    assert [row["raised_by"] for row in rows] == [list(trained.members)[k] for k in raised_by]
    assert not any(row["alarm"] for row, scored in zip(rows, rescored, strict=True) if not scored)
    assert sum(row["alarm"] for row in rows) >= 1
    order = [3, 5, 0, 3, 1, 4, 2]
    shuffled = audit_clips(audit, rows_of(order), log_mels[order], explain=False)["scores"]
    assert len(shuffled) == len(order)
    assert all(listed(row) == listed(rows[int(row["clip_id"].split()[1])]) for row in shuffled)
    alone = audit_clips(audit, rows_of([4]), log_mels[[4]], explain=False)["scores"]
    assert [listed(row) for row in alone] == [listed(rows[4])]
    explained = audit_clips(audit, rows_of(numbers), log_mels, explain=True)
    assert [row["score"] for row in explained["scores"]] == [row["score"] for row in rows]
    keys = [(row["clip_id"], row["method"]) for row in explained["attributions"]]
    assert sorted(keys) == [(f"clip {k}", method) for k in numbers for method in methods]


def listed(row: TableRow) -> TableRow:
    """A row of scores whose array is a list, which can be compared."""
    return row | {"windows": None if row["windows"] is None else row["windows"].tolist()}


def explained_by(trained: TrainedEnsemble, tables: dict[str, list[TableRow]], k: int) -> Any:
    return trained.ensemble.members[tables["scores"][k]["raised_by"]]


def test_maps_explain_the_score_of_the_member_that_raised_the_clip(
    trained: TrainedEnsemble, tables: dict[str, list[TableRow]], log_mels: Tensor
) -> None:
    x = trained.prepare(log_mels)
    for k, n in enumerate(lengths(list(range(N_CLIPS)))):
        detector = explained_by(trained, tables, k)
        point = x[k : k + 1, :, :n].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(detector.raw(fill_up(point, T), [""], [n]).sum(), point)
        of_clip = {row["method"]: row for row in tables["attributions"] if row["clip_id"] == f"clip {k}"}
        expected = {
            "saliency": gradient[0].abs(),
            "error_map": detector.cells(x[k : k + 1], [""])[0, :, :n],
        }
        for method, map_of_clip in expected.items():
            np.testing.assert_allclose(of_clip[method]["curve"], curve(map_of_clip), rtol=1e-4, atol=1e-6)
        # A map of the largest errors is not flat, and ends where the sound ends.
        assert {len(row["curve"]) for row in of_clip.values()} == {n}


def test_integrated_gradients_add_up_to_the_score(
    trained: TrainedEnsemble, tables: dict[str, list[TableRow]], log_mels: Tensor
) -> None:
    x = trained.prepare(log_mels)
    for k, n in enumerate(lengths(list(range(N_CLIPS)))):
        detector = explained_by(trained, tables, k)
        maps = attribute_batch(
            detector.network,
            x[k : k + 1],
            methods=["integrated_gradients"],
            settings=AttributionSettings(),
            seed=0,
            clip_ids=["a"],
            n_frames=[n],
            score=detector,
        )
        ends = detector.raw(torch.stack([x[k], torch.zeros(F, T)]), ["a", "a"], [n, n])
        difference = float(ends[0] - ends[1])
        assert float(maps["integrated_gradients"].sum()) == pytest.approx(difference, rel=0.01)


def test_faithfulness_is_of_that_score(
    trained: TrainedEnsemble, tables: dict[str, list[TableRow]], log_mels: Tensor
) -> None:
    x = trained.prepare(log_mels)
    for k, n in enumerate(lengths(list(range(N_CLIPS)))):
        detector = explained_by(trained, tables, k)
        (summed,) = (
            row["curve"]
            for row in tables["attributions"]
            if (row["clip_id"], row["method"]) == (f"clip {k}", "saliency")
        )
        peaks = peak_frames(np.asarray(summed), [95.0])[0]
        replaced = x[k, :, :n].clone()
        with torch.inference_mode():
            replaced[:, torch.from_numpy(peaks)] = detector.network(x[k : k + 1])[0, :, :n][:, torch.from_numpy(peaks)]
            before, after = detector.raw(torch.stack([x[k], fill_up(replaced, T)]), ["", ""], [n, n]).tolist()
        (row,) = (
            row
            for row in tables["faithfulness"]
            if (row["clip_id"], row["method"], row["mode"], row["percentile"])
            == (f"clip {k}", "saliency", "frame", 95.0)
        )
        assert row["error_before"] == pytest.approx(before, rel=1e-6)
        assert row["error_after"] == pytest.approx(after, rel=1e-5)
