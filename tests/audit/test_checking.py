"""The checks of the deep clips, against definitions written slowly and Captum's metrics."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, Literal

import captum.metrics
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from faithad import schemas
from faithad.audit.checking import band_groups, infidelity, max_sensitivity
from faithad.audit.choice import mark_deep
from faithad.audit.model import AuditModel
from faithad.audit.reset_networks import reset_networks
from faithad.audit.shard import audit_clips
from faithad.config.sections import Attribution, Audit
from faithad.evaluation.peaks import highest_frames
from faithad.features import Normalization, fill_up
from faithad.model.checkpoint import TrainedModel
from faithad.model.table import build_network
from faithad.scoring.choices import Score
from faithad.scoring.score import Detector
from faithad.settings import Checks, FeatureSettings, JudgingSettings

SMALL = FeatureSettings(n_fft=4000, hop_samples=2000, n_mels=16)  # 10 frames per second
N_FRAMES, GRID, SHORT = 101, 100, 51
PERCENTILES = (80.0, 95.0)
METHODS = ("error_map", "saliency", "integrated_gradients")
TRAINING = Normalization(torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16))
Row = dict[str, Any]


def trained(name: str, n_frames: int, *, seed: int, normalization: Normalization) -> TrainedModel:
    torch.manual_seed(seed)
    network = build_network(name, 16, n_frames).eval()
    return TrainedModel(network, normalization, SMALL, name, 0, None, 1, "hash")


def prepared() -> AuditModel:
    return AuditModel.prepare(
        trained("cae", N_FRAMES, seed=3, normalization=TRAINING),
        attribution=Attribution(methods=METHODS, integrated_gradients_steps=4),
        audit=Audit(percentiles=PERCENTILES),
        device=torch.device("cpu"),
        training=TRAINING,
        judging=JudgingSettings(("paper", "corrected"), GRID),
        # Of another shape and another unit, as the MAE of a study is.
        inpainter=trained("skip_cae", GRID, seed=4, normalization=Normalization.identity(16)),
    )


def clips() -> list[Row]:
    """A deep clip that is checked for sanity, a deep short one, and one that is not deep."""
    return [
        {"clip_id": f"{k:016x}", "recording": "a.wav", "onset_s": 10.0 * k, "duration_s": seconds, "keep_maps": True,
         "annotated": False, "intervals": None, "deep": deep, "sanity": k == 0, "timed": k == 1}
        for k, (seconds, deep) in enumerate([(10.0, True), (5.0, True), (10.0, False)])
    ]  # fmt: skip


def spectrograms() -> torch.Tensor:
    x = torch.randn(3, 16, N_FRAMES, generator=torch.Generator().manual_seed(0))
    x[:, :, 33:38] *= 4
    return x


@pytest.fixture(scope="module")
def tables() -> dict[str, list[Row]]:
    return audit_clips(prepared(), clips(), spectrograms(), explain=True)


@pytest.fixture(scope="module")
def checks(tables: dict[str, list[Row]]) -> dict[tuple[Any, ...], float]:
    rows = tables["checks"]
    assert pa.Table.from_pylist(rows, schemas.CHECKS).num_rows == len(rows)
    assert {row["protocol"] for row in rows} == {"corrected"}
    values = {(row["clip_id"], row["method"], row["check"], row["at"]): row["value"] for row in rows}
    assert len(values) == len(rows)
    return values


def error(x: torch.Tensor, network: nn.Module) -> float:
    """E of (F, its own frames)."""
    with torch.inference_mode():
        rebuilt = network(fill_up(x, N_FRAMES)[None])[0, :, : x.shape[-1]]
    return (rebuilt - x).square().mean(dtype=torch.float64).item()


@pytest.mark.parametrize("clip", [0, 1])
def test_replacements_deletion_and_insertion_are_their_definitions(
    clip: int, tables: dict[str, list[Row]], checks: dict[tuple[Any, ...], float]
) -> None:
    model, clip_id = prepared(), clips()[clip]["clip_id"]
    network, inpainter = model.trained.network, model.inpainter
    assert inpainter is not None
    n, judged = ((N_FRAMES, GRID), (SHORT, SHORT))[clip]
    log_mel = spectrograms()[clip, :, :n]
    x = TRAINING.apply(log_mel)
    with torch.inference_mode():
        rebuilt = network(fill_up(x, N_FRAMES)[None])[0, :, :n]
    before = error(x, network)
    curves = {row["method"]: row["curve"] for row in tables["attributions"] if row["clip_id"] == clip_id}
    for method in METHODS:
        for percentile in PERCENTILES:
            frames = np.flatnonzero(highest_frames(curves[method][:judged], [percentile])[0])
            replaced = x.clone()
            replaced[:, frames] = 0.0  # the training's mean in the unit of the network
            value = checks[clip_id, method, "training_mean", percentile]
            assert value == pytest.approx(1 - error(replaced, network) / before, abs=1e-5)

            hidden = log_mel.clone()[:, :GRID]
            hidden[:, frames] = 0.0
            with torch.inference_mode():
                predicted = inpainter.network(fill_up(hidden, GRID)[None])[0]
            replaced = x.clone()
            replaced[:, frames] = TRAINING.apply(predicted)[:, frames]
            value = checks[clip_id, method, "inpainting", percentile]
            assert value == pytest.approx(1 - error(replaced, network) / before, abs=1e-5)
        for share in (0, 2, 5, 10, 20, 40, 60, 80, 100):
            frames = np.flatnonzero(highest_frames(curves[method][:judged], [100 - share])[0])
            assert len(frames) == math.ceil(share * judged / 100)
            deleted, inserted = x.clone(), x.clone()
            deleted[:, frames] = rebuilt[:, frames]
            inserted[:, :judged] = rebuilt[:, :judged]
            inserted[:, frames] = x[:, frames]
            for check, changed in (("deletion", deleted), ("insertion", inserted)):
                expected = error(changed, network) / before
                assert checks[clip_id, method, check, share] == pytest.approx(expected, abs=1e-5)


def test_bands_are_their_definition(tables: dict[str, list[Row]], checks: dict[tuple[Any, ...], float]) -> None:
    model, clip_id = prepared(), clips()[0]["clip_id"]
    x = TRAINING.apply(spectrograms()[0])
    with torch.inference_mode():
        rebuilt = model.trained.network(x[None])[0]
    groups = band_groups(16)
    assert groups.sum(axis=0).tolist() == [1] * 16
    assert sorted(groups.sum(axis=1).tolist()) == [1] * 4 + [2] * 6
    assert band_groups(80).sum(axis=1).tolist() == [8] * 10
    rows = [row for row in tables["attributions"] if row["clip_id"] == clip_id]
    kept = {row["method"]: np.array(row["map"]).reshape(16, -1) for row in rows}
    kept["outlier"] = TRAINING.apply(spectrograms()[0]).square().numpy()
    for group, bands in enumerate(groups):
        replaced = x.clone()
        replaced[bands] = rebuilt[bands]
        drop = 1 - error(replaced, model.trained.network) / error(x, model.trained.network)
        assert checks[clip_id, None, "band_drop", group] == pytest.approx(drop, abs=1e-5)
        for method, of_method in kept.items():
            mass = np.abs(of_method[:, :GRID].astype(np.float64))
            share = mass[bands].sum() / mass.sum()
            assert checks[clip_id, method, "band_mass", group] == pytest.approx(share, rel=2e-3)


def test_checks_are_of_the_score_that_alarms(checks: dict[tuple[Any, ...], float]) -> None:
    """The mean squared error, as a score of four choices, is the paper's; the worst window is another one."""

    def checked_by(pooling: str) -> dict[tuple[Any, ...], float]:
        model = prepared()
        score = Score("reconstruction", "none", pooling, "none")
        detector = Detector(model.network, score, SMALL.frames_per_s)  # type: ignore[arg-type]
        rows = audit_clips(replace(model, detector=detector), clips(), spectrograms(), explain=True)["checks"]
        return {(row["clip_id"], row["method"], row["check"], row["at"]): row["value"] for row in rows}

    mean = checked_by("mean")
    assert mean.keys() == checks.keys()
    for key, value in checks.items():
        if key[2] != "seconds":
            assert mean[key] == pytest.approx(value, rel=2e-2, abs=1e-3), key
    worst = checked_by("worst_window")
    assert any(abs(worst[key] - value) > 0.1 for key, value in checks.items() if key[2] == "deletion")
    assert all(worst[key] == 1 for key in worst if key[2:] == ("deletion", 0.0))


def test_only_marked_clips_are_checked(checks: dict[tuple[Any, ...], float]) -> None:
    deep, short, other = (row["clip_id"] for row in clips())
    sanity = {"randomisation", "completeness", "infidelity", "sensitivity"}
    everything = {"training_mean", "inpainting", "deletion", "insertion", "band_drop", "band_mass"}
    for clip_id, expected in ((deep, everything | sanity), (short, everything | {"seconds"}), (other, set())):
        assert {check for clip, _, check, _ in checks if clip == clip_id} == expected
    assert {at for _, _, check, at in checks if check == "randomisation"} == {25.0, 50.0, 75.0, 100.0}
    assert {method for _, method, check, _ in checks if check == "completeness"} == {"integrated_gradients"}


def test_nothing_is_checked_under_the_paper_alone() -> None:
    assert audit_clips(replace(prepared(), judging=JudgingSettings()), clips()[:1], spectrograms()[:1], explain=True)[
        "checks"
    ] == []  # fmt: skip


@pytest.mark.parametrize("baseline", ["zero", "normals"])
def test_integrated_gradients_with_many_steps_are_complete(
    checks: dict[tuple[Any, ...], float], baseline: Literal["zero", "normals"]
) -> None:
    key = (clips()[0]["clip_id"], "integrated_gradients", "completeness", None)
    attribution = Attribution(methods=METHODS[2:], integrated_gradients_steps=32, baseline=baseline)
    model = replace(prepared(), attribution=attribution)
    model.trained.normals = spectrograms().roll(1, dims=0)[..., :N_FRAMES] / 2
    rows = audit_clips(model, clips()[:1], spectrograms()[:1], explain=True)["checks"]
    (fine,) = [row["value"] for row in rows if row["check"] == "completeness"]
    assert fine < min(0.01, checks[key])


def test_infidelity_and_sensitivity_are_captum_s() -> None:
    """Of a map that is not the gradient, of a function that is not linear."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(10, 6, 8, generator=generator, dtype=torch.float64)

    def score(inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * weights).sum(dim=(1, 2)).tanh() + inputs.square().mean(dim=(1, 2))

    def explain(inputs: Any) -> Any:
        return tuple(map(explain, inputs)) if isinstance(inputs, tuple) else inputs * weights.abs()

    def perturb(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return noise, inputs - noise

    own = explain(x[None])
    expected = captum.metrics.infidelity(score, perturb, x[None], own, n_perturb_samples=10, normalize=True)
    changes = (score(x[None]) - score(x - noise)).numpy()
    assert infidelity(own[0].numpy(), noise.numpy(), changes) == pytest.approx(expected.item(), rel=1e-9)
    expected = captum.metrics.sensitivity_max(
        explain,
        x[None],
        perturb_func=lambda inputs, _: inputs + noise,
        n_perturb_samples=10,
    )
    assert max_sensitivity(own[0].numpy(), explain(x + noise).numpy()) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["cae", "mae"])
def test_layers_are_reset_from_the_output_inwards_until_none_is_left(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, 16, 64).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(16, 64)
    changed, outputs = [], []
    for share, copied in reset_networks(network, x):
        assert share in (0.25, 0.5, 0.75, 1.0)
        with torch.inference_mode():
            outputs.append(copied(x[None]))
        weights = dict(copied.named_parameters())
        same = {key for key in weights if key in before and torch.equal(weights[key], before[key])}
        changed.append(set(weights) - same)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(torch.equal(a, b) for a, b in zip(outputs[1:], outputs, strict=False))
    assert all(fewer <= more for fewer, more in itertools.pairwise(changed))
    assert not any(key.startswith(("conv1.", "encoder.0")) for key in changed[0])


def test_annotated_clips_are_deep_first_and_no_other_recording_changes_a_clip_s_turn() -> None:
    names, annotated = [f"clip {k}" for k in range(40)], [k % 4 == 0 for k in range(40)]
    table = pa.table({"clip_id": names, "recording": names, "annotated": annotated})
    marked = mark_deep(table, Checks(16, 3, 1), seed=5).to_pandas()
    assert marked["deep"].sum() == 16
    assert marked[marked["annotated"]]["deep"].all()
    assert (marked["sanity"].sum(), marked["timed"].sum()) == (3, 1)
    assert marked[marked["sanity"]]["annotated"].all()
    again = mark_deep(table.take(list(range(39, 0, -1))), Checks(16, 3, 1), seed=5).to_pandas()
    first = set(marked[marked["deep"]]["clip_id"]) - {"clip 0"}
    assert first <= set(again[again["deep"]]["clip_id"])
    other = mark_deep(table, Checks(16, 3, 1), seed=6).to_pandas()
    assert set(other[other["deep"]]["clip_id"]) != set(marked[marked["deep"]]["clip_id"])


@pytest.mark.parametrize(("n_deep", "n_recordings"), [(5, 5), (8, 8), (20, 8), (32, 10)])
def test_deep_clips_are_of_as_many_recordings_as_can_be(n_deep: int, n_recordings: int) -> None:
    """Eight of ten recordings have annotated clips, three of four."""
    clips = [(recording, k) for recording in range(10) for k in range(4)]
    table = pa.table(
        {
            "clip_id": [f"{recording} {k}" for recording, k in clips],
            "recording": [f"{recording}" for recording, _ in clips],
            "annotated": [recording < 8 and k > 0 for recording, k in clips],
        }
    )
    marked = mark_deep(table, Checks(n_deep, 0, 0), seed=1).to_pandas()
    deep = marked[marked["deep"]]
    assert deep["recording"].nunique() == n_recordings
    assert deep["annotated"].sum() == min(n_deep, 24)
    each = deep[deep["annotated"]].groupby("recording").size()
    assert each.max() - each.min() <= 1
