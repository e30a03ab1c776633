"""The study's questions, each answered by the rule of `decisions`: are MAE explanations better than the AE's?

A question is asked of every method, for the F-score and for faithfulness. What is compared is one value per clip: the
mean over all percentiles of the study, never the best one, because that would be chosen on the same clips; beside it
stands percentile 95.

Shape letters: S seeds, N clips, M methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from faithad.evaluation.arrays import Bools, Integers, Reals
from faithad.evaluation.clip_values import Cube, read_cube
from faithad.evaluation.decisions import Comparison, compare
from faithad.evaluation.estimates import SummaryRow, known_mean

if TYPE_CHECKING:
    from faithad.evaluation.summary import Experiment

# The study's question: is A, which is trained with masks, better than B?
MASKED, PLAIN = "mae", "ae"
MASKED_TRAINING = "masked_training"
# Shown beside the mean over all percentiles.
_PERCENTILE = 95.0


class Measure(NamedTuple):
    """What is compared: one value per seed, clip, model and method.

    Attributes:
        metric: `f_score` or `faithfulness`.
        mode: of the faithfulness; None for the F-score.
        scope: `annotated` clips or `all`.
        chosen: whether each clip is in scope, (N,).
        percentile: None for the mean over all.
        values: of each model and method, (S, N); NaN where a clip was not measured.
    """

    metric: str
    mode: str | None
    scope: str
    chosen: Bools
    percentile: float | None
    values: dict[tuple[str, str], Reals]

    @property
    def keys(self) -> SummaryRow:
        """The columns of `summary/comparison` that say what is compared."""
        replacement = None if self.mode is None else "reconstruction"
        names = ("metric", "mode", "scope", "percentile")
        return {name: getattr(self, name) for name in names} | {"replacement": replacement}


def comparison_rows(localization: pa.Table, faithfulness: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The rows of `summary/comparison`; none of the models' question where one of the two models is missing."""
    for measure in measures(localization, faithfulness, experiment):
        methods = sorted({method for _, method in measure.values})
        both = [name for name in methods if {(MASKED, name), (PLAIN, name)} <= set(measure.values)]
        if both:
            a, b = (np.stack([measure.values[model, name] for name in both], axis=2) for model in (MASKED, PLAIN))
            answers = compare_paired(a[:, measure.chosen], b[:, measure.chosen], _recordings(measure, experiment))
            keys = {**measure.keys, "question": MASKED_TRAINING, "model_a": MASKED, "model_b": PLAIN}
            for method, answer in zip(both, answers, strict=True):
                yield {**keys, "method": method, **dataclasses.asdict(answer)}


def measures(localization: pa.Table, faithfulness: pa.Table, experiment: Experiment) -> Iterator[Measure]:
    """Everything that is compared, the means over all percentiles before percentile 95."""
    clips = experiment.clips
    everywhere = np.ones(len(clips.ids), dtype=np.bool_)
    f_scores = read_cube(localization, "f_score", ["model", "method", "percentile"], clips)
    keys = ["mode", "model", "method", "percentile"]
    shares = read_cube(faithfulness, "faithfulness", keys, clips)
    for percentile in (None, _PERCENTILE):
        yield from _measure(f_scores, "f_score", None, "annotated", clips.annotated, percentile)
        for mode in ("frame", "segment"):
            columns = [column for column, key in enumerate(shares.columns) if key[0] == mode]
            of_mode = Cube(shares.values[:, :, columns], [shares.columns[column][1:] for column in columns])
            yield from _measure(of_mode, "faithfulness", mode, "annotated", clips.annotated, percentile)
            if mode == "frame":
                yield from _measure(of_mode, "faithfulness", mode, "all", everywhere, percentile)


def _measure(
    cube: Cube, metric: str, mode: str | None, scope: str, chosen: Bools, percentile: float | None
) -> Iterator[Measure]:
    """Nothing where no clip in scope has a value. `cube` has columns (model, method, percentile)."""
    columns: dict[tuple[str, str], list[int]] = {}
    for column, (model, method, at) in enumerate(cube.columns):
        if percentile is None or at == percentile:
            columns.setdefault((model, method), []).append(column)
    # A clip without a value at one of the percentiles has no mean.
    values = {key: cube.values[:, :, of_method].mean(axis=2) for key, of_method in columns.items()}
    values = {key: each for key, each in values.items() if np.isfinite(each[:, chosen]).any()}
    if values:
        yield Measure(metric, mode, scope, chosen, percentile, values)


def compare_paired(a: Reals, b: Reals, recordings: Integers, *, seed: int = 0) -> list[Comparison]:
    """`compare` the values (S, N, M) of two models clip by clip, seeds averaged.

    The spread over seeds is that of the seeds that both have, over the clips whose difference is defined.
    """
    differences = known_mean(a, axis=0) - known_mean(b, axis=0)
    means = [known_mean(np.where(np.isfinite(differences), values, np.nan), axis=1) for values in (a, b)]
    in_both = np.isfinite(means[0]).any(axis=1) & np.isfinite(means[1]).any(axis=1)
    # A method that lacks a seed altogether has no value there; its spread is not known, and nor is its p.
    return compare(differences, recordings, (means[0][in_both], means[1][in_both]), seed=seed)


def _recordings(measure: Measure, experiment: Experiment) -> Integers:
    return experiment.clips.recording[measure.chosen]
