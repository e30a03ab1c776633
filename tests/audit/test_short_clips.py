"""A clip that is shorter than those of the model is judged by the frames that hold sound, and by nothing else."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from faithad.audit.clip_rows import TABLES
from faithad.audit.model import AuditModel
from faithad.audit.shard import audit_clips, table_schemas, to_table
from faithad.clips.manifest import ClipRow, manifest_table
from faithad.config.sections import Attribution, Audit
from faithad.features import Normalization, log_mel
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.model.table import build_network
from faithad.pipelines.shards.log_mels import read_log_mel
from faithad.settings import AttributionSettings, FeatureSettings

RATE_HZ = 4_000
FEATURES = FeatureSettings(sample_rate_hz=RATE_HZ, n_fft=400, hop_samples=400, n_mels=16)  # 10 frames a second
METHODS = ("error_map", "saliency", "smooth_grad", "integrated_gradients", "grad_cam", "occlusion")
SETTINGS = AttributionSettings(2, 0.1, 3, 2, 0.09, occlusion_bands=5, occlusion_frames=13)
PERCENTILES = (90.0, 95.0)
PIECES_S = (1.0, 2.0, 3.0, 3.4, 5.0, 9.9)


def machine_sound(seconds: float, seed: int) -> np.ndarray:
    """A hum over noise: normal operation."""
    generator = np.random.default_rng(seed)
    at_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    hum = sum(np.sin(2 * np.pi * hz * at_s + generator.uniform(0, 6)) for hz in (120, 360, 900))
    return (0.05 * hum + 0.05 * generator.normal(size=len(at_s))).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    """Trained for seconds on normal sound. It alarms half above what whole clips reach: short ones spread more."""
    sounds = torch.from_numpy(np.stack([machine_sound(10.0, seed) for seed in range(44)]))
    log_mels = log_mel(sounds, FEATURES)
    normalization = Normalization.fit(log_mels)
    x = normalization.apply(log_mels)[..., :100]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network("ae", 16, 100)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for step in range(20):
            batch = x[:24].roll(-8 * step, dims=0)[:8]
            optimizer.zero_grad()
            (network(batch) - batch).square().mean().backward()
            optimizer.step()
    network.eval()
    with torch.inference_mode():
        scores = (network(x[24:]) - x[24:]).square().mean(dim=(1, 2))
    alarm = AlarmThreshold("quantile", "mean", 0.05, 1.5 * scores.max().item(), 18.0, 20)
    return TrainedModel(network, normalization, FEATURES, "ae", 0, alarm, 1, "hash")


@pytest.fixture(scope="module")
def model(trained: TrainedModel) -> AuditModel:
    attribution = Attribution(methods=METHODS, **vars(SETTINGS))
    audit = Audit(percentiles=PERCENTILES)
    return AuditModel.prepare(trained, attribution=attribution, audit=audit, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The pieces, each a recording, and a whole clip."""
    folder = tmp_path_factory.mktemp("pieces")
    rows = []
    for number, length_s in enumerate([*PIECES_S, 10.0]):
        place = folder / f"{number}.wav"
        soundfile.write(place, machine_sound(length_s, 100 + number), RATE_HZ, subtype="FLOAT")
        rows.append(ClipRow(place.name, str(place), 0.0, length_s, "test", intervals=((0.2, 0.9),), annotated=True))
    return [{**row, "keep_maps": True} for row in manifest_table(rows).to_pylist()]


def log_mels_of(clips: list[dict[str, Any]]) -> Tensor:
    return torch.from_numpy(np.stack([read_log_mel(clip, FEATURES) for clip in clips]))


@pytest.fixture(scope="module")
def audited(model: AuditModel, clips: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return audit_clips(model, clips, log_mels_of(clips), explain=True)


def n_frames_of(clip: dict[str, Any]) -> int:
    return min(100, 1 + round(clip["duration_s"] * RATE_HZ) // 400)


def mirrored(piece: Tensor) -> Tensor:
    """The piece as the network takes it in, frame by frame from the definition: there and back between its ends."""
    n, place, step, columns = piece.shape[-1], 0, 1, []
    for _ in range(100):
        columns.append(piece[..., place])
        if not 0 <= place + step < n:
            step = -step
        place += step
    return torch.stack(columns, dim=-1)


def error_of(trained: TrainedModel, piece: Tensor) -> Tensor:
    """The squared error (F, n) of a piece (F, n)."""
    with torch.inference_mode():
        return (trained.network(mirrored(piece)[None])[0, :, : piece.shape[-1]] - piece).square()


def piece_of(trained: TrainedModel, clip: dict[str, Any]) -> Tensor:
    """The normalised log-mel (F, n) of the clip's sound alone."""
    sound = torch.from_numpy(soundfile.read(clip["uri"], dtype="float32")[0])
    return trained.normalization.apply(log_mel(sound[None], FEATURES)[0])[:, : n_frames_of(clip)]


def test_pieces_of_a_normal_recording_score_as_whole_clips_and_raise_no_alarm(
    trained: TrainedModel, model: AuditModel, tmp_path: Path
) -> None:
    sound = machine_sound(61.0, 7)
    rows = []
    for length_s in (*PIECES_S, 10.0):
        for number in range(6):
            place = tmp_path / f"{length_s}-{number}.wav"
            start = round((10.0 * number + 0.01) * RATE_HZ)
            soundfile.write(place, sound[start : start + round(length_s * RATE_HZ)], RATE_HZ, subtype="FLOAT")
            rows.append(ClipRow(place.name, str(place), 0.0, length_s, "test"))
    clips = [{**row, "keep_maps": False} for row in manifest_table(rows).to_pylist()]
    scores = audit_clips(model, clips, log_mels_of(clips), explain=False)["scores"]
    whole = [row["score"] for row, clip in zip(scores, clips, strict=True) if clip["duration_s"] == 10.0]
    for row, clip in zip(scores, clips, strict=True):
        assert 0.7 * min(whole) < row["score"] < 1.4 * max(whole), clip["duration_s"]
        assert not row["alarm"], clip["duration_s"]
    silence = torch.from_numpy(sound[: 5 * RATE_HZ]).new_zeros(10 * RATE_HZ)
    silence[: 5 * RATE_HZ] = torch.from_numpy(sound[: 5 * RATE_HZ])
    padded = audit_clips(model, clips[-1:], log_mel(silence[None], FEATURES), explain=False)["scores"][0]
    assert padded["alarm"], "what silence in the rest of the clip would do"
    assert padded["score"] > 5 * max(whole)


def test_scores_from_the_definition(
    trained: TrainedModel, clips: list[dict[str, Any]], audited: dict[str, list[dict[str, Any]]]
) -> None:
    assert [row["clip_id"] for row in audited["scores"]] == [clip["clip_id"] for clip in clips]
    for clip, row in zip(clips, audited["scores"], strict=True):
        error = error_of(trained, piece_of(trained, clip))
        assert row["score"] == pytest.approx(error.mean().item(), rel=1e-4)
        per_frame = error.mean(dim=0)
        n = len(per_frame)
        onsets = [float(second) for second in range(math.ceil((n - 1) / 10))]
        if n - 10 * onsets[-1] < 10:  # cut off: the last second ends with the clip
            onsets[-1] = (n - 10) / 10
        means = [per_frame[round(10 * onset) : round(10 * onset) + 10].mean().item() for onset in onsets]
        if n % 10 == 1:  # the frame on the clip's end belongs to the last second
            means[-1] = per_frame[-11:].mean().item()
        assert row["worst_second_score"] == pytest.approx(max(means), rel=1e-4)
        assert row["worst_onset_s"] == pytest.approx(onsets[int(np.argmax(means))])
        assert row["worst_mel_band"] == error.mean(dim=1).argmax().item()


def test_curves_maps_and_spectrograms_have_the_true_length(
    trained: TrainedModel, clips: list[dict[str, Any]], audited: dict[str, list[dict[str, Any]]]
) -> None:
    by_id = {clip["clip_id"]: clip for clip in clips}
    schema = table_schemas(trained)["attributions"]
    rows = to_table(audited["attributions"], schema).to_pylist()
    assert len(rows) == len(clips) * len(METHODS)
    for row in rows:
        clip = by_id[row["clip_id"]]
        assert len(row["curve"]) == n_frames_of(clip)
        assert len(row["map"]) == 16 * n_frames_of(clip)
        assert len(row["profile"]) == 16
        if row["method"] == "error_map":
            error = error_of(trained, piece_of(trained, clip))
            np.testing.assert_allclose(row["curve"], error.sum(dim=0), rtol=1e-3)
            kept = np.array(row["map"], dtype=np.float32).reshape(16, -1) * row["map_scale"]
            np.testing.assert_allclose(kept, error, atol=2e-3 * row["map_scale"])
    pictures = to_table(audited["spectrograms"], table_schemas(trained)["spectrograms"]).to_pylist()
    for clip, picture in zip(clips, pictures, strict=True):
        piece = trained.normalization.invert(piece_of(trained, clip))
        np.testing.assert_allclose(picture["log_mel"], piece.flatten(), atol=1e-3)
        assert len(picture["reconstruction"]) == len(picture["log_mel"])


def test_faithfulness_and_localization_from_the_definition(
    trained: TrainedModel, clips: list[dict[str, Any]], audited: dict[str, list[dict[str, Any]]]
) -> None:
    """Peaks are those of the frames that hold sound; these are replaced, and the piece is mirrored anew."""
    curves = {(row["clip_id"], row["method"]): row["curve"] for row in audited["attributions"]}
    scores = {row["clip_id"]: row["score"] for row in audited["scores"]}
    by_id = {clip["clip_id"]: clip for clip in clips}
    assert len(audited["faithfulness"]) == len(clips) * len(METHODS) * 2 * len(PERCENTILES)
    for row in audited["faithfulness"]:
        clip, curve = by_id[row["clip_id"]], curves[row["clip_id"], row["method"]]
        n = len(curve)
        peaks = curve >= np.percentile(curve, row["percentile"])
        frames = np.flatnonzero(peaks)
        if row["mode"] == "segment":
            seconds = {min(frame // 10, max(1, -(-(n - 1) // 10)) - 1) for frame in frames}
            frames = np.array([frame for frame in range(2, 9) if frame // 10 in seconds], dtype=int)
        assert row["replaced_fraction"] == pytest.approx(len(frames) / n)
        assert row["error_before"] == scores[row["clip_id"]]
        piece = piece_of(trained, clip)
        with torch.inference_mode():
            rebuilt = trained.network(mirrored(piece)[None])[0, :, :n]
        replaced = piece.clone()
        replaced[:, frames] = rebuilt[:, frames]
        after = error_of(trained, replaced).mean().item()
        assert row["error_after"] == pytest.approx(after, rel=1e-3)
    for row in audited["localization"]:
        curve = curves[row["clip_id"], row["method"]]
        seconds = {min(frame // 10, max(1, -(-(len(curve) - 1) // 10)) - 1)
                   for frame in np.flatnonzero(curve >= np.percentile(curve, row["percentile"]))}  # fmt: skip
        assert (row["tp"], row["fp"], row["fn"]) == (int(0 in seconds), len(seconds - {0}), int(0 not in seconds))


def test_a_short_clip_alone_or_among_others_gives_the_same_rows(
    model: AuditModel, clips: list[dict[str, Any]], audited: dict[str, list[dict[str, Any]]]
) -> None:
    alone = [audit_clips(model, [clip], log_mels_of([clip]), explain=True) for clip in reversed(clips)]
    for table in TABLES:
        schema = table_schemas(model.trained)[table]
        one_by_one = [row for rows in reversed(alone) for row in rows[table]]
        assert to_table(audited[table], schema).equals(to_table(one_by_one, schema)), table


def test_shuffled_and_doubled_clips_have_the_same_scores(
    model: AuditModel, clips: list[dict[str, Any]], audited: dict[str, list[dict[str, Any]]]
) -> None:
    order = [4, 0, 6, 2, 5, 1, 3, 3, 6, 0, 2, 1, 5, 4]
    assert set(order) == set(range(len(clips)))
    shuffled = [replace_id(clips[k], f"{place:016x}") for place, k in enumerate(order)]
    scores = audit_clips(model, shuffled, log_mels_of(shuffled), explain=False)["scores"]
    for row, k in zip(scores, order, strict=True):
        assert row | {"clip_id": clips[k]["clip_id"]} == audited["scores"][k]


def test_what_fills_a_clip_up_is_looked_at_by_nobody(model: AuditModel, clips: list[dict[str, Any]]) -> None:
    """A whole clip has the same rows to the last bit whether short ones are beside it or not."""
    whole = [clip for clip in clips if clip["duration_s"] == 10.0]
    others = [replace_id(whole[0], "b" * 16), *clips]
    beside = audit_clips(model, others, log_mels_of(others), explain=True)
    alone = audit_clips(model, whole, log_mels_of(whole), explain=True)
    for table in TABLES:
        schema = table_schemas(model.trained)[table]
        own = [row for row in beside[table] if row["clip_id"] == whole[0]["clip_id"]]
        assert to_table(own, schema).equals(to_table(alone[table], schema)), table


def replace_id(clip: dict[str, Any], clip_id: str) -> dict[str, Any]:
    return {**copy.deepcopy(clip), "clip_id": clip_id}
