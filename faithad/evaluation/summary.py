"""From one row per clip to one row per curve: the tables that the report and the paper show.

Every statistic is taken per seed over the clips (macro mean), then mean and standard deviation over seeds. Intervals
are 95 % bootstraps over recordings of the per-clip values averaged over seeds, all columns over the same resamples.
Arrow tables in, the concatenation over all models and seeds; Arrow tables out, in the schemas of `faithad.schemas`.
Only test clips count. The order of rows in the input changes nothing. Detection is summarised for every model; F-score
and faithfulness have rows of explained models only.

Shape letters: S seeds, N clips, C columns (one curve point each: model, method, percentile …).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas
from faithad.evaluation import controls, detection
from faithad.evaluation.clip_values import Clips, Codes, Cube, Values, read_cube, read_test_clips
from faithad.evaluation.peaks import Bools
from faithad.evaluation.statistics import bootstrap_intervals, percentile_interval, resample_counts, std_over_seeds

Row = dict[str, Any]

_POOLINGS = {"mean": "score", "worst_second": "worst_second_score"}
_METRICS: dict[str, tuple[Callable[..., float], float]] = {"auc": (detection.auc, 1.0), "pauc": (detection.pauc, 0.1)}


def summarize_detection(scores: pa.Table, manifest: pa.Table, *, protocol: str, seed: int = 0) -> pa.Table:
    """AUC and partial AUC per model, of the clip's score and of its worst second.

    Args:
        scores: schemas.SCORES, all models and seeds. A model without scores of seconds has no rows of that pooling.
        manifest: schemas.MANIFEST.
        protocol: written into every row.
        seed: of the bootstrap.

    Returns:
        schemas.DETECTION_SUMMARY; no rows where the manifest has no labelled test clips of both classes.

    Raises:
        StudyError: scores of clips that the manifest does not hold, rows given twice, scores that are not finite, or
            a seed whose scored clips lack a class.
    """
    clips = read_test_clips(manifest)
    labelled = ~np.isnan(clips.label)
    if not {0.0, 1.0} <= set(clips.label[labelled]):
        return pa.Table.from_pylist([], schema=schemas.DETECTION_SUMMARY)
    rows: list[Row] = []
    for pooling, name in _POOLINGS.items():
        # A classical detector leaves its scores of seconds null.
        cube = read_cube(scores.filter(pc.is_valid(scores[name])), name, ["model"], clips)
        for column, (model,) in enumerate(cube.columns):
            estimates = _area_estimates(
                cube.values[:, labelled, column], clips.label[labelled], clips.recording[labelled], seed=seed
            )
            for metric, estimate in estimates.items():
                key = {"model": model, "metric": metric, "pooling": pooling}
                rows.append({**key, "protocol": protocol, **estimate})
    rows.sort(key=lambda row: (row["model"], row["pooling"], row["metric"]))
    return pa.Table.from_pylist(rows, schema=schemas.DETECTION_SUMMARY)


def summarize_f_score(
    localization: pa.Table,
    manifest: pa.Table,
    *,
    protocol: str,
    n_frames: int | Mapping[str, int],
    frames_per_s: float,
    seed: int = 0,
    n_draws: int = 100,
) -> pa.Table:
    """Macro F-score over the annotated clips, all of them and by anomaly type, beside its two controls.

    Args:
        localization: schemas.LOCALIZATION, all models and seeds.
        manifest: schemas.MANIFEST.
        protocol: written into every row.
        n_frames: T of the curves, one number or one per model: the controls are drawn on the same grid.
        frames_per_s: frames in one second.
        seed: of the bootstrap and of the random curves.
        n_draws: random curves per clip.

    Returns:
        schemas.F_SCORE_SUMMARY; no rows where no annotated test clip was measured.

    Raises:
        StudyError: rows of clips that the manifest does not hold, rows given twice, or values that are not finite.
    """
    clips = read_test_clips(manifest)
    cube = read_cube(localization, "f_score", ["model", "method", "percentile"], clips)
    percentiles = sorted({key[2] for key in cube.columns})
    grids = {model: n_frames if isinstance(n_frames, int) else n_frames[model] for model, *_ in cube.columns}
    by_grid = {
        grid: _controls(clips, grid, frames_per_s, percentiles, seed=seed, n_draws=n_draws)
        for grid in sorted(set(grids.values()))
    }
    rows: list[Row] = []
    for anomaly_type, chosen in _by_type(clips):
        part = cube.of_clips(chosen)
        for column, estimate in _estimates(part, clips.recording[chosen], seed=seed):
            model, method, percentile = part.columns[column]
            measured = np.flatnonzero(chosen)[np.isfinite(part.values[:, :, column]).any(axis=0)]
            random, every_second = by_grid[grids[model]]
            key = {"model": model, "method": method, "percentile": percentile, "anomaly_type": anomaly_type}
            beside = {
                "control_random": float(random[measured, percentiles.index(percentile)].mean()),
                "control_every_second": float(every_second[measured].mean()),
            }
            rows.append({**key, "protocol": protocol, **estimate, **beside})
    return pa.Table.from_pylist(rows, schema=schemas.F_SCORE_SUMMARY)


def summarize_faithfulness(faithfulness: pa.Table, manifest: pa.Table, *, protocol: str, seed: int = 0) -> pa.Table:
    """Mean faithfulness over the annotated clips and, for the frame mode, over all test clips.

    Args:
        faithfulness: schemas.FAITHFULNESS, all models and seeds.
        manifest: schemas.MANIFEST.
        protocol: written into every row.
        seed: of the bootstrap.

    Returns:
        schemas.FAITHFULNESS_SUMMARY; no rows of a scope in which no clip was measured.

    Raises:
        StudyError: rows of clips that the manifest does not hold, rows given twice, or values that are not finite.
    """
    clips = read_test_clips(manifest)
    keys = ["model", "method", "mode", "percentile"]
    cube = read_cube(faithfulness, "faithfulness", keys, clips)
    rows: list[Row] = []
    for scope, chosen in (("annotated", clips.annotated), ("all", np.ones(len(clips.ids), dtype=np.bool_))):
        part = cube.of_clips(chosen)
        for column, estimate in _estimates(part, clips.recording[chosen], seed=seed):
            key = dict(zip(keys, part.columns[column], strict=True))
            if scope == "annotated" or key["mode"] == "frame":
                rows.append({**key, "scope": scope, "protocol": protocol, **estimate})
    return pa.Table.from_pylist(rows, schema=schemas.FAITHFULNESS_SUMMARY)


def _by_type(clips: Clips) -> Iterator[tuple[str, Bools]]:
    """`all` annotated clips, then those of each anomaly type."""
    yield "all", clips.annotated
    for anomaly_type in sorted({name for name in clips.anomaly_type[clips.annotated] if name is not None}):
        yield anomaly_type, clips.annotated & (clips.anomaly_type == anomaly_type)


def _controls(
    clips: Clips, n_frames: int, frames_per_s: float, percentiles: Sequence[float], *, seed: int, n_draws: int
) -> tuple[Values, Values]:
    """Random curve (N, P) and every second flagged (N,); NaN for clips without annotation."""
    random, every_second = np.full((len(clips.ids), len(percentiles)), np.nan), np.full(len(clips.ids), np.nan)
    chosen = np.flatnonzero(clips.annotated)
    random[chosen], every_second[chosen] = controls.control_f_scores(
        {clips.ids[clip]: clips.intervals[clip] for clip in chosen},
        n_frames,
        frames_per_s,
        percentiles,
        seed=seed,
        n_draws=n_draws,
    )
    return random, every_second


def _estimates(cube: Cube, recordings: Codes, *, seed: int) -> Iterator[tuple[int, Row]]:
    """Number and estimate of every column in which some clip was measured."""
    per_seed = _mean(cube.values, axis=1)
    per_clip = _mean(cube.values, axis=0)
    low, high = bootstrap_intervals(per_clip, recordings, seed=seed)
    n_clips = np.isfinite(per_clip).sum(axis=0)
    for column in np.flatnonzero(n_clips).tolist():
        estimate = _estimate(per_seed[:, column], low[column], high[column])
        yield column, {**estimate, "n_clips": int(n_clips[column])}


def _area_estimates(values: Values, labels: Values, recordings: Codes, *, seed: int) -> dict[str, Row]:
    """AUC and pAUC of one model's scores (S, N); all seeds share their resamples."""
    measured = np.isfinite(values)
    groups = np.unique(recordings, return_inverse=True)[1]
    drawn = resample_counts(int(groups.max()) + 1, seed=seed)
    points, resampled = [], []
    for scores, known in zip(values, measured, strict=True):
        if known.any():
            points.append([area(scores[known], labels[known]) for area, _ in _METRICS.values()])
            max_fprs = [max_fpr for _, max_fpr in _METRICS.values()]
            resampled.append(
                detection.bootstrap_areas(scores[known], labels[known], groups[known], drawn, max_fprs=max_fprs)
            )
    if not points:
        return {}
    low, high = percentile_interval(np.mean(resampled, axis=0))
    of_any_seed = labels[measured.any(axis=0)]
    counts = {"n_normal": int((of_any_seed == 0).sum()), "n_anomalous": int((of_any_seed == 1).sum())}
    return {
        metric: {**_estimate(np.array(points)[:, column], low[column], high[column]), **counts}
        for column, metric in enumerate(_METRICS)
    }


def _estimate(per_seed: Values, low: float, high: float) -> Row:
    known = per_seed[np.isfinite(per_seed)]
    return {
        "mean": float(known.mean()),
        "std": std_over_seeds(known),
        "ci_low": None if math.isnan(low) else float(low),
        "ci_high": None if math.isnan(high) else float(high),
        "n_seeds": len(known),
    }


def _mean(values: Values, *, axis: int) -> Values:
    """Mean of the known values, NaN where there is none."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    mean: Values = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
