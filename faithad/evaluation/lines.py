"""The lines that every score is compared with: chance, curves without a model, a linear model, the best possible.

Shape letters: N clips, C columns (model, line, percentile), A annotated clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad.evaluation.clip_values import Cube, mean_over_percentiles, read_cube
from faithad.evaluation.controls import ALWAYS, ORACLE, RANDOM
from faithad.evaluation.estimates import SummaryRow, estimates, known_mean

if TYPE_CHECKING:
    from faithad.evaluation.summary import Experiment


def f_score_lines(f_scores: Cube, controls: pa.Table, experiment: Experiment) -> Cube:
    """F-scores of all lines, on the frames of each model: values (1, N, C), because no line depends on the seed.

    Args:
        f_scores: of the methods, with columns (model, method, percentile).
        controls: schemas.CONTROLS; without rows where an audit is older than that table.
        experiment: of the clips.
    """
    clips = experiment.clips
    of_f_scores = controls.filter(pc.equal(controls["metric"], "f_score"))
    without_model = read_cube(of_f_scores, "value", ["model", "line", "percentile"], clips)
    columns, parts = [*without_model.columns], [known_mean(without_model.values, axis=0)]
    percentiles = sorted({percentile for *_, percentile in f_scores.columns})
    for model in sorted({model for model, *_ in f_scores.columns}):
        random, always = experiment.f_score_controls(experiment.n_frames[model], percentiles)
        oracle = experiment.oracle_f_scores(experiment.n_frames[model])
        everywhere = np.full((len(clips.ids), 3 * len(percentiles)), np.nan)
        same = [np.repeat(values[:, None], len(percentiles), axis=1) for values in (always, oracle)]
        everywhere[clips.annotated] = np.hstack([random, *same])
        columns += [(model, line, percentile) for line in (RANDOM, ALWAYS, ORACLE) for percentile in percentiles]
        parts.append(everywhere)
    return Cube(np.hstack(parts)[None], columns)


def controls_rows(localization: pa.Table, controls: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The rows of `summary/controls`: over the annotated clips and, but for the F-score, over all clips."""
    clips = experiment.clips
    f_scores = read_cube(localization, "f_score", ["model", "method", "percentile"], clips)
    everywhere = np.ones(len(clips.ids), dtype=np.bool_)
    of_metrics = {"f_score": f_score_lines(f_scores, controls, experiment)}
    for metric in ("faithfulness", "normalized_faithfulness"):
        of_metric = controls.filter(pc.equal(controls["metric"], metric))
        of_metrics[metric] = read_cube(of_metric, "value", ["model", "line", "percentile"], clips)
    for metric, lines in of_metrics.items():
        for scope, chosen in [("annotated", clips.annotated), ("all", everywhere)][: 1 if metric == "f_score" else 2]:
            for cube in (mean_over_percentiles(lines, experiment.percentiles), lines):
                part = cube.of_clips(chosen)
                for column, row in estimates(part, clips.recording[chosen], seed=experiment.seed):
                    model, line, percentile = part.columns[column]
                    keys = {"model": model, "metric": metric, "line": line, "percentile": percentile, "scope": scope}
                    yield {**keys, **row}
