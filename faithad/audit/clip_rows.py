"""The rows of all tables that scored clips get from the model that explains them.

Shape letters: B clips, F mel bands, T frames, P percentiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from faithad.attribution.gradient_stream import attribute_batch
from faithad.audit.checking import CheckedClip, check_clip
from faithad.audit.judging import Clip, TableRow, judge_faithfulness, judge_lines, judge_method, n_judged
from faithad.audit.model import AuditModel
from faithad.audit.score_rows import differences, fitted_row, levels, paper_row, windows
from faithad.clips.ledger import clip_ledger_row
from faithad.evaluation.faithfulness import ClipScore
from faithad.evaluation.peaks import Floats, curve, is_flat, peak_frames
from faithad.model.checkpoint import TrainedModel
from faithad.model.micro_batches import MicroBatches, forwards_at_once
from faithad.model.training_sound import median_spectrum
from faithad.runs import layout
from faithad.scoring.score import Detector
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble
from faithad.vocabulary import CORRECTED

TABLES = (layout.SCORES, layout.MEDIAN_SPECTRA, *layout.EXPLANATIONS, "ledger")

# Clips that one thread of a CPU takes at once: more are no faster, and would leave other threads without any.
_FORWARDS_ON_CPU = 4


class Scored(NamedTuple):
    """Clips (B,) that one model explains, with all that is known of their score.

    Attributes:
        x: the network's input, (B, F, T).
        outputs: the network's reconstruction, (B, F, T), or what a model that does not reconstruct returns; None where
            it is not needed.
        errors: the error of each cell, (B, F, T), on the CPU; None of a model that gives a score only.
        explained: the score that is explained, (B,).
        scores: the score that is written, (B,): calibrated, and of an ensemble the sum.
        paper: the mean squared error, where another score is written, (B,); None where it is not known.
        n_frames: how many frames of each clip hold sound.
        references: the spectra (B, F) of the clips' recordings that were subtracted from x; None where nothing was.
    """

    x: Tensor
    outputs: Tensor | None
    errors: Sequence[Tensor] | Tensor | None
    explained: np.ndarray
    scores: np.ndarray
    paper: np.ndarray | None
    n_frames: list[int]
    references: Tensor | None = None


def clip_rows(
    model: AuditModel,
    scored: Scored,
    clips: Sequence[TableRow],
    log_mels: Tensor,
    explain: bool,
    *,
    ensemble: TrainedEnsemble | None = None,
) -> dict[str, list[TableRow]]:
    """The rows of all tables for clips that one model explains. Rows of an ensemble's member name the ensemble."""
    rows: dict[str, list[TableRow]] = {table: [] for table in TABLES}
    trained = model.trained
    x, outputs, errors, explained, scores, paper, n_frames, references = scored
    maps = _attribute(model, scored, [row["clip_id"] for row in clips]) if explain else {}
    maps = {method: attribution_maps.cpu() for method, attribution_maps in maps.items()}
    linear_errors = None
    if explain and model.linear is not None:
        linear_errors = _error_curves(model.linear, model.linear.prepare(log_mels, references), model)
    good: list[tuple[int, Clip]] = []
    for number, row in enumerate(clips):
        if not np.isfinite(scores[number]):
            reason = "the model's error on this clip is not a finite number: check the recording's level and the model"
            rows["ledger"].append(clip_ledger_row(row, "failed", stage="audit", reason=reason))
            continue
        clip = _open_clip(ensemble or trained, row, n_frames[number])
        error = None if errors is None else errors[number][:, : clip.n_frames]
        if model.detector is not None and error is not None:
            raised_by = None if ensemble is None else trained.name
            score_row = fitted_row(ensemble or trained, raised_by, clip, error, float(scores[number]))
            score_row["paper_score"] = None if paper is None else float(paper[number])
        else:
            score_row = paper_row(trained, clip, error, float(scores[number]))
        of_clip = None if references is None else references[number : number + 1]
        if score_row["alarm"]:
            score_row |= windows(model, ensemble or trained, error, x[number : number + 1], of_clip)
        log_mel = log_mels[number, :, : clip.n_frames]
        rows["scores"].append(score_row | differences(trained, log_mel) | levels(trained, log_mel, clip))
        if not explain and (ensemble or trained).state is not None:
            median_db = median_spectrum(log_mel, trained.features)
            rows["median_spectra"].append({**clip.keys, "median_db": median_db.numpy()})
        for method, attribution_maps in maps.items():
            _explain(clip, method, attribution_maps[number, :, : clip.n_frames], model, rows)
        if explain:
            linear = None if linear_errors is None else linear_errors[number, : clip.n_frames]
            lines, of_lines = judge_lines(clip, log_mel, error, linear, model)
            rows["lines"] += lines
            rows["controls"] += of_lines
        if explain and row["keep_maps"] and outputs is not None:
            # Back in the unit of the features: what a person knows from other spectrograms.
            own = (part[number, :, : clip.n_frames].cpu() for part in (x, outputs))
            inputs, rebuilt = (trained.normalization.invert(part[None], of_clip).flatten() for part in own)
            rows["spectrograms"].append({**clip.keys, "log_mel": inputs.numpy(), "reconstruction": rebuilt.numpy()})
        rows["ledger"].append(clip_ledger_row(row, "done", stage="audit"))
        good.append((number, clip))
    if explain and outputs is not None:
        ids = {number: clip.keys["clip_id"] for number, clip in good}
        score = None if model.detector is None else clip_score(model.detector, ids)
        rows["faithfulness"], lines = judge_faithfulness(model, good, x, outputs, explained, n_frames, score)
        rows["controls"] += lines
        if CORRECTED in model.judging.protocols:
            for number, clip in good:
                if clip.row.get("deep"):
                    rows["checks"] += check_clip(model, _checked(model, scored, maps, clip, number, log_mels[number]))
    return rows


def _checked(
    model: AuditModel, scored: Scored, maps: Mapping[str, Tensor], clip: Clip, number: int, log_mel: Tensor
) -> CheckedClip:
    assert scored.outputs is not None, "explained models reconstruct"
    return CheckedClip(
        clip,
        log_mel,
        scored.x[number],
        scored.outputs[number],
        {method: of_clips[number] for method, of_clips in maps.items()},
        float(scored.explained[number]),
        n_judged(CORRECTED, clip, model),
        None if scored.references is None else scored.references[number : number + 1],
    )


def _open_clip(trained: AnyModel, row: TableRow, n_frames: int) -> Clip:
    intervals = [(interval["onset_s"], interval["offset_s"]) for interval in row["intervals"] or []]
    keys = {"clip_id": row["clip_id"], "model": trained.name, "seed": trained.seed}
    return Clip(row, keys, n_frames, n_frames < trained.n_frames, intervals)


def forward(network: nn.Module, x: Tensor, micro_batch: int) -> Tensor:
    """What the network makes of the clips; the same to the last bit with any number of threads."""

    def evaluate(part: Sequence[int]) -> Tensor:
        with torch.inference_mode():  # a mode of the thread that runs this
            return network(x[part[0] : part[-1] + 1])  # type: ignore[no-any-return]

    limit = micro_batch if x.device.type != "cpu" else min(micro_batch, _FORWARDS_ON_CPU)
    batches = MicroBatches(evaluate, limit=limit, device=x.device)
    return torch.cat([result for _, result in batches.results([range(len(x))])])


def _error_curves(linear: TrainedModel, x: Tensor, model: AuditModel) -> Floats:
    """The error curves (B, T) of the linear model."""
    x = x.to(model.device)
    outputs = forward(linear.network.to(model.device), x, forwards_at_once(model.audit.micro_batch, model.device))
    return curve((outputs - x).square())


def _attribute(model: AuditModel, scored: Scored, clip_ids: list[str]) -> dict[str, Tensor]:
    """The maps (B, F, T) of all methods."""
    attribution = model.attribution
    assert model.explained is not None, f"a model {model.trained.name!r} is not explained"
    return attribute_batch(
        model.explained,
        scored.x,
        methods=attribution.methods,
        settings=attribution.settings,
        seed=attribution.seed,
        clip_ids=clip_ids,
        n_frames=scored.n_frames,
        precision=attribution.precision,
        reconstruction=scored.outputs,
        score=model.detector,
        normals=model.trained.normals,
    )


def _explain(
    clip: Clip, method: str, attribution_map: Tensor, model: AuditModel, rows: dict[str, list[TableRow]]
) -> None:
    """The rows of one method's map (F, n_frames), but for its faithfulness."""
    summed = curve(attribution_map)
    peaks = peak_frames(summed, model.audit.percentiles[:1])[0]
    profile = attribution_map[:, torch.from_numpy(peaks)].abs().sum(dim=1).numpy()
    rows["attributions"].append(
        {**clip.keys, "method": method, "curve": summed, "profile": profile, "degenerate": is_flat(summed),
         **_kept_map(attribution_map, clip.row["keep_maps"])}
    )  # fmt: skip
    rows["localization"] += judge_method(clip, method, summed, model)


def _kept_map(attribution_map: Tensor, keep: bool) -> TableRow:
    if not keep:
        return {"map": None, "map_scale": None}
    scale = float(attribution_map.abs().max())
    scaled = attribution_map / scale if scale > 0 else attribution_map
    return {"map": scaled.flatten().numpy().astype(np.float16), "map_scale": scale}


def clip_score(detector: Detector, clip_ids: Mapping[int, str]) -> ClipScore:
    """The score of a detector before calibration, for `errors_after_replacement`; of clips by their numbers."""

    def score(x: Tensor, n_frames: int, clips: np.ndarray) -> Tensor:
        return detector.pool(detector.cells(x, [clip_ids[int(clip)] for clip in clips])[..., :n_frames])

    return score
