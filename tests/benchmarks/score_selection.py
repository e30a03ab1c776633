"""Do scores that are chosen by synthetic disturbances do well on real ones? On ../shared/data/field_sounds.

    python -m tests.benchmarks.score_selection [--networks] [--models ae mae] [--epochs 60] [--threads N]

Every score of the two linear models, and with `--networks` of networks that are trained here, is rated without a label,
as `search.scores` rates them: by disturbances of normal clips that the model was not fitted to (one recording in five).
Then each is judged by the labelled test clips. Said are Spearman's rank correlations of both, over the scores of each
model and over all of them, and what the chosen score is worth beside the best one, the paper's and the recommended one.
Figures: runs/bench/score_selection.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from faithad.evaluation.alarms import fit_alarm
from faithad.evaluation.disturbances import KINDS, PROXY_KINDS, disturbed_clips
from faithad.evaluation.score_selection import rate_scores
from faithad.model.table import MODELS
from faithad.scoring.choices import PAPER, Score, all_scores, robust
from faithad.scoring.score import ClipBatch
from tests.benchmarks.detection import LINEAR, RATE, Data, linear_model, read, trained
from tests.field_sounds import FOLDER, SETTINGS

OUTPUT = Path("runs/bench/score_selection.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", action="store_true", help="train networks too: tens of minutes")
    parser.add_argument("--models", nargs="+", default=["ae", "mae"])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not FOLDER.is_dir():
        sys.exit(f"{FOLDER} is not on this machine: nothing is measured.")
    data = read()
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for model in [*LINEAR, *(arguments.models if arguments.networks else ())]:
        of_model = rows_of(model, data, epochs=arguments.epochs)
        rows += of_model
        figures |= agreement(model, of_model)
    figures |= agreement("all", rows)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2))


def rows_of(model: str, data: Data, *, epochs: int) -> list[dict[str, Any]]:
    """Each score of a model with what disturbances say of it, and what the labelled clips do."""
    learned, held = ~data.is_validation, data.is_validation
    network: Any
    if MODELS[model].linear:
        network = linear_model(model, data._replace(train=part(data, learned)))
    else:
        network = trained(model, 0, epochs, data)
    normals = clips_of(data, learned, "train", network.n_frames)
    held_back = clips_of(data, held, "held", network.n_frames)
    scores = all_scores(model)
    ratings: dict[str, dict[Score, Any]] = {}
    for name, kinds in (("all", KINDS), ("proxy", PROXY_KINDS)):
        ids = [f"held {k}" for k in range(int(held.sum()))]
        made = disturbed_clips(data.train.log_mels[held].numpy(), ids, settings=SETTINGS, seed=0, kinds=kinds)
        disturbed = ClipBatch(
            data.normalization.apply(torch.from_numpy(made.log_mels))[..., : network.n_frames],
            [f"{ids[n]} {kind}" for n, kind in zip(made.sources, made.kinds, strict=True)],
            [np.array(data.train.recordings)[held][n] for n in made.sources],
        )
        rated = rate_scores(
            network, scores, normals=normals, held_back=held_back, disturbed=disturbed,
            frames_per_s=SETTINGS.frames_per_s, fit_threshold=threshold,
        )  # fmt: skip
        ratings[name] = {each.score: each for each in rated}
    x = data.normalization.apply(data.test.log_mels)[..., : network.n_frames]
    of_test = {}
    for label in (False, True):
        numbers = np.flatnonzero(data.test.anomalous == label)
        names = [data.test.recordings[n] for n in numbers]
        of_test[label] = ClipBatch(x[torch.from_numpy(numbers)], [f"test {n}" for n in numbers], names)
    judged = rate_scores(
        network, scores, normals=normals, held_back=of_test[False], disturbed=of_test[True],
        frames_per_s=SETTINGS.frames_per_s, fit_threshold=rank_of_rate,
    )  # fmt: skip
    rows = []
    for each in judged:
        rating = {f"{name}_{key}": getattr(of_kinds[each.score], key)
                  for name, of_kinds in ratings.items() for key in ("proxy_auc", "caught")}  # fmt: skip
        rows.append({"model": model, "score": each.score, "auc": each.proxy_auc, "tpr05": each.caught, **rating})
    return rows


def rank_of_rate(scores: np.ndarray) -> float:
    """The r-th smallest of n normal test clips' scores, r = ceil(0.95 (n + 1))."""
    return float(np.sort(scores)[math.ceil(round((len(scores) + 1) * (1 - RATE), 9)) - 1])


def threshold(scores: np.ndarray) -> float:
    alarm = fit_alarm(scores, rule="conformal", pooling="mean", false_alarm_rate=RATE, clip_s=SETTINGS.clip_s)
    return alarm.threshold


def part(data: Data, chosen: np.ndarray) -> Any:
    numbers = np.flatnonzero(chosen)
    return data.train._replace(
        log_mels=data.train.log_mels[torch.from_numpy(numbers)],
        recordings=[data.train.recordings[n] for n in numbers],
        anomalous=data.train.anomalous[numbers],
    )


def clips_of(data: Data, chosen: np.ndarray, name: str, n_frames: int) -> ClipBatch:
    some = part(data, chosen)
    ids = [f"{name} {k}" for k in range(len(some.recordings))]
    return ClipBatch(data.normalization.apply(some.log_mels)[..., :n_frames], ids, some.recordings)


def agreement(name: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    figures = {}
    for rating in ("all_caught", "all_proxy_auc", "proxy_caught", "proxy_proxy_auc"):
        for truth in ("auc", "tpr05"):
            rho = float(stats.spearmanr([row[rating] for row in rows], [row[truth] for row in rows]).statistic)
            figures[f"rho_{name}_{rating}_{truth}"] = rho
    print(f"{name}: {len(rows)} scores; Spearman's rho of the ranking by disturbances with that by labelled clips:")
    for key, rho in figures.items():
        print(f"  {key:50s}{rho:6.2f}")
    best = max(rows, key=lambda row: (row["all_caught"], row["all_proxy_auc"]))
    told = {"chosen": best, "best by labels": max(rows, key=lambda row: row["auc"])}
    for row in rows:
        if row["score"] == PAPER:
            told[f"paper {row['model']}"] = row
        if row["score"] == robust(row["model"]):
            told[f"robust {row['model']}"] = row
    for title, row in told.items():
        print(f"  {title:22s}{row['model']:12s}{' '.join(vars(row['score']).values()):44s}"
              f"disturbed: AUC {row['all_proxy_auc']:.3f}, caught {row['all_caught']:.2f}; "
              f"labelled: AUC {row['auc']:.3f}, caught at 5 % {row['tpr05']:.2f}", flush=True)  # fmt: skip
    figures |= {f"auc_chosen_{name}": best["auc"], f"auc_best_{name}": told["best by labels"]["auc"]}
    return figures


if __name__ == "__main__":
    main()
