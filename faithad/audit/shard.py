"""One shard of clips and one model → the rows of every audit table: what an audit actor does, without Ray.

A short clip comes filled up, as the networks need it (`faithad.features.fill_up`). All that is said of it is about the
frames that hold sound: nothing behind them is in a score, a curve, a peak, a mask or a picture.

The score is the paper's or, of a model with a fitted score, that of its detector. An ensemble adds the calibrated
scores of its members, of which some may score only the clips that others find suspicious (`scoring.ensemble`). What
explains a clip is the member that raised it, the one with the highest standardised score.
Maps, curves, peaks, bands and faithfulness are always those of the score that alarms, before its calibration.

Shape letters: B clips, F mel bands, T frames, P percentiles, M members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from faithad import schemas
from faithad.attribution.gradient_stream import attribute_batch
from faithad.audit.checking import CheckedClip, check_clip
from faithad.audit.judging import Clip, judge_faithfulness, judge_lines, judge_method, n_judged
from faithad.audit.model import AuditEnsemble, AuditModel
from faithad.audit.score_rows import differences, fitted_row, levels, paper_row, windows
from faithad.clips.ledger import clip_ledger_row
from faithad.evaluation.faithfulness import ClipScore
from faithad.evaluation.peaks import Floats, curve, is_flat, peak_frames
from faithad.model.checkpoint import TrainedModel
from faithad.model.masking import mean_per_clip
from faithad.model.micro_batches import MicroBatches, forwards_at_once
from faithad.model.precision import arithmetic
from faithad.model.training_sound import median_spectrum
from faithad.runs import layout
from faithad.scoring.score import Detector, places_of
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble
from faithad.vocabulary import CORRECTED

# A row of the manifest, or of one of the tables that are written.
TableRow = dict[str, Any]

TABLES = (layout.SCORES, layout.MEDIAN_SPECTRA, *layout.EXPLANATIONS, "ledger")

# Clips that one thread of a CPU takes at once: more are no faster, and would leave other threads without any.
_FORWARDS_ON_CPU = 4


def table_schemas(trained: AnyModel) -> dict[str, pa.Schema]:
    """The schema of each table that an audit with this model writes."""
    shape = trained.n_mels, trained.n_frames
    return {
        "scores": schemas.SCORES,
        "median_spectra": schemas.MEDIAN_SPECTRA,
        "attributions": schemas.attributions(*shape),
        "localization": schemas.LOCALIZATION,
        "faithfulness": schemas.FAITHFULNESS,
        "controls": schemas.CONTROLS,
        "lines": schemas.LINES,
        "checks": schemas.CHECKS,
        "spectrograms": schemas.spectrograms(*shape),
        "ledger": schemas.LEDGER,
    }


class _Scored(NamedTuple):
    """Clips (B,) that one model explains, with all that is known of their score.

    Attributes:
        x: the network's input, (B, F, T).
        outputs: its reconstruction, (B, F, T); what a model that does not reconstruct gives; None where it is not
            needed.
        errors: the error of each cell, (B, F, T), on the CPU; None of a model that gives a score only.
        explained: the score that is explained, (B,).
        scores: the score that is written, (B,): calibrated, and of an ensemble the sum.
        paper: the mean squared error beside another score, (B,); None where it is not known.
        n_frames: how many frames of each clip hold sound.
        references: the spectra (B, F) of the clips' recordings, which x lacks; None where it lacks nothing.
    """

    x: Tensor
    outputs: Tensor | None
    errors: Sequence[Tensor] | Tensor | None
    explained: np.ndarray
    scores: np.ndarray
    paper: np.ndarray | None
    n_frames: list[int]
    references: Tensor | None = None


def audit_clips(
    model: AuditModel | AuditEnsemble, clips: Sequence[TableRow], log_mels: Tensor, *, explain: bool
) -> dict[str, list[TableRow]]:
    """Score the clips of one shard, and explain and judge them where that is asked for.

    Args:
        model: on the device to compute on.
        clips: rows of the manifest, with a column `keep_maps` where they are to be explained, and `reference` as
            `add_log_mels` gives it to models that need it.
        log_mels: (B, F, at least T), in the unit of the features; short clips are filled up.
        explain: whether they are explained; only networks that are can be asked.

    Returns:
        The rows of each of `TABLES`. A clip whose score is no finite number is in the ledger alone, as failed.
    """
    if not clips:
        return {table: [] for table in TABLES}
    # A GPU would round the factors of convolutions by default: scores must be those of any other machine.
    with arithmetic("float32"):
        trained = model.trained
        n_frames = [trained.frames_in(row["duration_s"]) for row in clips]
        references = _references(trained, clips)
        x = trained.prepare(log_mels, references).to(model.device)
        if isinstance(model, AuditEnsemble):
            return _audit_ensemble(model, clips, log_mels, x, references, n_frames, explain)
        if model.detector is not None:
            clip_ids = [row["clip_id"] for row in clips]
            scored = _detect(model, model.detector, x, references, clip_ids, n_frames, explain)
        else:
            scored = _score(model, x, n_frames)
        return _rows(model, scored._replace(references=references), clips, log_mels, explain)


def _references(trained: AnyModel, clips: Sequence[TableRow]) -> Tensor | None:
    """The spectra (B, F) of the clips' recordings; None if the model needs none, or they are not known."""
    if trained.features.reference == "none" or clips[0].get("reference") is None:
        return None
    return torch.tensor([clip["reference"] for clip in clips], dtype=torch.float32)


def _detect(
    model: AuditModel,
    detector: Detector,
    x: Tensor,
    references: Tensor | None,
    clip_ids: Sequence[str],
    n_frames: list[int],
    explain: bool,
) -> _Scored:
    """As `_score`, by a fitted score."""
    errors = _cells(model, x, clip_ids, n_frames)
    raw = _pooled(model, errors)
    offsets = model.trained.normalization.offsets(references)
    scores = detector.calibrate(raw, places_of(x, n_frames, offsets).cpu())
    outputs = paper = None
    if explain or model.beside_paper:
        outputs = _forward(model.network, x, forwards_at_once(model.audit.micro_batch, model.device))
        paper = mean_per_clip((outputs - x).square(), n_frames, dtype=torch.float64).cpu().numpy()
    return _Scored(x, outputs, errors, raw.numpy(), scores.numpy(), paper if model.beside_paper else None, n_frames)


def _score(model: AuditModel, x: Tensor, n_frames: list[int]) -> _Scored:
    outputs = _forward(model.network, x, forwards_at_once(model.audit.micro_batch, model.device))
    squared = (outputs - x).square() if model.trained.reconstructs else None
    pooled = outputs if squared is None else mean_per_clip(squared, n_frames, dtype=torch.float64)
    scores = pooled.to(torch.float64).cpu().numpy()
    # All clips in one go: on a GPU each small copy would wait for the device.
    return _Scored(x, outputs, None if squared is None else squared.cpu(), scores, scores, None, n_frames)


def _audit_ensemble(
    model: AuditEnsemble,
    clips: Sequence[TableRow],
    log_mels: Tensor,
    x: Tensor,
    references: Tensor | None,
    n_frames: list[int],
    explain: bool,
) -> dict[str, list[TableRow]]:
    """Each clip's rows are those of the member that raised it, with the score of the ensemble."""
    trained, clip_ids = model.trained, [row["clip_id"] for row in clips]
    ensemble = trained.ensemble
    errors: list[dict[int, Tensor]] = [{} for _ in model.members]
    raw, calibrated = torch.zeros(2, len(model.members), len(clips), dtype=torch.float64)
    places = places_of(x, n_frames, trained.normalization.offsets(references)).cpu()

    def score(number: int, chosen: list[int]) -> None:
        """By one member, some of the clips."""
        if chosen:
            member, detector = model.members[number], list(ensemble.members.values())[number]
            cells = _cells(member, x[chosen], [clip_ids[k] for k in chosen], [n_frames[k] for k in chosen])
            errors[number] = dict(zip(chosen, cells, strict=True))
            raw[number, chosen] = _pooled(member, cells)
            calibrated[number, chosen] = detector.calibrate(raw[number, chosen], places[chosen])

    for number in range(len(model.members)):
        if number not in ensemble.rescoring_members:
            score(number, list(range(len(clips))))
    is_short = torch.tensor([n < trained.n_frames for n in n_frames])
    rescored = ensemble.rescored(ensemble.standardise(calibrated), is_short)
    for number in ensemble.rescoring_members:
        score(number, rescored.nonzero().flatten().tolist())
    totals, raised_by = ensemble.add_up(ensemble.standardise(calibrated), rescored)
    rows: dict[str, list[TableRow]] = {table: [] for table in TABLES}
    for number, member in enumerate(model.members):
        chosen = (raised_by == number).nonzero().flatten().tolist()
        if not chosen:
            continue
        own = x[chosen]
        limit = forwards_at_once(member.audit.micro_batch, member.device)
        outputs = _forward(member.network, own, limit) if explain else None
        scored = _Scored(
            own,
            outputs,
            [errors[number][k] for k in chosen],
            raw[number][chosen].numpy(),
            totals[chosen].numpy(),
            None,
            [n_frames[k] for k in chosen],
            None if references is None else references[chosen],
        )
        part = _rows(member, scored, [clips[k] for k in chosen], log_mels[chosen], explain, ensemble=trained)
        for table, of_member in part.items():
            rows[table] += of_member
    order = {clip_id: k for k, clip_id in enumerate(clip_ids)}
    return {table: sorted(found, key=lambda row: order[row["clip_id"]]) for table, found in rows.items()}


def _cells(member: AuditModel, x: Tensor, clip_ids: Sequence[str], n_frames: Sequence[int]) -> list[Tensor]:
    """The weighted error of each clip's cells, (F, n_frames), on the CPU; each clip alone and with one thread."""
    detector = member.detector
    assert detector is not None, f"{member.trained.name!r} has no fitted score"

    def evaluate(part: Sequence[int]) -> list[Tensor]:
        with torch.inference_mode():
            return [detector.cells(x[k : k + 1], [clip_ids[k]])[0, :, : n_frames[k]].cpu() for k in part]

    batches = MicroBatches(evaluate, limit=1, device=x.device)
    return [cells for _, result in batches.results([range(len(x))]) for cells in result]


def _pooled(member: AuditModel, errors: Sequence[Tensor]) -> Tensor:
    """The scores before calibration, (B,), of weighted errors."""
    detector = member.detector
    assert detector is not None, f"{member.trained.name!r} has no fitted score"
    return torch.cat([detector.pool(cells[None]) for cells in errors])


def _rows(
    model: AuditModel,
    scored: _Scored,
    clips: Sequence[TableRow],
    log_mels: Tensor,
    explain: bool,
    *,
    ensemble: TrainedEnsemble | None = None,
) -> dict[str, list[TableRow]]:
    """The rows of all tables, of clips that one model explains; the tables name the ensemble if it is a member."""
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
    model: AuditModel, scored: _Scored, maps: Mapping[str, Tensor], clip: Clip, number: int, log_mel: Tensor
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


def _forward(network: nn.Module, x: Tensor, micro_batch: int) -> Tensor:
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
    outputs = _forward(linear.network.to(model.device), x, forwards_at_once(model.audit.micro_batch, model.device))
    return curve((outputs - x).square())


def _attribute(model: AuditModel, scored: _Scored, clip_ids: list[str]) -> dict[str, Tensor]:
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


def to_table(rows: list[TableRow], schema: pa.Schema) -> pa.Table:
    """Rows whose lists may be numpy arrays as an Arrow table of the schema."""
    columns: dict[str, Any] = {
        column.name: pa.array([row[column.name] for row in rows], type=column.type) for column in schema
    }
    return pa.table(columns, schema=schema)
