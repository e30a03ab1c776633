"""The lines that stand beside every F-score: chance, flagging every second, and curves that need no model.

Shape letters: N clips, C columns (model, line, percentile), A annotated clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from faithad.evaluation.clip_values import Cube, read_cube
from faithad.evaluation.controls import ALWAYS, RANDOM
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
    without_model = read_cube(controls, "f_score", ["model", "line", "percentile"], clips)
    columns, parts = [*without_model.columns], [known_mean(without_model.values, axis=0)]
    percentiles = sorted({percentile for *_, percentile in f_scores.columns})
    for model in sorted({model for model, *_ in f_scores.columns}):
        random, always = experiment.f_score_controls(experiment.n_frames[model], percentiles)
        everywhere = np.full((len(clips.ids), 2 * len(percentiles)), np.nan)
        everywhere[clips.annotated] = np.hstack([random, np.repeat(always[:, None], len(percentiles), axis=1)])
        columns += [(model, line, percentile) for line in (RANDOM, ALWAYS) for percentile in percentiles]
        parts.append(everywhere)
    return Cube(np.hstack(parts)[None], columns)


def mean_over_percentiles(cube: Cube) -> Cube:
    """The mean over all percentiles, in columns whose percentile is None; NaN where a clip lacks one of them."""
    columns: dict[tuple[str, str], list[int]] = {}
    for column, (model, name, _) in enumerate(cube.columns):
        columns.setdefault((model, name), []).append(column)
    means = [cube.values[:, :, of_name].mean(axis=2) for of_name in columns.values()]
    values = np.stack(means, axis=2) if means else cube.values[:, :, :0]
    return Cube(values, [(*key, None) for key in columns])


def controls_rows(localization: pa.Table, controls: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The rows of `summary/controls`, over the annotated clips."""
    clips = experiment.clips
    f_scores = read_cube(localization, "f_score", ["model", "method", "percentile"], clips)
    lines = f_score_lines(f_scores, controls, experiment)
    for cube in (mean_over_percentiles(lines), lines):
        part = cube.of_clips(clips.annotated)
        for column, row in estimates(part, clips.recording[clips.annotated], seed=experiment.seed):
            model, line, percentile = part.columns[column]
            yield {"model": model, "metric": "f_score", "line": line, "percentile": percentile, **row}
