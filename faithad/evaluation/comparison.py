"""The study's questions, each answered by the rule of `decisions`.

    masked_training     are the MAE's explanations better than the AE's?
    against_chance      are a model's explanations better than random frames?
    against_no_model    are they better than the best curve that needs no model?
    against_linear      is a network better than a linear model: does its score tell anomalous clips from normal ones
                        better, and do its explanations locate anomalies better than the linear model's error?

A question is asked of every method, for the F-score, for faithfulness and, under the protocol `corrected`, for
normalised faithfulness; `against_chance` and `against_no_model` need the lines of faithfulness, which only `corrected`
has. Of the deep clips, it is also asked for faithfulness with other replacements and for mel bands (`checks`). What is
compared is one value per clip: the mean over all percentiles of the study, never the best one, because that would be
chosen on the same clips. Percentile 95 is compared as well. The best curve without a model is chosen on these clips,
which favours the curve.

Shape letters: S seeds, N clips, M methods.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad.evaluation.arrays import Bools, Integers, Reals
from faithad.evaluation.checks import INPAINTING, RECONSTRUCTION, TRAINING_MEAN, band_rhos, replaced_faithfulness
from faithad.evaluation.clip_values import Cube, EvaluatedClips, mean_over_percentiles, read_cube, read_test_clips
from faithad.evaluation.controls import NO_MODEL, RANDOM
from faithad.evaluation.decisions import Comparison, compare, placements
from faithad.evaluation.estimates import SummaryRow, known_mean
from faithad.evaluation.lines import f_score_lines
from faithad.scoring.choices import OWN, PAPER_NAME
from faithad.vocabulary import ERROR_POOLINGS, FITTED

if TYPE_CHECKING:
    from faithad.evaluation.summary import Experiment

# The study's question: is A, which is trained with masks, better than B?
MASKED, PLAIN = "mae", "ae"
MASKED_TRAINING, AGAINST_CHANCE, AGAINST_NO_MODEL = "masked_training", "against_chance", "against_no_model"
AGAINST_LINEAR = "against_linear"
LINEAR_MODELS = ("frame_pca", "frame_ridge")
# What a linear model locates anomalies by.
_OWN_ERROR = "error_map"
# Shown in addition to the mean over all percentiles.
_PERCENTILE = 95.0
# The largest difference of two values of a metric, where it is bounded.
_LARGEST_DIFFERENCES = {"f_score": 1.0, "auc": 1.0, "band_rho": 2.0}


class Measure(NamedTuple):
    """What is compared: one value per seed, clip, model and method.

    Attributes:
        metric: `f_score`, `faithfulness`, `normalized_faithfulness` or `band_rho`.
        mode: of the faithfulness; None for the F-score.
        scope: `annotated` clips or `all`.
        chosen: whether each clip is in scope, (N,).
        percentile: None for the mean over all.
        replacement: what replaces frames or bands; None for the F-score.
        values: of each model and method, (S, N); NaN where a clip was not measured.
        lines: of each model and line that methods are compared with, (S, N), or (1, N) where no seed matters.
    """

    metric: str
    mode: str | None
    scope: str
    chosen: Bools
    percentile: float | None
    replacement: str | None
    values: dict[tuple[str, str], Reals]
    lines: dict[tuple[str, str], Reals]

    @property
    def keys(self) -> SummaryRow:
        """The columns of `summary/comparison` that say what is compared."""
        return {name: getattr(self, name) for name in ("metric", "mode", "scope", "percentile", "replacement")}

    def methods(self, model: str) -> list[str]:
        return sorted(method for name, method in self.values if name == model)

    def stacked(self, model: str, methods: Sequence[str]) -> Reals:
        """The values (S, N in scope, M) of some methods."""
        return np.stack([self.values[model, method] for method in methods], axis=2)[:, self.chosen]


def comparison_rows(
    localization: pa.Table,
    faithfulness: pa.Table,
    controls: pa.Table,
    checks: pa.Table,
    scores: pa.Table,
    experiment: Experiment,
) -> Iterator[SummaryRow]:
    """The rows of `summary/comparison`: one question after the other, for each thing that is measured."""
    clips = experiment.clips
    for measure in (
        *measures(localization, faithfulness, controls, experiment),
        *deep_measures(checks, faithfulness, clips),
    ):
        recordings = clips.recording[measure.chosen]
        yield from _between_models(measure, recordings)
        yield from _against_lines(measure, recordings)
        if measure.metric == "f_score":
            yield from _against_linear(measure, recordings)
    yield from _detection_against_linear(scores, experiment)


def _between_models(measure: Measure, recordings: Integers) -> Iterator[SummaryRow]:
    """The MAE's methods against the AE's; nothing where one of the two models is missing."""
    methods = [method for method in measure.methods(MASKED) if (PLAIN, method) in measure.values]
    if methods:
        a, b = (measure.stacked(model, methods) for model in (MASKED, PLAIN))
        yield from _rows(measure, MASKED_TRAINING, (MASKED, PLAIN), methods, compare_paired(a, b, recordings))


def _against_lines(measure: Measure, recordings: Integers) -> Iterator[SummaryRow]:
    """Each model's methods against chance, and against the curve without a model that is best on the same clips."""
    for model in sorted({model for model, _ in measure.values}):
        in_scope = {line: values[:, measure.chosen] for (name, line), values in measure.lines.items() if name == model}
        without_model = [line for line in NO_MODEL if line in in_scope]
        best = max(without_model, key=lambda line: float(np.nanmean(in_scope[line])), default=None)
        for question, line in ((AGAINST_CHANCE, RANDOM), (AGAINST_NO_MODEL, best)):
            if line in in_scope:
                methods = measure.methods(model)
                values = measure.stacked(model, methods)
                line_values = np.broadcast_to(in_scope[line][:, :, None], values.shape)
                answers = compare_paired(values, line_values, recordings)
                yield from _rows(measure, question, (model, line), methods, answers)


def _against_linear(measure: Measure, recordings: Integers) -> Iterator[SummaryRow]:
    """Each network's methods against the error of each linear model."""
    models = {model for model, _ in measure.values}
    for model, linear in itertools.product(sorted(models - set(LINEAR_MODELS)), LINEAR_MODELS):
        if (linear, _OWN_ERROR) in measure.values:
            methods = measure.methods(model)
            values = measure.stacked(model, methods)
            own = measure.stacked(linear, [_OWN_ERROR])
            answers = compare_paired(values, np.broadcast_to(own, (*own.shape[:2], len(methods))), recordings)
            yield from _rows(measure, AGAINST_LINEAR, (model, linear), methods, answers)


def _detection_against_linear(scores: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The AUC of each model that is not linear against that of each linear one, for each pooling."""
    clips = experiment.clips
    labelled = ~np.isnan(clips.label)
    if not {0.0, 1.0} <= set(clips.label[labelled]):
        return
    values: dict[str, dict[str, Reals]] = {}
    for pooling, (column, *_) in ERROR_POOLINGS.items():
        cube = read_cube(scores.filter(pc.is_valid(scores[column])), column, ["model"], clips)
        for position, (model,) in enumerate(cube.columns):
            of_seeds = [placements(of_seed, clips.label[labelled]) for of_seed in cube.values[:, labelled, position]]
            values.setdefault(model, {})[pooling] = np.stack(of_seeds)
    keys = {"metric": "auc", "mode": None, "scope": "all", "percentile": None, "replacement": None}
    for model, linear in itertools.product(sorted(set(values) - set(LINEAR_MODELS)), LINEAR_MODELS):
        shared = [pooling for pooling in values[model] if pooling in values.get(linear, {})]
        if shared:
            a, b = (np.stack([values[name][pooling] for pooling in shared], axis=2) for name in (model, linear))
            answers = compare_paired(a, b, clips.recording[labelled])
            is_fitted = experiment.scores.get(model, PAPER_NAME) not in (PAPER_NAME, OWN)
            for pooling, answer in zip(shared, answers, strict=True):
                method = FITTED if is_fitted and pooling == "mean" else pooling
                names = {"question": AGAINST_LINEAR, "model_a": model, "model_b": linear, "method": method}
                yield {**keys, **names, **_numbers(answer, "auc")}


def _rows(
    measure: Measure, question: str, models: tuple[str, str], methods: Sequence[str], answers: Sequence[Comparison]
) -> Iterator[SummaryRow]:
    keys = {**measure.keys, "question": question, "model_a": models[0], "model_b": models[1]}
    for method, answer in zip(methods, answers, strict=True):
        yield {**keys, "method": method, **_numbers(answer, measure.metric)}


def _numbers(answer: Comparison, metric: str) -> SummaryRow:
    """What a comparison says. Its interval ends where no difference can be larger: with few recordings it would not."""
    largest, numbers = _LARGEST_DIFFERENCES.get(metric, np.inf), dataclasses.asdict(answer)
    ends = {end: numbers[end] for end in ("ci_low", "ci_high") if numbers[end] is not None}
    return numbers | {end: min(max(value, -largest), largest) for end, value in ends.items()}


def measures(
    localization: pa.Table, faithfulness: pa.Table, controls: pa.Table, experiment: Experiment
) -> Iterator[Measure]:
    """Everything that is compared: the means over all percentiles, then percentile 95."""
    clips = experiment.clips
    everywhere = np.ones(len(clips.ids), dtype=np.bool_)
    f_scores = read_cube(localization, "f_score", ["model", "method", "percentile"], clips)
    lines = f_score_lines(f_scores, controls, experiment)
    shares = {
        metric: faithfulness_cubes(faithfulness, controls, metric, clips)
        for metric in ("faithfulness", "normalized_faithfulness")
    }
    for percentile in (None, _PERCENTILE):
        yield from _measure("f_score", None, "annotated", clips.annotated, percentile, f_scores, lines)
        for metric, cubes in shares.items():
            for mode in ("frame", "segment"):
                pair = cubes[mode], cubes["line" if mode == "frame" else "none"]
                yield from _measure(metric, mode, "annotated", clips.annotated, percentile, *pair)
                if mode == "frame":
                    yield from _measure(metric, mode, "all", everywhere, percentile, *pair)


def deep_measures(checks: pa.Table, faithfulness: pa.Table, clips: EvaluatedClips) -> Iterator[Measure]:
    """What is compared on the deep clips: faithfulness with other replacements, and mel bands."""
    everywhere = np.ones(len(clips.ids), dtype=np.bool_)
    replaced = replaced_faithfulness(checks, faithfulness, clips)
    rhos = band_rhos(checks, clips)
    of_methods, of_lines = (
        {key: rhos.values[:, :, column] for column, key in enumerate(rhos.columns) if (key[1] in NO_MODEL) is is_line}
        for is_line in (False, True)
    )
    for scope, chosen in (("annotated", clips.annotated), ("all", everywhere)):
        for replacement in (TRAINING_MEAN, INPAINTING):
            values = {
                key[:2]: replaced.values[:, :, column]
                for column, key in enumerate(replaced.columns)
                if key[2] == replacement and np.isfinite(replaced.values[:, chosen, column]).any()
            }
            if values:
                yield Measure("faithfulness", "frame", scope, chosen, None, replacement, values, {})
        values = {key: rho for key, rho in of_methods.items() if np.isfinite(rho[:, chosen]).any()}
        if values:
            yield Measure("band_rho", None, scope, chosen, None, RECONSTRUCTION, values, of_lines)


def reason_rows(
    faithfulness: pa.Table, controls: pa.Table, manifest: pa.Table, percentile: float
) -> Iterator[SummaryRow]:
    """Are the explanations of an audit more faithful than random frames, at the percentile of its events?

    Args:
        faithfulness: schemas.FAITHFULNESS, mode `frame`, of one protocol.
        controls: schemas.CONTROLS of the same.
        manifest: schemas.MANIFEST of the audited clips.
        percentile: of the peaks.

    Returns:
        Rows of schemas.COMPARISON, the question `against_chance`, of each method.
    """
    clips = read_test_clips(manifest)
    cubes = faithfulness_cubes(faithfulness, controls, "faithfulness", clips)
    everywhere = np.ones(len(clips.ids), dtype=np.bool_)
    for measure in _measure("faithfulness", "frame", "all", everywhere, percentile, cubes["frame"], cubes["line"]):
        yield from _against_lines(measure, clips.recording)


def faithfulness_cubes(
    faithfulness: pa.Table, controls: pa.Table, metric: str, clips: EvaluatedClips
) -> dict[str, Cube]:
    """The values of a metric by model, method and percentile, of both modes, and by model, line and percentile.

    All are read as one, so that their seeds are the same.
    """
    column = {"faithfulness": "faithfulness", "normalized_faithfulness": "normalized"}[metric]
    keys = ["clip_id", "seed", "model"]
    methods = faithfulness.filter(pc.is_valid(faithfulness[column]))
    lines = controls.filter(pc.equal(controls["metric"], metric))
    parts = [
        table.select([*keys, "percentile"])
        .append_column("kind", kind)
        .append_column("name", name)
        .append_column("value", value)
        for table, kind, name, value in (
            (methods, methods["mode"], methods["method"], methods[column]),
            (lines, pa.repeat(pa.scalar("line"), lines.num_rows), lines["line"], lines["value"]),
        )
    ]
    cube = read_cube(pa.concat_tables(parts), "value", ["kind", "model", "name", "percentile"], clips)
    cubes = {}
    for kind in ("frame", "segment", "line", "none"):
        chosen = [position for position, key in enumerate(cube.columns) if key[0] == kind]
        cubes[kind] = Cube(cube.values[:, :, chosen], [cube.columns[position][1:] for position in chosen])
    return cubes


def _measure(
    metric: str, mode: str | None, scope: str, chosen: Bools, percentile: float | None, cube: Cube, lines: Cube
) -> Iterator[Measure]:
    """Nothing where no clip in scope has a value. Columns of the cubes: model, method or line, percentile."""
    values, of_lines = (
        {
            (model, name): part.values[:, :, column]
            for column, (model, name, at) in enumerate(part.columns)
            if at == percentile and np.isfinite(part.values[:, chosen, column]).any()
        }
        for part in (
            (mean_over_percentiles(cube), mean_over_percentiles(lines, {at for *_, at in cube.columns}))
            if percentile is None
            else (cube, lines)
        )
    )
    if values:
        replacement = None if mode is None else RECONSTRUCTION
        yield Measure(metric, mode, scope, chosen, percentile, replacement, values, of_lines)


def compare_paired(a: Reals, b: Reals, recordings: Integers, *, seed: int = 0) -> list[Comparison]:
    """`compare` the values (S, N, M) of two models clip by clip, seeds averaged.

    The spread over seeds is that of the seeds that both have, over the clips whose difference is defined.
    """
    differences = known_mean(a, axis=0) - known_mean(b, axis=0)
    means = [known_mean(np.where(np.isfinite(differences), values, np.nan), axis=1) for values in (a, b)]
    in_both = np.isfinite(means[0]).any(axis=1) & np.isfinite(means[1]).any(axis=1)
    # Where a method lacks one of these seeds, its spread over seeds is not known, and nor is its p.
    return compare(differences, recordings, (means[0][in_both], means[1][in_both]), seed=seed)
