"""The study's questions, each answered by the rule of `decisions`.

    masked_training     are the MAE's explanations better than the AE's?
    against_chance      are a model's explanations better than random frames?
    against_no_model    are they better than the best curve that needs no model?

A question is asked of every method, for the F-score, for faithfulness and, under the protocol `corrected`, for
normalised faithfulness; the last two questions need the lines of faithfulness, which only `corrected` has. What is
compared is one value per clip: the mean over all percentiles of the study, never the best one, because that would be
chosen on the same clips; beside it stands percentile 95. The best curve without a model is chosen on these clips, which
favours the curve.

Shape letters: S seeds, N clips, M methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad.evaluation.arrays import Bools, Integers, Reals
from faithad.evaluation.clip_values import Clips, Cube, read_cube
from faithad.evaluation.controls import NO_MODEL, RANDOM
from faithad.evaluation.decisions import Comparison, compare
from faithad.evaluation.estimates import SummaryRow, known_mean
from faithad.evaluation.lines import f_score_lines, mean_over_percentiles

if TYPE_CHECKING:
    from faithad.evaluation.summary import Experiment

# The study's question: is A, which is trained with masks, better than B?
MASKED, PLAIN = "mae", "ae"
MASKED_TRAINING, AGAINST_CHANCE, AGAINST_NO_MODEL = "masked_training", "against_chance", "against_no_model"
# Shown beside the mean over all percentiles.
_PERCENTILE = 95.0


class Measure(NamedTuple):
    """What is compared: one value per seed, clip, model and method.

    Attributes:
        metric: `f_score`, `faithfulness` or `normalized_faithfulness`.
        mode: of the faithfulness; None for the F-score.
        scope: `annotated` clips or `all`.
        chosen: whether each clip is in scope, (N,).
        percentile: None for the mean over all.
        values: of each model and method, (S, N); NaN where a clip was not measured.
        lines: of each model and line that stands beside the methods, (S, N), or (1, N) where no seed matters.
    """

    metric: str
    mode: str | None
    scope: str
    chosen: Bools
    percentile: float | None
    values: dict[tuple[str, str], Reals]
    lines: dict[tuple[str, str], Reals]

    @property
    def keys(self) -> SummaryRow:
        """The columns of `summary/comparison` that say what is compared."""
        replacement = None if self.mode is None else "reconstruction"
        names = ("metric", "mode", "scope", "percentile")
        return {name: getattr(self, name) for name in names} | {"replacement": replacement}

    def methods(self, model: str) -> list[str]:
        return sorted(method for name, method in self.values if name == model)

    def stacked(self, model: str, methods: Sequence[str]) -> Reals:
        """The values (S, N in scope, M) of some methods."""
        return np.stack([self.values[model, method] for method in methods], axis=2)[:, self.chosen]


def comparison_rows(
    localization: pa.Table, faithfulness: pa.Table, controls: pa.Table, experiment: Experiment
) -> Iterator[SummaryRow]:
    """The rows of `summary/comparison`: one question after the other, for each thing that is measured."""
    for measure in measures(localization, faithfulness, controls, experiment):
        recordings = experiment.clips.recording[measure.chosen]
        yield from _between_models(measure, recordings)
        yield from _against_lines(measure, recordings)


def _between_models(measure: Measure, recordings: Integers) -> Iterator[SummaryRow]:
    """Nothing where one of the two models is missing."""
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


def _rows(
    measure: Measure, question: str, models: tuple[str, str], methods: Sequence[str], answers: Sequence[Comparison]
) -> Iterator[SummaryRow]:
    keys = {**measure.keys, "question": question, "model_a": models[0], "model_b": models[1]}
    for method, answer in zip(methods, answers, strict=True):
        yield {**keys, "method": method, **dataclasses.asdict(answer)}


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


def faithfulness_cubes(faithfulness: pa.Table, controls: pa.Table, metric: str, clips: Clips) -> dict[str, Cube]:
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
            (mean_over_percentiles(cube), mean_over_percentiles(lines)) if percentile is None else (cube, lines)
        )
    )
    if values:
        yield Measure(metric, mode, scope, chosen, percentile, values, of_lines)


def compare_paired(a: Reals, b: Reals, recordings: Integers, *, seed: int = 0) -> list[Comparison]:
    """`compare` the values (S, N, M) of two models clip by clip, seeds averaged.

    The spread over seeds is that of the seeds that both have, over the clips whose difference is defined.
    """
    differences = known_mean(a, axis=0) - known_mean(b, axis=0)
    means = [known_mean(np.where(np.isfinite(differences), values, np.nan), axis=1) for values in (a, b)]
    in_both = np.isfinite(means[0]).any(axis=1) & np.isfinite(means[1]).any(axis=1)
    # Where a method lacks one of these seeds, its spread over seeds is not known, and nor is its p.
    return compare(differences, recordings, (means[0][in_both], means[1][in_both]), seed=seed)
