"""From one row per clip to one row per curve: the tables that the report and the paper show.

Every statistic is taken per seed over the clips (macro mean), then mean and standard deviation over seeds. Intervals
are 95 % bootstraps over recordings of the per-clip values averaged over seeds, all columns over the same resamples.
Only test clips count, and the order of the rows changes nothing. Detection is summarised for every model; F-score and
faithfulness have rows of explained models only.

A new summary is a function like those below, which may have a file of its own, a schema, and a row of `SUMMARIES`: a
study and an audit with a reference then write its table.

Shape letters: S seeds, N clips, C columns (one curve point each: model, method, percentile …).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas
from faithad.evaluation.arrays import Bools, Integers, Reals
from faithad.evaluation.checks import CURVES, band_rows, replacement_rows, sanity_rows
from faithad.evaluation.clip_values import EvaluatedClips, read_cube, read_test_clips
from faithad.evaluation.comparison import comparison_rows
from faithad.evaluation.controls import control_f_scores, oracle_f_score
from faithad.evaluation.detection_summary import detection_rows
from faithad.evaluation.estimates import SummaryRow, estimates
from faithad.evaluation.lines import controls_rows
from faithad.evaluation.psds import psds_rows
from faithad.evaluation.seconds import ERROR, second_rows
from faithad.evaluation.temporal import Intervals
from faithad.settings import frames_in
from faithad.vocabulary import CORRECTED, PAPER


@dataclass(frozen=True)
class Experiment:
    """What all summaries of an experiment are made with.

    Attributes:
        manifest: schemas.MANIFEST.
        protocol: written into every row. `audit` stands for an audit of recordings, whose maps are judged as in the
            paper.
        n_frames: T of each model's curves, as the protocol judges them: the controls of the F-score are drawn on the
            same grid, which ends earlier for a short clip.
        frames_per_s: of the curves.
        seed: of the bootstrap and of the random curves.
        n_draws: random curves per clip.
        percentiles: of the peaks; where they are not known, those of each table.
        scores: the name of each model's score, see `scoring.choices.score_name`; the paper's where it is not named.
    """

    manifest: pa.Table
    protocol: str
    n_frames: Mapping[str, int]
    frames_per_s: float
    seed: int = 0
    n_draws: int = 100
    percentiles: Sequence[float] = ()
    scores: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def clips(self) -> EvaluatedClips:
        return read_test_clips(self.manifest)

    def f_score_controls(self, n_frames: int, percentiles: Sequence[float]) -> tuple[Reals, Reals]:
        """F-scores of random curves (A, P) and of flagging every second (A,), of the A annotated clips."""
        intervals, lengths = self._annotated(n_frames)
        options: dict[str, Any] = {"seed": self.seed, "n_draws": self.n_draws, "protocol": self.judged_by}
        return control_f_scores(intervals, lengths, self.frames_per_s, percentiles, **options)

    def oracle_f_scores(self, n_frames: int) -> Reals:
        """F-scores of flagging the annotated seconds, (A,)."""
        intervals, lengths = self._annotated(n_frames)
        pairs = zip(intervals.values(), lengths.tolist(), strict=True)
        return np.array([oracle_f_score(of_clip, length, self.frames_per_s) for of_clip, length in pairs])

    def _annotated(self, n_frames: int) -> tuple[dict[str, Intervals], Integers]:
        """The intervals of the annotated clips, and how many of `n_frames` each of them has."""
        annotated = np.flatnonzero(self.clips.annotated)
        durations_s = self.clips.duration_s[annotated]
        lengths = np.minimum([frames_in(duration_s, self.frames_per_s) for duration_s in durations_s], n_frames)
        return {self.clips.ids[clip]: self.clips.intervals[clip] for clip in annotated}, lengths.astype(np.int64)

    @property
    def judged_by(self) -> str:
        """The protocol of the rows of the audit's tables that are summarised."""
        return CORRECTED if self.protocol == CORRECTED else PAPER


class Summary(NamedTuple):
    """A table of summaries.

    Attributes:
        sources: the audit's tables that it summarises, and their schemas.
        schema: of the summary; its column `protocol` is filled in by `summarize`.
        rows: makes the rows of the summary of these tables, each with all models and seeds, and of the experiment.
    """

    sources: Mapping[str, pa.Schema]
    schema: pa.Schema
    rows: Callable[..., Iterable[SummaryRow]]


def summarize(name: str, tables: Mapping[str, pa.Table], experiment: Experiment) -> pa.Table:
    """Make the summary table `name`, one of `SUMMARIES`, of an audit's tables, by their names.

    Raises:
        StudyError: the manifest does not hold a clip of the table, a row occurs twice, a value is not finite, or (for
            detection) the scored clips of a seed lack a class.
    """
    summary = SUMMARIES[name]
    sources = [_of_protocol(tables[source], experiment.judged_by) for source in summary.sources]
    rows = [{**row, "protocol": experiment.protocol} for row in summary.rows(*sources, experiment)]
    return pa.Table.from_pylist(rows, schema=summary.schema)


def _of_protocol(table: pa.Table, protocol: str) -> pa.Table:
    """The rows of a protocol; all rows of a table that no protocol concerns."""
    return table.filter(pc.equal(table["protocol"], protocol)) if "protocol" in table.column_names else table


def f_score_rows(localization: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """Mean F-score over the annotated clips, all of them and by anomaly type, with its two controls."""
    clips = experiment.clips
    cube = read_cube(localization, "f_score", ["model", "method", "percentile"], clips)
    percentiles = sorted({percentile for *_, percentile in cube.columns})
    grids = {experiment.n_frames[model] for model, *_ in cube.columns}
    annotated = np.flatnonzero(clips.annotated)
    controls = {n_frames: experiment.f_score_controls(n_frames, percentiles) for n_frames in grids}
    for anomaly_type, chosen in _by_type(clips):
        part = cube.of_clips(chosen)
        for column, row in estimates(part, clips.recording[chosen], seed=experiment.seed):
            model, method, percentile = part.columns[column]
            measured = np.flatnonzero(chosen)[np.isfinite(part.values[:, :, column]).any(axis=0)]
            of_clips = np.searchsorted(annotated, measured)
            random, every_second = controls[experiment.n_frames[model]]
            yield {
                "model": model,
                "method": method,
                "percentile": percentile,
                "anomaly_type": anomaly_type,
                **row,
                "control_random": float(random[of_clips, percentiles.index(percentile)].mean()),
                "control_every_second": float(every_second[of_clips].mean()),
            }


def faithfulness_rows(faithfulness: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """Mean faithfulness over the annotated clips and, in frame mode, over all test clips; the same, normalised."""
    clips = experiment.clips
    keys = ["model", "method", "mode", "percentile"]
    normalized = faithfulness.filter(pc.is_valid(faithfulness["normalized"]))
    for metric, rows, column_name in (
        ("faithfulness", faithfulness, "faithfulness"),
        ("normalized_faithfulness", normalized, "normalized"),
    ):
        cube = read_cube(rows, column_name, keys, clips)
        for scope, chosen in (("annotated", clips.annotated), ("all", np.ones(len(clips.ids), dtype=np.bool_))):
            part = cube.of_clips(chosen)
            for column, row in estimates(part, clips.recording[chosen], seed=experiment.seed):
                key = dict(zip(keys, part.columns[column], strict=True))
                if scope == "annotated" or key["mode"] == "frame":
                    yield {**key, "metric": metric, "scope": scope, **row}


SUMMARIES = {
    "detection": Summary({"scores": schemas.SCORES}, schemas.DETECTION_SUMMARY, detection_rows),
    "f_score": Summary({"localization": schemas.LOCALIZATION}, schemas.F_SCORE_SUMMARY, f_score_rows),
    "faithfulness": Summary({"faithfulness": schemas.FAITHFULNESS}, schemas.FAITHFULNESS_SUMMARY, faithfulness_rows),
    "controls": Summary(
        {"localization": schemas.LOCALIZATION, "controls": schemas.CONTROLS}, schemas.CONTROLS_SUMMARY, controls_rows
    ),
    "comparison": Summary(
        {
            "localization": schemas.LOCALIZATION,
            "faithfulness": schemas.FAITHFULNESS,
            "controls": schemas.CONTROLS,
            "checks": schemas.CHECKS,
            "scores": schemas.SCORES,
        },
        schemas.COMPARISON,
        comparison_rows,
    ),
    "seconds": Summary({"attributions": CURVES, "lines": schemas.LINES}, schemas.SECONDS_SUMMARY, second_rows),
    "psds": Summary({"attributions": CURVES}, schemas.PSDS_SUMMARY, psds_rows),
    "replacements": Summary(
        {"checks": schemas.CHECKS, "faithfulness": schemas.FAITHFULNESS}, schemas.REPLACEMENTS, replacement_rows
    ),
    "bands": Summary({"checks": schemas.CHECKS}, schemas.BANDS, band_rows),
    "sanity": Summary({"checks": schemas.CHECKS, "attributions": CURVES}, schemas.SANITY, sanity_rows),
}


def read_sources(read: Callable[..., pa.Table], manifest: pa.Table) -> dict[str, pa.Table]:
    """The audit's tables that the summaries are made of.

    Of the curves, those of the annotated and of the deep clips, and the error of all clips.

    Args:
        read: (name of the table, schema, condition=condition of the rows or None) to the table.
        manifest: schemas.MANIFEST, with the annotations that the summaries are about.
    """
    sources: dict[str, pa.Table] = {}
    schemas_of = {name: schema for summary in SUMMARIES.values() for name, schema in summary.sources.items()}
    of_annotated = pc.field("clip_id").isin(manifest.filter(manifest["annotated"])["clip_id"].combine_chunks())
    for name, schema in schemas_of.items():
        condition = of_annotated if name == "lines" else None
        if name == "attributions":
            of_deep = pc.field("clip_id").isin(sources["checks"]["clip_id"].unique())
            condition = of_annotated | of_deep | (pc.field("method") == ERROR)
        sources[name] = read(name, schema, condition=condition)
    return sources


def _by_type(clips: EvaluatedClips) -> Iterator[tuple[str, Bools]]:
    """`all` annotated clips, then those of each anomaly type."""
    yield "all", clips.annotated
    for anomaly_type in sorted({name for name in clips.anomaly_type[clips.annotated] if name is not None}):
        yield anomaly_type, clips.annotated & (clips.anomaly_type == anomaly_type)
