"""What each score of each model finds: the rows of `summary/detection`.

    auc, pauc                        areas under the ROC curve, see `detection`
    caught_1, caught_2, caught_5     share of the anomalous clips above what 1, 2, 5 % of the normal ones exceed
    caught, false_alarms             share of the anomalous and of the normal clips that raised the audit's alarm
    dcase                            the official score of DCASE Task 2, of recordings with sections: the harmonic mean
                                     of the AUC of each machine, section and domain and the pAUC of each machine and
                                     section; the anomalous clips are those of the section, whatever their domain
                                     (Dohi et al. 2022, arXiv 2206.05876)

The level of the clip and that of its loudest second, which need no model, are added under the name of a model.

All metrics are taken over all anomalous clips and over those of each type, against all normal clips. Intervals are
those of resampled recordings, the same in all rows.

Shape letters: S seeds, N clips, R resamples, M metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad.evaluation import detection
from faithad.evaluation.arrays import Bools, Integers, Reals
from faithad.evaluation.clip_values import EvaluatedClips, read_cube
from faithad.evaluation.estimates import SummaryRow, estimate
from faithad.evaluation.statistics import n_normal_needed, percentile_interval, resample_counts
from faithad.scoring.choices import OWN, PAPER_NAME, ROBUST
from faithad.vocabulary import CAUGHT_AT, ENSEMBLE, ERROR_POOLINGS, FITTED, LEVEL, POOLINGS

if TYPE_CHECKING:
    from faithad.evaluation.summary import Experiment

_MAX_FPRS = {"auc": 1.0, "pauc": 0.1}
_METRICS = (*_MAX_FPRS, *CAUGHT_AT)


def detection_rows(scores: pa.Table, experiment: Experiment) -> list[SummaryRow]:
    """The rows of all models and scores; nothing where the labelled test clips are not of both classes."""
    clips = experiment.clips
    labelled = ~np.isnan(clips.label)
    if not {0.0, 1.0} <= set(clips.label[labelled]):
        return []
    rows = []
    for score, pooling, column, part in _by_score(scores, experiment):
        cube = read_cube(part, column, ["model"], clips)
        alarms = (
            read_cube(_as_numbers(part, column), "alarm", ["model"], clips) if "alarm" in part.column_names else None
        )
        for position, (model,) in enumerate(cube.columns):
            raised = None
            if alarms is not None and (model,) in alarms.columns:
                raised = alarms.values[:, labelled, alarms.columns.index((model,))]
            keys = {"model": model, "score": score or _own_score(experiment, model), "pooling": pooling}
            values = cube.values[:, labelled, position]
            rows += [keys | row for row in _figures(values, raised, clips, labelled, seed=experiment.seed)]
    types = ["all", *sorted({row["anomaly_type"] for row in rows} - {"all"})]
    order = {name: place for place, name in enumerate(types)}
    return sorted(rows, key=lambda row: (row["model"], row["pooling"], order[row["anomaly_type"]], row["metric"]))


def _own_score(experiment: Experiment, model: str) -> str:
    return experiment.scores.get(model, PAPER_NAME)


def _by_score(scores: pa.Table, experiment: Experiment) -> Iterator[tuple[str | None, str, str, pa.Table]]:
    """Each score: its name (None: that of the model), its pooling, its column, and the rows that have it."""
    of_ensemble = pc.is_valid(scores["raised_by"])  # only an ensemble names a member
    of_paper = [model for model in pc.unique(scores["model"]).to_pylist() if _is_papers(experiment, model)]
    is_papers = pc.is_in(scores["model"], value_set=pa.array(of_paper, pa.string()))
    yield ROBUST, ENSEMBLE, "score", scores.filter(of_ensemble)
    alone = scores.filter(pc.invert(of_ensemble))
    is_papers = is_papers.filter(pc.invert(of_ensemble))
    yield None, FITTED, "score", alone.filter(pc.invert(is_papers))
    for pooling in ERROR_POOLINGS:
        column = POOLINGS[pooling].column
        # A classical detector leaves its scores of seconds null.
        yield None, pooling, column, alone.filter(pc.and_(is_papers, pc.is_valid(alone[column])))
    if "paper_score" in alone.column_names:
        by_paper = alone.filter(pc.and_(pc.invert(is_papers), pc.is_valid(alone["paper_score"])))
        yield PAPER_NAME, "mean", "paper_score", by_paper.drop_columns(["alarm"])
    if "level_db" in scores.column_names:
        known = scores.filter(pc.is_valid(scores["level_db"]))
        # All models hear the same clips.
        of_first = _of_one_run(known) if known.num_rows else known
        for pooling, column in (("mean", "level_db"), ("worst_second", "loudest_second_db")):
            yield LEVEL, pooling, column, of_first


def _of_one_run(scores: pa.Table) -> pa.Table:
    """The rows of one model and seed, without alarms, under the name of the level."""
    first = min(zip(*(scores[key].to_pylist() for key in ("model", "seed")), strict=True))
    rows = scores.filter(
        pc.and_(*(pc.equal(scores[key], of) for key, of in zip(("model", "seed"), first, strict=True)))
    )
    named = rows.drop_columns(["alarm", "model"])
    return named.append_column("model", pa.array([LEVEL] * rows.num_rows, pa.string()))


def _is_papers(experiment: Experiment, model: str) -> bool:
    return _own_score(experiment, model) in (PAPER_NAME, OWN)


def _as_numbers(scores: pa.Table, column: str) -> pa.Table:
    """The rows whose alarm is that of this column, with `alarm` as 0 or 1."""
    is_of_it = pc.equal(scores["alarm"], pc.greater(scores[column], scores["threshold"]))
    models = {
        model
        for model in pc.unique(scores["model"]).to_pylist()
        if pc.all(is_of_it.filter(pc.equal(scores["model"], model)), skip_nulls=True, min_count=1).as_py()
    }
    known = scores.filter(
        pc.and_(
            pc.is_in(scores["model"], value_set=pa.array(sorted(models), pa.string())), pc.is_valid(scores["alarm"])
        )
    )
    place = known.column_names.index("alarm")
    return known.set_column(place, "alarm", known["alarm"].cast(pa.int8()).cast(pa.float64()))


def _figures(
    values: Reals, raised: Reals | None, clips: EvaluatedClips, labelled: Bools, *, seed: int
) -> Iterator[SummaryRow]:
    """The metrics of one model's scores (S, N), and of its alarms (S, N) if they are of this score."""
    labels, kinds = clips.label[labelled], clips.anomaly_type[labelled]
    groups = np.unique(clips.recording[labelled], return_inverse=True)[1]
    drawn = resample_counts(int(groups.max()) + 1, seed=seed)
    for kind in ("all", *sorted({name for name in kinds[labels == 1] if name is not None})):
        chosen = (labels == 0) | ((labels == 1) & ((kinds == kind) | (kind == "all")))
        of_kind, measured = values[:, chosen], np.isfinite(values[:, chosen])
        if kind != "all":  # a seed may have failed on all clips of a type
            has_both = measured[:, labels[chosen] == 0].any(axis=1) & measured[:, labels[chosen] == 1].any(axis=1)
            of_kind, measured = of_kind[has_both], measured[has_both]
        if not measured.any():
            continue
        of_any_seed = labels[chosen][measured.any(axis=0)]
        counts = {"n_normal": int((of_any_seed == 0).sum()), "n_anomalous": int((of_any_seed == 1).sum())}
        row = {"anomaly_type": kind, **counts}
        for metric, estimated in _estimates(of_kind, labels[chosen], groups[chosen], drawn):
            needed = n_normal_needed(CAUGHT_AT[metric]) if metric in CAUGHT_AT else None
            yield {**row, "metric": metric, **estimated, "n_normal_needed": needed}
        if kind == "all" and clips.section[labelled].any():
            parts = _sections(clips, labelled)
            official = _dcase(of_kind, labels, groups, parts, drawn)
            if official is not None:
                yield {**row, "metric": "dcase", **official, "n_normal_needed": None}
        if raised is not None:
            for metric, label in (("caught", 1), ("false_alarms", 0)):
                is_counted = labels[chosen] == label
                part = raised[:, chosen][:, is_counted]
                estimated = _share(part, groups[chosen][is_counted], drawn)
                yield {**row, "metric": metric, **estimated, "n_normal_needed": None}


def _estimates(values: Reals, labels: Reals, groups: Integers, drawn: Integers) -> Iterator[tuple[str, SummaryRow]]:
    """Each metric of scores (S, N) with its interval; all seeds share their resamples."""
    points, resampled = [], []
    for scores, known in zip(values, np.isfinite(values), strict=True):
        if not known.any():
            continue
        part = scores[known], labels[known]
        areas = [detection.pauc(*part, max_fpr) for max_fpr in _MAX_FPRS.values()]
        points.append([*areas, *(detection.caught(*part, rate) for rate in CAUGHT_AT.values())])
        of_areas = detection.bootstrap_areas(*part, groups[known], drawn, max_fprs=list(_MAX_FPRS.values()))
        of_shares = detection.bootstrap_caught(*part, groups[known], drawn, rates=list(CAUGHT_AT.values()))
        resampled.append(np.concatenate([of_areas, of_shares], axis=1))
    low, high = percentile_interval(np.mean(resampled, axis=0))
    for column, metric in enumerate(_METRICS):
        of_seeds = np.array(points)[:, column]
        if np.isfinite(of_seeds).any():
            yield metric, estimate(of_seeds, low[column], high[column])
        else:
            yield metric, {"mean": None, "std": None, "ci_low": None, "ci_high": None, "n_seeds": len(points)}


def _sections(clips: EvaluatedClips, labelled: Bools) -> list[tuple[float, Bools]]:
    """The parts of a data set whose areas DCASE averages: the highest rate of false positives, and whether each
    labelled clip is in the part.
    """
    machine, section, domain = (part[labelled] for part in (clips.machine, clips.section, clips.domain))
    anomalous = clips.label[labelled] == 1
    parts = []
    for place in sorted({place for place in zip(machine, section, strict=True) if place[1] is not None}, key=str):
        in_section = (machine == place[0]) & (section == place[1])
        for name in sorted({name for name in domain[in_section] if name is not None}) or [None]:
            parts.append((1.0, in_section & (anomalous | (domain == name))))
        parts.append((_MAX_FPRS["pauc"], in_section))
    return parts


def _dcase(
    values: Reals, labels: Reals, groups: Integers, parts: Sequence[tuple[float, Bools]], drawn: Integers
) -> SummaryRow | None:
    """The official score of scores (S, N); None where a part lacks a class."""
    points, resampled = [], []
    for scores, known in zip(values, np.isfinite(values), strict=True):
        scored = [(fpr, part & known) for fpr, part in parts]
        if not all(len(set(labels[part])) == 2 for _, part in scored):
            continue
        points.append(_harmonic_mean([detection.pauc(scores[part], labels[part], fpr) for fpr, part in scored]))
        areas = [
            detection.bootstrap_areas(scores[part], labels[part], groups[part], drawn, max_fprs=[fpr])[:, 0]
            for fpr, part in scored
        ]
        resampled.append(_harmonic_mean(areas))
    if not points:
        return None
    (low,), (high,) = percentile_interval(np.mean(resampled, axis=0)[:, None])
    return estimate(np.array(points), low, high)


def _harmonic_mean(areas: Sequence[float] | Sequence[Reals]) -> Any:
    """The harmonic mean at each place; 0 where one area is 0."""
    with np.errstate(divide="ignore"):
        return len(areas) / np.sum(1.0 / np.asarray(areas), axis=0)


def _share(raised: Reals, groups: Integers, drawn: Integers) -> SummaryRow:
    """The share of clips (S, N) that alarmed, over the clips that each seed scored."""
    resampled, points = [], []
    for of_seed in raised:
        known = np.isfinite(of_seed)
        if known.any():
            weight = drawn[:, groups[known]]
            total = weight.sum(axis=1)
            share = np.divide(weight @ of_seed[known], total, out=np.full(len(total), np.nan), where=total > 0)
            points.append(float(of_seed[known].mean()))
            resampled.append(share)
    (low,), (high,) = percentile_interval(np.mean(resampled, axis=0)[:, None])
    return estimate(np.array(points), low, high)
