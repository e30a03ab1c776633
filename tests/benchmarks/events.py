"""How well events have the edges that experts mark, on real sound: ../shared/data/field_sounds.

    python -m tests.benchmarks.events [--threads N]

The linear ensemble is fitted to the training normals, with an alarm at a promised rate of 5 %, and the test clips are
audited with it, in seconds. Nothing is chosen by the labels, which are whole seconds. Two ways to make events of the
same alarms: whole clips, those up to 10 s apart as one, and windows of 0.25 s above their threshold, those up to 1 s
apart as one. Of each:

    met                 labels in alarmed clips that overlap an event
    onset, offset, iou  of these labels and the event that overlaps each most: median error in s, and median
                        intersection over union
    true, found         by the criteria of `faithad evaluate`

The exit status is 1 if a figure is outside its bar: what was measured, with room. The figures go to
runs/bench/events.json.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from faithad import schemas
from faithad.audit.events import find_events
from faithad.audit.model import prepare_audit
from faithad.audit.shard import audit_clips, to_table
from faithad.clips.manifest import ClipRow, manifest_table
from faithad.config.sections import Attribution, Audit
from faithad.evaluation.alarms import fit_promised_alarm, with_window_thresholds
from faithad.evaluation.intersection import Stretch, by_recording, match, overlap_s
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.scoring.choices import robust
from faithad.scoring.ensemble import add_up, fit_ensemble
from faithad.scoring.score import ClipBatch, fit_detector
from faithad.scoring.trained_ensemble import TrainedEnsemble
from tests.benchmarks.detection import LINEAR, RATE, Data, linear_model, read
from tests.field_sounds import FOLDER, SETTINGS, Split

OUTPUT = Path("runs/bench/events.json")
# The most: medians of errors in s. The least: the share of the labels in alarmed clips that are met.
MOST, LEAST = {"onset_windows": 0.5, "offset_windows": 0.75}, {"met_windows": 0.85, "iou_windows": 0.35}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    if not FOLDER.is_dir():
        sys.exit(f"{FOLDER} is not on this machine: nothing is measured.")
    data = read()
    trained = ensemble(data)
    manifest, scores = audited(trained, data.test)
    labels = read_labels()
    assert trained.alarm is not None
    figures: dict[str, float] = {}
    without = scores.set_column(
        scores.schema.get_field_index("windows"),
        schemas.SCORES.field("windows"),
        pa.nulls(scores.num_rows, pa.list_(pa.float64())),
    )
    for name, table, gap_s in (("clips", without, 10.0), ("windows", scores, 1.0)):
        events = find_events(
            table, manifest, alarm=trained.alarm, explanations=None, faithfulness=None, merge_gap_s=gap_s,
            method="saliency", percentile=95.0, features=SETTINGS,
        )  # fmt: skip
        figures |= report(name, events, labels, alarmed(scores, manifest))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2))
    outside = [f"{name} is {figures[name]:.3f}, above {bar}" for name, bar in MOST.items() if figures[name] > bar]
    outside += [f"{name} is {figures[name]:.3f}, below {bar}" for name, bar in LEAST.items() if figures[name] < bar]
    if outside:
        sys.exit("\n".join(outside))


def ensemble(data: Data) -> TrainedEnsemble:
    """As `faithad train --normals` makes it, with an alarm at the promised rate."""
    x = data.normalization.apply(data.train.log_mels)
    clips = ClipBatch(x, [f"train {k}" for k in range(len(x))], data.train.recordings)
    members, detectors, scores = {}, {}, []
    for name in LINEAR:
        network = linear_model(name, data)
        members[name] = TrainedModel(network, data.normalization, SETTINGS, name, 0, None, 0, "benchmark")
        fitted = fit_detector(network, robust(name), lambda: [clips], frames_per_s=SETTINGS.frames_per_s)
        detectors[name], of_normals = fitted
        scores.append(of_normals)
    fitted_ensemble = fit_ensemble(detectors, torch.stack(scores))
    totals = add_up(fitted_ensemble.standardise(torch.stack(scores)))[0].numpy()
    alarm: AlarmThreshold = fit_promised_alarm(totals, false_alarm_rate=RATE, clip_s=SETTINGS.clip_s)
    worst = pa.table({"worst_windows": torch.stack(scores, dim=1).tolist()})
    return TrainedEnsemble(members, fitted_ensemble, 0, with_window_thresholds(alarm, worst), "benchmark")


def audited(trained: TrainedEnsemble, test: Split) -> tuple[pa.Table, pa.Table]:
    """The manifest and the scores of the test clips."""
    counted: dict[str, int] = {}
    clips = []
    for recording in test.recordings:
        number = counted[recording] = counted.get(recording, -1) + 1
        clips.append(ClipRow(recording, recording, SETTINGS.clip_s * number, SETTINGS.clip_s, "test"))
    place = {clip.clip_id: number for number, clip in enumerate(clips)}
    manifest = manifest_table(clips)
    model = prepare_audit(trained, attribution=Attribution(), audit=Audit(explain="none"), device=torch.device("cpu"))
    rows: list[dict[str, Any]] = [row | {"keep_maps": False} for row in manifest.to_pylist()]
    log_mels = test.log_mels[[place[row["clip_id"]] for row in rows]]
    return manifest, to_table(audit_clips(model, rows, log_mels, explain=False)["scores"], schemas.SCORES)


def read_labels() -> list[Stretch]:
    """The labelled stretches of the test recordings; those that touch are one."""
    with open(FOLDER / "annotations.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    marked = [(row[0], (float(onset), float(offset))) for row in rows for onset, offset in ast.literal_eval(row[5])]
    return [(recording, span) for recording, spans in by_recording(marked).items() for span in spans]


def alarmed(scores: pa.Table, manifest: pa.Table) -> dict[str, list[tuple[float, float]]]:
    """Where clips alarmed, by recording."""
    alarms = dict(zip(scores["clip_id"].to_pylist(), scores["alarm"].to_pylist(), strict=True))
    return by_recording(
        (clip["recording"], (clip["onset_s"], clip["onset_s"] + clip["duration_s"]))
        for clip in manifest.to_pylist()
        if alarms[clip["clip_id"]]
    )


def report(
    name: str, events: pa.Table, labels: list[Stretch], alarms: dict[str, list[tuple[float, float]]]
) -> dict[str, float]:
    detections = [
        [(part["recording"], (part["onset_s"], part["offset_s"])) for part in event["parts"]]
        for event in events.to_pylist()
    ]
    errors = []
    heard = [
        (recording, label)
        for recording, label in labels
        if any(overlap_s(label, clip) > 0 for clip in alarms.get(recording, []))
    ]
    for recording, label in heard:
        spans = [span for parts in detections for where, span in parts if where == recording]
        best = max(spans, key=lambda span: overlap_s(label, span), default=(0.0, 0.0))
        if (shared_s := overlap_s(label, best)) > 0:
            union_s = max(label[1], best[1]) - min(label[0], best[0])
            errors.append((abs(best[0] - label[0]), abs(best[1] - label[1]), shared_s / union_s))
    onset_s, offset_s, iou = np.median(errors, axis=0)
    matches = match(detections, labels)
    print(
        f"{name:8s} {len(detections)} events, {matches.detected_s:.1f} s; {len(errors)} of {len(heard)} labels in "
        f"alarmed clips are met (of {len(labels)}); error of onset {onset_s:.2f} s, of offset {offset_s:.2f} s, "
        f"IoU {iou:.2f}; {sum(matches.true)} true, {sum(matches.found)} found, {matches.shared_s:.1f} of "
        f"{matches.labelled_s:.0f} s labelled"
    )
    figures = {"onset": onset_s, "offset": offset_s, "iou": iou, "met": len(errors) / len(heard)}
    figures |= {"true": np.mean(matches.true), "found": np.mean(matches.found)}
    return {f"{key}_{name}": float(value) for key, value in figures.items()}


if __name__ == "__main__":
    main()
