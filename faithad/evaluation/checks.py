"""The results of the checks of the deep clips: other replacements, mel bands, and the sanity of methods.

    replacements    faithfulness with three replacements, and whether they order the methods alike (Kendall's tau); the
                    areas below E(x') / E(x) while frames are deleted and inserted (Petsiuk et al. 2018)
    bands           Spearman's rho, over ten groups of mel bands, of what replacing a group takes away from the score
                    and the share of the map in it; also that of the outlier mass, which needs no model
    sanity          whether a map depends on the network's weights (Adebayo et al. 2018), is complete, and stays as it
                    is under a little noise (Yeh et al. 2019) and from one training to the next; and what it costs

Each value is one per seed and clip, as in `summary`; `audit.checking` computes what they are made of.

Shape letters: S seeds, N clips, C columns (model, method …), G groups of mel bands.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas
from faithad.evaluation.arrays import Reals
from faithad.evaluation.clip_values import Cube, EvaluatedClips, read_cube
from faithad.evaluation.estimates import SummaryRow, estimates, known_mean

if TYPE_CHECKING:
    from faithad.evaluation.summary import Experiment

# The table `checks` names them so.
RECONSTRUCTION, TRAINING_MEAN, INPAINTING = "reconstruction", "training_mean", "inpainting"
DELETION, INSERTION = "deletion", "insertion"
BAND_DROP, BAND_MASS = "band_drop", "band_mass"
RANDOMISATION, COMPLETENESS = "randomisation", "completeness"
INFIDELITY, SENSITIVITY = "infidelity", "sensitivity"
SEEDS, SECONDS = "seeds", "seconds"

# Of the table `attributions`, what seeds are compared by.
CURVES = pa.schema(
    [schemas.attributions(1, 1).field(name) for name in ("clip_id", "model", "seed", "method", "curve", "degenerate")]
)

N_BAND_GROUPS = 10
# Of the layers, from the output inwards.
RESET_SHARES = (0.25, 0.5, 0.75, 1.0)
# A map passes where, with all layers reset, it correlates less than this with the trained network's; and where its sum
# misses the change of the score by no more than this share.
_MOST_ALIKE, _MOST_INCOMPLETE = 0.5, 0.01


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> Reals:
    """Spearman's rank correlation along the last axis, of equal shapes (..., n): (...); NaN where one is constant."""
    from scipy import stats  # takes a second to import

    ranks = [stats.rankdata(np.asarray(values, dtype=np.float64), axis=-1) for values in (a, b)]
    first, second = (part - part.mean(axis=-1, keepdims=True) for part in ranks)
    norm = np.sqrt(np.square(first).sum(axis=-1) * np.square(second).sum(axis=-1))
    dots = (first * second).sum(axis=-1)
    rho: Reals = np.divide(dots, norm, out=np.full(np.shape(dots), np.nan), where=norm > 0)
    return rho


def band_rhos(checks: pa.Table, clips: EvaluatedClips) -> Cube:
    """Spearman's rho over the groups of bands, of each clip: columns (model, method or line)."""
    drops, masses = (_by_place(checks, check, clips) for check in (BAND_DROP, BAND_MASS))
    columns = sorted(key for key in masses if (key[0], "") in drops)
    if not columns:
        return Cube(np.empty((0, len(clips.ids), 0)), [])
    n_seeds = max(part.shape[0] for part in (*drops.values(), *masses.values()))
    values = np.full((n_seeds, len(clips.ids), len(columns)), np.nan)
    for position, (model, method) in enumerate(columns):
        drop, mass = drops[model, ""], masses[model, method]
        known = np.isfinite(drop).all(axis=2) & np.isfinite(mass).all(axis=2)
        values[: len(mass), :, position][known] = spearman(drop[known], mass[known])
    return Cube(values, columns)


def band_rows(checks: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The rows of `summary/bands`."""
    clips, cube = experiment.clips, band_rhos(checks, experiment.clips)
    for scope, chosen in (("annotated", clips.annotated), ("all", np.ones(len(clips.ids), dtype=np.bool_))):
        for column, row in estimates(cube.of_clips(chosen), clips.recording[chosen], seed=experiment.seed):
            model, method = cube.columns[column]
            yield {"model": model, "method": method, "scope": scope, **row}


def replaced_faithfulness(checks: pa.Table, faithfulness: pa.Table, clips: EvaluatedClips) -> Cube:
    """Faithfulness in mode `frame`, as the mean over the percentiles: columns (model, method, replacement).

    Of `reconstruction`, on the clips that have another replacement as well.
    """
    others = checks.filter(pc.is_in(checks["check"], pa.array([TRAINING_MEAN, INPAINTING])))
    is_deep = pc.is_in(faithfulness["clip_id"], others["clip_id"].combine_chunks())
    own = faithfulness.filter(pc.and_(is_deep, pc.equal(faithfulness["mode"], "frame")))
    keys = ["clip_id", "seed", "model", "method"]
    parts = [
        pa.table({**{key: table[key] for key in keys}, "replacement": replacement, "percentile": at, "value": value})
        for table, replacement, at, value in (
            (own, pa.repeat(RECONSTRUCTION, own.num_rows), own["percentile"], own["faithfulness"]),
            (others, others["check"], others["at"], others["value"]),
        )
    ]
    cube = read_cube(pa.concat_tables(parts), "value", ["model", "method", "replacement", "percentile"], clips)
    columns: dict[tuple[str, ...], list[int]] = {}
    for column, key in enumerate(cube.columns):
        columns.setdefault(key[:3], []).append(column)
    means = [cube.values[:, :, of_key].mean(axis=2) for of_key in columns.values()]
    return Cube(np.stack(means, axis=2) if means else cube.values, list(columns))


def replacement_rows(checks: pa.Table, faithfulness: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The rows of `summary/replacements`."""
    clips = experiment.clips
    cube = replaced_faithfulness(checks, faithfulness, clips)
    rows = [(cube.columns[column], row) for column, row in estimates(cube, clips.recording, seed=experiment.seed)]
    means = {key: row["mean"] for key, row in rows}
    for (model, method, replacement), row in rows:
        agreement = None if replacement == RECONSTRUCTION else _tau(means, model, replacement)
        keys = {"model": model, "method": method, "metric": "faithfulness", "replacement": replacement}
        yield {**keys, **row, "rank_agreement": agreement}
    for check in (DELETION, INSERTION):
        areas = _areas(checks, check, clips)
        for column, row in estimates(areas, clips.recording, seed=experiment.seed):
            model, method = areas.columns[column]
            keys = {"model": model, "method": method, "metric": check, "replacement": RECONSTRUCTION}
            yield {**keys, **row, "rank_agreement": None}


def sanity_rows(checks: pa.Table, attributions: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The rows of `summary/sanity`. `attributions` hold the curves, which are compared between seeds."""
    clips = experiment.clips
    falls = _falling(checks, clips)
    for check in (RANDOMISATION, COMPLETENESS, INFIDELITY, SENSITIVITY, SECONDS):
        cube = _read(checks, check, clips)
        for column, row in estimates(cube, clips.recording, seed=experiment.seed):
            model, method, at = cube.columns[column]
            passed = None
            if check == COMPLETENESS:
                passed = bool(np.nanmax(cube.values[:, :, column]) <= _MOST_INCOMPLETE)
            elif check == RANDOMISATION and at == 100:
                passed = row["mean"] < _MOST_ALIKE and falls[model, method]
            place = at if check == RANDOMISATION else None
            yield {"model": model, "method": method, "check": check, "at": place, **row, "passed": passed}
    attributions = attributions.filter(pc.is_in(attributions["clip_id"], checks["clip_id"].combine_chunks()))
    agreement = seed_agreement(attributions, clips)
    for column, row in estimates(agreement, clips.recording, seed=experiment.seed):
        model, method = agreement.columns[column]
        keys = {"model": model, "method": method, "check": SEEDS, "at": None}
        yield {**keys, **row, "n_seeds": _n_seeds(attributions, model), "passed": None}


def seed_agreement(attributions: pa.Table, clips: EvaluatedClips) -> Cube:
    """Spearman's rho of the curves of a clip, mean over the pairs of seeds: values (1, N, C), columns (model, method).

    Args:
        attributions: `clip_id`, `model`, `seed`, `method`, `curve` and `degenerate`.
        clips: N of them.
    """
    place = {clip_id: number for number, clip_id in enumerate(clips.ids)}
    curves: dict[tuple[str, str], dict[int, list[np.ndarray]]] = {}
    useful = attributions.filter(pc.invert(attributions["degenerate"])).select(["clip_id", "model", "method", "curve"])
    names = (useful[name].to_pylist() for name in ("clip_id", "model", "method"))
    for row, (clip_id, model, method) in enumerate(zip(*names, strict=True)):
        if clip_id in place:
            of_clips = curves.setdefault((model, method), {})
            of_clips.setdefault(place[clip_id], []).append(useful["curve"][row].values.to_numpy())
    columns = sorted(curves)
    values = np.full((1, len(clips.ids), len(columns)), np.nan)
    for position, key in enumerate(columns):
        for clip, of_seeds in curves[key].items():
            pairs = [spearman(a, b) for a, b in itertools.combinations(of_seeds, 2)]
            if pairs:
                values[0, clip, position] = np.mean(pairs)
    return Cube(values, columns)


def _n_seeds(attributions: pa.Table, model: str) -> int:
    return len(pc.unique(attributions.filter(pc.equal(attributions["model"], model))["seed"]))


def _falling(checks: pa.Table, clips: EvaluatedClips) -> dict[tuple[str, str], bool]:
    """Whether the mean correlation falls, or stays, with each further share of the layers that is reset."""
    cube = _read(checks, RANDOMISATION, clips)
    means = known_mean(known_mean(cube.values, axis=0), axis=0)
    of_methods: dict[tuple[str, str], list[float]] = {}
    for (model, method, _), mean in zip(cube.columns, means, strict=True):  # in the order of the shares
        of_methods.setdefault((model, method), []).append(float(mean))
    return {key: bool((np.diff(shares) <= 0).all()) for key, shares in of_methods.items()}


def _areas(checks: pa.Table, check: str, clips: EvaluatedClips) -> Cube:
    """The area below each clip's ratios, over shares from 0 to 1, by the trapezoidal rule: columns (model, method)."""
    cube = _read(checks, check, clips)
    of_methods: dict[tuple[str, str], list[int]] = {}
    for column, (model, method, _) in enumerate(cube.columns):
        of_methods.setdefault((model, method), []).append(column)
    areas = [
        np.trapezoid(cube.values[:, :, columns], [cube.columns[column][2] / 100 for column in columns], axis=2)
        for columns in of_methods.values()
    ]
    return Cube(np.stack(areas, axis=2) if areas else cube.values, list(of_methods))


def _by_place(checks: pa.Table, check: str, clips: EvaluatedClips) -> dict[tuple[str, str], Reals]:
    """The values (S, N, places) of a check, by model and method; of the clip itself, the method is ''."""
    cube = _read(checks, check, clips)
    columns: dict[tuple[str, str], list[int]] = {}
    for column, (model, method, _) in enumerate(cube.columns):
        columns.setdefault((model, method), []).append(column)
    return {key: cube.values[:, :, places] for key, places in columns.items()}


def _read(checks: pa.Table, check: str, clips: EvaluatedClips) -> Cube:
    """The values of a check: columns (model, method, at), in order."""
    rows = checks.filter(pc.equal(checks["check"], check))
    filled = {"method": pc.fill_null(rows["method"], ""), "at": pc.fill_null(rows["at"], 0.0)}
    rows = rows.select(["clip_id", "seed", "model", "value"])
    for name, values in filled.items():
        rows = rows.append_column(name, values)
    return read_cube(rows, "value", ["model", "method", "at"], clips)


def _tau(means: dict[tuple[str, ...], float], model: str, replacement: str) -> float | None:
    """Kendall's tau of the methods' means with this replacement and with the reconstruction; None of fewer than two."""
    from scipy import stats

    pairs = [
        (mean, means[name, method, RECONSTRUCTION])
        for (name, method, of), mean in means.items()
        if (name, of) == (model, replacement) and (name, method, RECONSTRUCTION) in means
    ]
    if len(pairs) < 2:
        return None
    tau = float(stats.kendalltau(*zip(*pairs, strict=True)).statistic)
    return tau if np.isfinite(tau) else None
