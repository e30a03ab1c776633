"""One shard of clips and one model → the rows of every audit table: what an audit actor does, without Ray.

A short clip comes filled up, as the networks need it (`faithad.features.fill_up`). All that is said of it is about the
frames that hold sound: nothing behind them is in a score, a curve, a peak, a mask or a picture.

The score is the paper's or, of a model with a fitted score, that of its detector. An ensemble adds the calibrated
scores of its members, of which some may score only the clips that others find suspicious (`scoring.ensemble`). What
explains a clip is the member that raised it, the one with the highest standardised score.
Maps, curves, peaks, bands and faithfulness are always those of the score that alarms, before its calibration.

Shape letters: B clips, F mel bands, T frames, M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from faithad import schemas
from faithad.audit.clip_rows import TABLES, Scored, clip_rows, forward
from faithad.audit.judging import TableRow
from faithad.audit.model import AuditEnsemble, AuditModel
from faithad.model.masking import mean_per_clip
from faithad.model.micro_batches import MicroBatches, forwards_at_once
from faithad.model.precision import arithmetic
from faithad.scoring.score import Detector, places_of
from faithad.scoring.trained_ensemble import AnyModel


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


def audit_clips(
    model: AuditModel | AuditEnsemble, clips: Sequence[TableRow], log_mels: Tensor, *, explain: bool
) -> dict[str, list[TableRow]]:
    """Score the clips of one shard, and explain and judge them where that is asked for.

    Args:
        model: on the device to compute on.
        clips: rows of the manifest, with a column `keep_maps` where they are to be explained, and `reference` as
            `add_log_mels` gives it to models that need it.
        log_mels: (B, F, at least T), in the unit of the features; short clips are filled up.
        explain: whether the clips are explained; the model must have been prepared for that.

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
        return clip_rows(model, scored._replace(references=references), clips, log_mels, explain)


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
) -> Scored:
    """As `_score`, but by a fitted score."""
    errors = _cells(model, x, clip_ids, n_frames)
    raw = _pooled(model, errors)
    offsets = model.trained.normalization.offsets(references)
    scores = detector.calibrate(raw, places_of(x, n_frames, offsets).cpu())
    outputs = paper = None
    if explain or model.beside_paper:
        outputs = forward(model.network, x, forwards_at_once(model.audit.micro_batch, model.device))
        paper = mean_per_clip((outputs - x).square(), n_frames, dtype=torch.float64).cpu().numpy()
    return Scored(x, outputs, errors, raw.numpy(), scores.numpy(), paper if model.beside_paper else None, n_frames)


def _score(model: AuditModel, x: Tensor, n_frames: list[int]) -> Scored:
    outputs = forward(model.network, x, forwards_at_once(model.audit.micro_batch, model.device))
    squared = (outputs - x).square() if model.trained.reconstructs else None
    pooled = outputs if squared is None else mean_per_clip(squared, n_frames, dtype=torch.float64)
    scores = pooled.to(torch.float64).cpu().numpy()
    # All clips in one go: on a GPU each small copy would wait for the device.
    return Scored(x, outputs, None if squared is None else squared.cpu(), scores, scores, None, n_frames)


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
        """Score some of the clips by one member."""
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
        outputs = forward(member.network, own, limit) if explain else None
        scored = Scored(
            own,
            outputs,
            [errors[number][k] for k in chosen],
            raw[number][chosen].numpy(),
            totals[chosen].numpy(),
            None,
            [n_frames[k] for k in chosen],
            None if references is None else references[chosen],
        )
        part = clip_rows(member, scored, [clips[k] for k in chosen], log_mels[chosen], explain, ensemble=trained)
        for table, of_member in part.items():
            rows[table] += of_member
    order = {clip_id: k for k, clip_id in enumerate(clip_ids)}
    return {table: sorted(unordered, key=lambda row: order[row["clip_id"]]) for table, unordered in rows.items()}


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


def to_table(rows: list[TableRow], schema: pa.Schema) -> pa.Table:
    """An Arrow table of the schema from rows, whose lists may be NumPy arrays."""
    columns: dict[str, Any] = {
        column.name: pa.array([row[column.name] for row in rows], type=column.type) for column in schema
    }
    return pa.table(columns, schema=schema)
