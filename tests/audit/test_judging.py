"""Two protocols on the same maps, against definitions written slowly; and what `corrected` leaves out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from faithad import schemas
from faithad.audit.model import AuditModel
from faithad.audit.shard import audit_clips, table_schemas, to_table
from faithad.config.sections import Attribution, Audit
from faithad.evaluation.controls import random_frames
from faithad.features import Normalization
from faithad.model.checkpoint import TrainedModel
from faithad.model.table import build_network
from faithad.settings import FeatureSettings, JudgingSettings

SMALL = FeatureSettings(n_fft=4000, hop_samples=2000, n_mels=16)  # 10 frames per second
N_FRAMES, GRID = 101, 100
PERCENTILES = (80.0, 90.0, 95.0, 97.5)
METHODS = ("error_map", "saliency", "integrated_gradients")
BOTH = JudgingSettings(("paper", "corrected"), GRID)
CORRECTED = JudgingSettings(("corrected",), GRID)
Row = dict[str, Any]
Tables = dict[str, list[Row]]


def trained(name: str) -> TrainedModel:
    torch.manual_seed(3)
    network = build_network(name, 16, N_FRAMES).eval()
    for buffer in network.buffers():
        if name == "frame_pca":
            buffer.copy_(torch.randn(buffer.shape) / 10)
    return TrainedModel(network, Normalization.identity(16), SMALL, name, 0, None, 1, "hash")


def prepared(judging: JudgingSettings, *, linear: bool = False) -> AuditModel:
    return AuditModel.prepare(
        trained("cae"),
        attribution=Attribution(methods=METHODS, integrated_gradients_steps=4),
        audit=Audit(percentiles=PERCENTILES),
        device=torch.device("cpu"),
        training=Normalization(torch.zeros(16), torch.ones(16)),
        judging=judging,
        linear=trained("frame_pca") if linear else None,
    )


def clips() -> list[Row]:
    """The last one has half a clip of sound. One in two is annotated."""
    rows = [
        {"clip_id": f"{k:016x}", "recording": "a.wav", "onset_s": 10.0 * k, "duration_s": 10.0, "keep_maps": False,
         "annotated": k % 2 == 1, "intervals": [{"onset_s": 3.0, "offset_s": 4.5}] if k % 2 else None}
        for k in range(4)
    ]  # fmt: skip
    rows[3]["duration_s"] = 5.0
    return rows


def spectrograms() -> torch.Tensor:
    x = torch.randn(4, 16, N_FRAMES, generator=torch.Generator().manual_seed(0))
    x[:, :, 33:38] *= 4
    return x


def audited(model: AuditModel) -> Tables:
    tables = audit_clips(model, clips(), spectrograms(), explain=True)
    for name, schema in table_schemas(model.trained).items():
        to_table(tables[name], schema)
    return tables


@pytest.fixture(scope="module")
def both() -> Tables:
    return audited(prepared(BOTH, linear=True))


def of_protocol(rows: list[Row], protocol: str) -> list[Row]:
    return [row for row in rows if row["protocol"] == protocol]


def highest(curve: np.ndarray, percentile: float) -> list[int]:
    """The ceil((100 - p) T / 100) frames with the highest values, one by one; of equal ones the earlier."""
    left, chosen = list(range(len(curve))), []
    while Fraction(len(chosen)) < (100 - Fraction(str(percentile))) * len(curve) / 100:
        best = left[0]
        for frame in left:
            if curve[frame] > curve[best]:
                best = frame
        left.remove(best)
        chosen.append(best)
    return sorted(chosen)


def test_the_paper_s_numbers_do_not_move_by_a_bit_beside_the_other_protocol(both: Tables) -> None:
    alone = audited(prepared(JudgingSettings()))
    for table in ("localization", "faithfulness", "controls"):
        assert of_protocol(both[table], "paper") == alone[table] != []
    for table in ("scores", "attributions"):
        schema = table_schemas(prepared(BOTH).trained)[table]
        assert to_table(both[table], schema).equals(to_table(alone[table], schema))


def test_random_frames_stand_beside_the_paper_at_one_percentile(both: Tables) -> None:
    """As an audit of recordings has them: the paper's numbers keep every bit, and one percentile is normalised."""
    alone, found = audited(prepared(JudgingSettings())), audited(prepared(JudgingSettings(chance_at=(90.0,))))
    assert [row | {"normalized": None} for row in found["faithfulness"]] == alone["faithfulness"]
    known = [row for row in found["controls"] if row not in alone["controls"]]
    assert len(known) == len(found["controls"]) - len(alone["controls"])
    assert {(row["line"], row["percentile"], row["protocol"]) for row in known} == {
        ("random", 90.0, "paper"), ("oracle", 90.0, "paper"),
    }  # fmt: skip
    value = {(row["clip_id"], row["metric"], row["line"]): row["value"] for row in known}
    own = {(row["clip_id"], row["method"]): row for row in found["faithfulness"]
           if (row["mode"], row["percentile"]) == ("frame", 90.0)}  # fmt: skip
    corrected = {(row["clip_id"], row["line"]): row["value"] for row in of_protocol(both["controls"], "corrected")
                 if (row["metric"], row["percentile"]) == ("faithfulness", 90.0)}  # fmt: skip
    for clip in clips():
        name = clip["clip_id"]
        random, best = (value[name, "faithfulness", line] for line in ("random", "oracle"))
        assert best == own[name, "error_map"]["faithfulness"]
        if clip["duration_s"] == 5.0:  # on the same frames, without a last one that is left out
            assert random == pytest.approx(max(0.0, corrected[name, "random"]), abs=1e-6)
        for method in METHODS:
            row = own[name, method]
            assert row["normalized"] == pytest.approx((row["faithfulness"] - random) / (best - random))
    assert all(row["normalized"] is None for row in found["faithfulness"] if row not in own.values())


def test_corrected_alone_is_corrected_beside_the_paper(both: Tables) -> None:
    alone = audited(prepared(CORRECTED, linear=True))
    for table in ("localization", "faithfulness", "controls"):
        assert alone[table] == of_protocol(both[table], "corrected")


def test_corrected_is_its_definition(both: Tables) -> None:
    model = prepared(BOTH)
    network, x, rows = model.trained.network, spectrograms(), clips()
    pca = trained("frame_pca").network
    curves = {(row["clip_id"], row["method"]): row["curve"] for row in both["attributions"]}
    normalized, faithful, lines = {}, {}, {}
    for clip, row in enumerate(rows[:3]):
        with torch.inference_mode():
            rebuilt = network(x[clip][None])[0]
            linear = (pca(x[clip][None])[0] - x[clip]).square().sum(dim=0).numpy()
        error = (rebuilt - x[clip]).square()
        before = error.mean(dtype=torch.float64).item()

        def share(frames: list[int] | np.ndarray, clip: int = clip, rebuilt: Any = rebuilt, e: float = before) -> float:
            replaced = x[clip].clone()
            replaced[:, frames] = rebuilt[:, frames]
            with torch.inference_mode():
                return 1 - (network(replaced[None])[0] - replaced).square().mean().item() / e

        for position, percentile in enumerate(PERCENTILES):
            draws = random_frames(row["clip_id"], GRID, PERCENTILES)[:, position]
            of_lines = {
                "random": float(np.mean([share(np.flatnonzero(draw)) for draw in draws])),
                "oracle": share(highest(error.sum(dim=0).numpy()[:GRID], percentile)),
                "outlier": share(highest(x[clip].double().square().sum(dim=0).numpy()[:GRID], percentile)),
                "frame_pca": share(highest(linear[:GRID], percentile)),
            }
            span = of_lines["oracle"] - of_lines["random"]
            for line, value in of_lines.items():
                lines[row["clip_id"], "faithfulness", line, percentile] = value
                lines[row["clip_id"], "normalized_faithfulness", line, percentile] = (value - of_lines["random"]) / span
            for method in METHODS:
                key = row["clip_id"], method, percentile
                faithful[key] = share(highest(curves[key[:2]][:GRID], percentile))
                normalized[key] = (faithful[key] - of_lines["random"]) / span
                assert span > 0.01
    found = [row for row in of_protocol(both["faithfulness"], "corrected") if row["mode"] == "frame"]
    assert len(found) == 4 * len(METHODS) * len(PERCENTILES)
    for row in found:
        key = row["clip_id"], row["method"], row["percentile"]
        if key in faithful:
            assert row["faithfulness"] == pytest.approx(faithful[key], abs=2e-6)
            assert row["normalized"] == pytest.approx(normalized[key], abs=2e-4)
            assert row["replaced_fraction"] == math.ceil((100 - row["percentile"]) * GRID / 100) / GRID
    compared = 0
    for row in of_protocol(both["controls"], "corrected"):
        line = row["clip_id"], row["metric"], row["line"], row["percentile"]
        if line in lines:
            assert row["value"] == pytest.approx(lines[line], abs=2e-4)
            compared += 1
    assert compared == len(lines)


def test_the_error_map_is_1_and_frames_of_a_short_clip_end_with_its_sound(both: Tables) -> None:
    rows = of_protocol(both["faithfulness"], "corrected")
    assert {row["normalized"] for row in rows if row["method"] == "error_map" and row["mode"] == "frame"} == {1.0}
    assert {row["normalized"] for row in rows if row["mode"] == "segment"} == {None}
    short = [row for row in rows if row["clip_id"] == clips()[3]["clip_id"] and row["mode"] == "frame"]
    heard = SMALL.frames_in(5.0)
    assert {(row["percentile"], row["replaced_fraction"]) for row in short} == {
        (p, math.ceil((100 - Fraction(str(p))) * heard / 100) / heard) for p in PERCENTILES
    }


def test_flat_curves_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from faithad.audit import clip_rows

    def flat(attribution_map: torch.Tensor) -> np.ndarray:
        return np.zeros(attribution_map.shape[-1], np.float32)

    monkeypatch.setattr(clip_rows, "curve", flat)
    tables = audited(prepared(BOTH))
    assert of_protocol(tables["faithfulness"], "corrected") == of_protocol(tables["localization"], "corrected") == []
    assert len(of_protocol(tables["faithfulness"], "paper")) == (4 + 2) * len(METHODS) * len(PERCENTILES)


def test_a_clip_with_an_even_error_is_not_normalised() -> None:
    """A network that makes nothing of its input: all frames of a flat clip are equally wrong."""
    model = prepared(CORRECTED)
    model = replace(model, network=_Halving(), explained=_Halving(), attribution=Attribution(methods=("saliency",)))
    x = torch.ones(1, 16, N_FRAMES) + 1e-3 * spectrograms()[:1]
    tables = audit_clips(model, clips()[:1], x, explain=True)
    frames = tables["faithfulness"]
    assert {row["normalized"] for row in frames} == {None}
    assert all(0 < row["faithfulness"] < 1 for row in frames)
    assert {row["metric"] for row in tables["controls"]} == {"faithfulness"}


class _Halving(torch.nn.Module):
    grad_cam_layer = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_equal_masks_are_sent_to_the_network_once_under_both_protocols() -> None:
    model = prepared(BOTH)
    counting = _Counting(model.network)
    audited(replace(model, network=counting))
    assert max(counting.seen.values()) == 1
    # Masks of integer percentiles choose the same frames under both, but for the last frame and ties.
    alone = _Counting(model.network)
    audited(replace(prepared(CORRECTED), network=alone))
    paper = _Counting(model.network)
    audited(replace(prepared(JudgingSettings()), network=paper))
    assert counting.seen.keys() == alone.seen.keys() | paper.seen.keys()
    assert len(counting.seen) < len(alone.seen) + len(paper.seen) - 4


class _Counting(torch.nn.Module):
    """Counts how often each spectrogram goes through."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, Counter[bytes]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.update(clip.numpy().tobytes() for clip in x)
        return self.network(x)  # type: ignore[no-any-return]


def test_a_line_of_the_linear_model_has_f_scores_of_its_own(both: Tables) -> None:
    f_scores = [row for row in both["controls"] if row["metric"] == "f_score"]
    lines = {(row["protocol"], row["line"]) for row in f_scores}
    assert lines == {
        *((protocol, line) for protocol in ("paper", "corrected") for line in ("level", "level_change", "outlier")),
        ("corrected", "frame_pca"),
    }
    annotated = {row["clip_id"] for row in clips() if row["annotated"]}
    assert {row["clip_id"] for row in f_scores} == annotated
    assert to_table(both["controls"], schemas.CONTROLS).num_rows == len(both["controls"])
