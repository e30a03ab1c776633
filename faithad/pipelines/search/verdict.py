"""Is the chosen cell better than the paper's? The AUC of the labelled test clips, by the rule of verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from faithad import parquet, schemas, storage
from faithad.config.sections import Train
from faithad.config.study import Study
from faithad.evaluation.arrays import Reals
from faithad.evaluation.comparison import compare_paired
from faithad.evaluation.decisions import placements
from faithad.pipelines.search.plan import Cell, trial_location
from faithad.pipelines.search.records import Record
from faithad.runs import layout


def write_verdict(study: Study, records: Sequence[Record], labelled: pa.Table, chosen: Cell) -> None:
    """Write `summary/search_comparison`: without a row if the paper's cell was not tried, or is the chosen one.

    Args:
        study: of the search.
        records: of its trials.
        labelled: rows of the manifest, the labelled test clips.
        chosen: of all cells.
    """
    paper = Cell(Train().mask_ratio, Train().patch)
    labels = np.array(labelled["label"].to_pylist(), dtype=np.float64)
    rows: list[dict[str, Any]] = []
    if chosen != paper and len(np.unique(labels)) == 2:
        clip_ids, recordings = (labelled[name].to_pylist() for name in ("clip_id", "recording"))
        values = [_values(study, records, cell, clip_ids, labels) for cell in (chosen, paper)]
        if all(len(of_cell) for of_cell in values):
            shape = (max(map(len, values)), len(labels), 1)
            a, b = (np.full(shape, np.nan) for _ in values)
            for cube, of_cell in ((a, values[0]), (b, values[1])):
                cube[: len(of_cell), :, 0] = of_cell
            (answer,) = compare_paired(a, b, np.unique(recordings, return_inverse=True)[1])
            keys = {"question": "best_cell", "scope": "all", "metric": "auc", "method": "mean"}
            keys |= {"protocol": study.protocol, "model_a": str(chosen), "model_b": str(paper)}
            rows.append({**keys, **dataclasses.asdict(answer)})
    table = pa.Table.from_pylist(rows, schemas.COMPARISON)
    location = storage.join(study.root, layout.summary("search_comparison"))
    parquet.write_table(table, location, schema=schemas.COMPARISON)


def _values(study: Study, records: Sequence[Record], cell: Cell, clip_ids: Sequence[str], labels: Reals) -> list[Reals]:
    """The placements (N,) of the clips under each trial of a cell, in the order of the seeds."""
    values = []
    for record in sorted(records, key=lambda record: record.seed):
        location = trial_location(study.root, record.trial, layout.TRIAL_SCORES)
        if record.trial.cell == cell and storage.exists(location):
            table = parquet.read_table(location)
            scores = dict(zip(table["clip_id"].to_pylist(), table["score"].to_pylist(), strict=True))
            values.append(placements(np.array([scores.get(name, np.nan) for name in clip_ids]), labels))
    return values
