"""One shard of clips and one model → the rows of every audit table: what an audit actor does, without Ray.

Shape letters: B clips, F mel bands, T frames, M methods, P percentiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from faithad import schemas
from faithad.attribution.captum_engine import attribute
from faithad.attribution.gradient_stream import attribute_batch
from faithad.config import Study
from faithad.evaluation.detection import worst_mel_band, worst_second
from faithad.evaluation.faithfulness import errors_after_replacement, faithfulness_score, segment_masks
from faithad.evaluation.peaks import curve, is_flat, peak_frames
from faithad.evaluation.temporal import localization
from faithad.model.checkpoint import TrainedModel
from faithad.model.fast_network import ExplainedNetwork, arithmetic, fast_network
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.pipelines.shards import Row, ledger_row

TABLES = ("scores", "attributions", "localization", "faithfulness", "spectrograms", "ledger")


def table_schemas(trained: TrainedModel) -> dict[str, pa.Schema]:
    """The schema of each table that an audit with this model writes."""
    shape = trained.network.n_mels, trained.network.n_frames
    return {
        "scores": schemas.SCORES,
        "attributions": schemas.attributions(*shape),
        "localization": schemas.LOCALIZATION,
        "faithfulness": schemas.FAITHFULNESS,
        "spectrograms": schemas.spectrograms(*shape),
        "ledger": schemas.LEDGER,
    }


@dataclass(frozen=True)
class AuditModel:
    """A trained model as the audit uses it.

    Attributes:
        trained: the model itself.
        network: for scores and faithfulness, always in float32.
        explained: for the attributions, in the precision that the study asks for.
    """

    trained: TrainedModel
    network: ExplainedNetwork
    explained: ExplainedNetwork

    @classmethod
    def prepare(cls, trained: TrainedModel, study: Study, device: torch.device) -> AuditModel:
        """Once for each model: the fast networks hold copies of its weights."""
        trained.network.to(device)
        network = fast_network(trained.network)
        if study.attribution.engine == "captum":
            return cls(trained, network, trained.network)
        if study.attribution.precision == "float32":
            return cls(trained, network, network)
        return cls(trained, network, fast_network(trained.network, study.attribution.precision))


@dataclass
class _Clip:
    """What is known of one clip on its way through the audit."""

    row: Row
    keys: Row
    intervals: list[tuple[float, float]]
    masks: list[tuple[str, str, np.ndarray]] = field(default_factory=list)  # method, mode, bool (P, T)


def audit_clips(model: AuditModel, clips: list[Row], log_mels: Tensor, study: Study) -> dict[str, list[Row]]:
    """Score, explain and judge the clips of one shard.

    Args:
        model: on the device to compute on.
        clips: rows of the manifest, with a column `keep_maps`.
        log_mels: (B, F, at least T), in the unit of the features.
        study: settings of attribution and audit.

    Returns:
        The rows of each of `TABLES`. A clip whose scores are no finite numbers is in the ledger alone, as failed.
    """
    # A GPU would round the factors of convolutions by default: scores must be those of any other machine.
    with arithmetic("float32"):
        return _audit(model, clips, log_mels, study)


def _audit(model: AuditModel, clips: list[Row], log_mels: Tensor, study: Study) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {table: [] for table in TABLES}
    trained = model.trained
    x = trained.prepare(log_mels).to(next(trained.network.parameters()).device)
    reconstruction = _reconstruct(model.network, x, study.audit.micro_batch)
    squared = (reconstruction - x).square()
    scores = squared.mean(dim=(-2, -1), dtype=torch.float64).cpu().numpy()

    maps = _attribute(model.explained, x, [row["clip_id"] for row in clips], reconstruction, study)
    good: list[tuple[int, _Clip]] = []
    for number, row in enumerate(clips):
        if not np.isfinite(scores[number]):
            reason = "the model's error on this clip is not a finite number: check the recording's level and the model"
            rows["ledger"].append(ledger_row(row, status="failed", stage="audit", reason=reason))
            continue
        clip = _open_clip(trained, row)
        rows["scores"].append(_score_row(trained, clip, squared[number], float(scores[number])))
        for method, attribution_maps in maps.items():
            _explain(clip, method, attribution_maps[number], trained, study, rows)
        if row["keep_maps"]:
            # Back in the unit of the features: what a person knows from other spectrograms.
            inputs, outputs = (
                trained.normalization.invert(part[number].cpu()).flatten() for part in (x, reconstruction)
            )
            rows["spectrograms"].append({**clip.keys, "log_mel": inputs.numpy(), "reconstruction": outputs.numpy()})
        rows["ledger"].append(ledger_row(row, status="done", stage="audit"))
        good.append((number, clip))
    rows["faithfulness"] = _judge(model.network, good, x, reconstruction, scores, study)
    return rows


def _open_clip(trained: TrainedModel, row: Row) -> _Clip:
    intervals = [(interval["onset_s"], interval["offset_s"]) for interval in row["intervals"] or []]
    return _Clip(row, {"clip_id": row["clip_id"], "model": trained.name, "seed": trained.seed}, intervals)


def _reconstruct(network: nn.Module, x: Tensor, micro_batch: int) -> Tensor:
    with torch.inference_mode():
        return torch.cat([network(part) for part in x.split(micro_batch)])


def _attribute(
    network: ExplainedNetwork, x: Tensor, clip_ids: list[str], reconstruction: Tensor, study: Study
) -> dict[str, Tensor]:
    """The maps (B, F, T) of all methods, by the engine that the study names."""
    options: dict[str, Any] = {
        "methods": study.attribution.methods,
        "settings": study.attribution.settings,
        "seed": study.attribution.seed,
    }
    if study.attribution.engine == "stream":
        return attribute_batch(network, x, clip_ids=clip_ids, reconstruction=reconstruction,
                               precision=study.attribution.precision, **options)  # fmt: skip
    assert isinstance(network, SkipCAETransformer)
    one_by_one = [
        attribute(network, clip, clip_id=clip_id, **options) for clip, clip_id in zip(x, clip_ids, strict=True)
    ]
    return {method: torch.stack([maps[method] for maps in one_by_one]) for method in study.attribution.methods}


def _score_row(trained: TrainedModel, clip: _Clip, squared: Tensor, score: float) -> Row:
    worst = worst_second(squared, trained.features.frames_per_s)
    return {
        **clip.keys,
        "score": score,
        "worst_second_score": worst.score,
        "threshold": None if trained.alarm is None else trained.alarm.threshold,
        "alarm": None if trained.alarm is None else trained.alarm.raised_by(score, worst.score),
        "worst_onset_s": worst.onset_s,
        "worst_mel_band": worst_mel_band(squared),
    }


def _explain(
    clip: _Clip, method: str, attribution_map: Tensor, trained: TrainedModel, study: Study, rows: dict[str, list[Row]]
) -> None:
    """The rows of one method's map, and the masks by which its faithfulness will be judged."""
    keys = {**clip.keys, "method": method}
    frames_per_s, percentiles = trained.features.frames_per_s, study.audit.percentiles
    summed = curve(attribution_map)
    peaks = peak_frames(summed, percentiles)
    profile = attribution_map[:, torch.from_numpy(peaks[0]).to(attribution_map.device)].abs().sum(dim=1).cpu().numpy()
    rows["attributions"].append(
        {**keys, "curve": summed, "profile": profile, "degenerate": is_flat(summed),
         **_kept_map(attribution_map, clip.row["keep_maps"])}
    )  # fmt: skip
    clip.masks.append((method, "frame", peaks))
    if not clip.row["annotated"]:
        return
    clip.masks.append((method, "segment", segment_masks(peaks, clip.intervals, frames_per_s)))
    found = localization(peaks, clip.intervals, frames_per_s=frames_per_s)
    for position, percentile in enumerate(percentiles):
        values = {name: getattr(found, name)[position].item() for name in schemas.LOCALIZATION.names[5:]}
        rows["localization"].append({**keys, "percentile": percentile, **values})


def _kept_map(attribution_map: Tensor, keep: bool) -> Row:
    if not keep:
        return {"map": None, "map_scale": None}
    scale = float(attribution_map.abs().max())
    scaled = attribution_map / scale if scale > 0 else attribution_map
    return {"map": scaled.flatten().cpu().numpy().astype(np.float16), "map_scale": scale}


def _judge(
    network: nn.Module,
    clips: list[tuple[int, _Clip]],
    x: Tensor,
    reconstruction: Tensor,
    scores: np.ndarray,
    study: Study,
) -> list[Row]:
    """Faithfulness of every (clip, method, mode, percentile): all distinct masks of the shard in one stream."""
    if not clips:
        return []
    masks = np.concatenate([mask for _, clip in clips for _, _, mask in clip.masks])
    owners = np.repeat(
        [number for number, _ in clips],
        [sum(len(mask) for _, _, mask in clip.masks) for _, clip in clips],
    )
    after = errors_after_replacement(
        network,
        x,
        reconstruction,
        masks,
        owners,
        error_before=scores,
        micro_batch=study.audit.micro_batch,
    )
    before = scores[owners]
    values = faithfulness_score(before, after)
    rows: list[Row] = []
    for _, clip in clips:
        for method, mode, mask in clip.masks:
            for position, percentile in enumerate(study.audit.percentiles):
                number = len(rows)
                rows.append(
                    {
                        **clip.keys,
                        "method": method,
                        "mode": mode,
                        "percentile": percentile,
                        "replaced_fraction": float(mask[position].mean()),
                        "error_before": float(before[number]),
                        "error_after": float(after[number]),
                        "faithfulness": float(values[number]),
                    }
                )
    return rows


def to_table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Rows whose lists may be numpy arrays as an Arrow table of the schema."""
    columns: dict[str, Any] = {
        column.name: pa.array([row[column.name] for row in rows], type=column.type) for column in schema
    }
    return pa.table(columns, schema=schema)
