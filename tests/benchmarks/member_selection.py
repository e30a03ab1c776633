"""Do ensembles that are chosen by synthetic disturbances do well on real ones? On ../shared/data/field_sounds.

    python -m tests.benchmarks.member_selection [--models mae ae] [--seeds 0 1] [--epochs 60] [--threads N]

The linear models and a network that is trained here, with the recommended scores, are compared as `search.members`
compares them: every ensemble of the three is rated by disturbances of normal clips that no member was fitted to (one
recording in five). Then each is judged by the labelled test clips. Said are both, Spearman's rank correlation of them
over the ensembles, and which one is chosen; and what all three find where the network scores only those clips that a
share of the held-back normal ones would be among (`rescore_share`). Figures: runs/bench/member_selection.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from faithad.evaluation.detection import auc
from faithad.evaluation.disturbances import KINDS, disturbed_clips
from faithad.evaluation.member_selection import rate_ensembles
from faithad.scoring.choices import robust
from faithad.scoring.ensemble import fit_ensemble, means_and_deviations, with_rescoring
from faithad.scoring.score import fit_detector
from tests.benchmarks.detection import LINEAR, Data, linear_model, read, trained
from tests.benchmarks.score_selection import clips_of, part, rank_of_rate, threshold
from tests.field_sounds import FOLDER, SETTINGS

OUTPUT = Path("runs/bench/member_selection.json")
SHARES = (1.0, 0.3, 0.1)
Scores = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mae", "ae"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not FOLDER.is_dir():
        sys.exit(f"{FOLDER} is not on this machine: nothing is measured.")
    data = read()
    learned = data._replace(train=part(data, ~data.is_validation))
    kinds, recordings = sets_of(data)
    linear = {name: scored(name, linear_model(name, learned), data, kinds) for name in LINEAR}
    figures = {}
    for model in arguments.models:
        for seed in arguments.seeds:
            network = scored(model, trained(model, seed, arguments.epochs, data), data, kinds)
            members = linear | {model: network}
            figures[f"{model}-{seed}"] = compare(model, members, recordings) | rescored(members)
            OUTPUT.parent.mkdir(parents=True, exist_ok=True)
            OUTPUT.write_text(json.dumps(figures, indent=2))


def sets_of(data: Data) -> tuple[dict[str, Tensor], list[str]]:
    """Clips (N, F, T) that are held back, their disturbed copies, and the normal and the anomalous test clips; and the
    recordings of the disturbed ones.
    """
    held, anomalous = data.train.log_mels[torch.from_numpy(data.is_validation)], data.test.anomalous
    ids = [f"held {k}" for k in range(len(held))]
    made = disturbed_clips(held.numpy(), ids, settings=SETTINGS, seed=0, kinds=KINDS)
    kinds = {"held": held, "disturbed": torch.from_numpy(made.log_mels)}
    kinds |= {"normal": data.test.log_mels[~anomalous], "anomalous": data.test.log_mels[anomalous]}
    return kinds, np.array(data.train.recordings)[data.is_validation][made.sources].tolist()


def scored(model: str, network: Any, data: Data, kinds: dict[str, Tensor]) -> Scores:
    """The calibrated scores of each kind of clips."""
    normals = clips_of(data, ~data.is_validation, "train", network.n_frames)
    detector, _ = fit_detector(network, robust(model), lambda: [normals], frames_per_s=SETTINGS.frames_per_s)
    with torch.inference_mode():
        return {
            kind: detector.calibrated(
                data.normalization.apply(clips)[..., : network.n_frames], [f"{kind} {k}" for k in range(len(clips))]
            ).numpy()
            for kind, clips in kinds.items()
        }


def compare(network: str, members: dict[str, Scores], recordings: list[str]) -> dict[str, Any]:
    """What disturbances and labels say of each ensemble, and how far they agree."""
    rated = rate_ensembles(
        {name: scores["held"] for name, scores in members.items()},
        {name: scores["disturbed"] for name, scores in members.items()},
        recordings,
        network=network,
        fit_threshold=threshold,
    )
    rows: list[dict[str, Any]] = []
    for each in rated:
        usual = torch.from_numpy(np.stack([members[name]["held"] for name in each.members]))
        means, deviations = (values[:, None].numpy() for values in means_and_deviations(usual))
        normal, anomalous = (
            ((np.stack([members[name][kind] for name in each.members]) - means) / deviations).sum(axis=0)
            for kind in ("normal", "anomalous")
        )
        scores = np.concatenate([normal, anomalous])
        labels = np.repeat([0, 1], [len(normal), len(anomalous)])
        tpr05 = float((anomalous > rank_of_rate(normal)).mean())
        rows.append(
            {"members": list(each.members), "caught": each.caught, "proxy_auc": each.proxy_auc, "chosen": each.chosen,
             "auc": auc(scores, labels), "tpr05": tpr05}
        )  # fmt: skip
    rho = {
        f"rho_{by}_{truth}": float(stats.spearmanr([row[by] for row in rows], [row[truth] for row in rows]).statistic)
        for by in ("caught", "proxy_auc")
        for truth in ("auc", "tpr05")
    }
    for row in rows:
        print(f"  {'chosen' if row['chosen'] else '':8s}{' + '.join(row['members']):36s}disturbed: caught "
              f"{row['caught']:.2f}, AUC {row['proxy_auc']:.3f}; labelled: AUC {row['auc']:.3f}, caught at 5 % "
              f"{row['tpr05']:.2f}", flush=True)  # fmt: skip
    print("  " + json.dumps({key: round(value, 2) for key, value in rho.items()}), flush=True)
    return {"ensembles": rows, **rho}


def rescored(members: dict[str, Scores]) -> dict[str, float]:
    """What all members find where the network scores some clips only, by how many."""
    # An ensemble is fitted to the names of its detectors and to their scores.
    names: dict[str, Any] = dict.fromkeys(members)
    scores = {kind: torch.from_numpy(np.stack([own[kind] for own in members.values()]))
              for kind in ("held", "normal", "anomalous")}  # fmt: skip
    figures: dict[str, float] = {}
    for share in SHARES:
        ensemble = fit_ensemble(names, scores["held"])
        usual = ensemble.standardise(scores["held"])
        if share < 1:
            ensemble = with_rescoring(ensemble, usual, torch.zeros(usual.shape[1], dtype=torch.bool), share)
        totals, by_network = {}, {}
        for kind, of_members in scores.items():
            standardised = ensemble.standardise(of_members)
            is_rescored = ensemble.rescored(standardised, torch.zeros(standardised.shape[1], dtype=torch.bool))
            totals[kind] = ensemble.add_up(standardised, is_rescored)[0].numpy()
            by_network[kind] = float(is_rescored.double().mean())
        tested = np.concatenate([totals["normal"], totals["anomalous"]])
        alarm = threshold(totals["held"])
        found = {
            "auc": auc(tested, np.repeat([0, 1], [len(totals["normal"]), len(totals["anomalous"])])),
            "tpr05": float((totals["anomalous"] > rank_of_rate(totals["normal"])).mean()),
            "caught": float((totals["anomalous"] > alarm).mean()),
            "false": float((totals["normal"] > alarm).mean()),
            "normal_by_network": by_network["normal"],
            "anomalous_by_network": by_network["anomalous"],
        }
        print(
            f"  rescore_share {share:g}: {json.dumps({key: round(value, 3) for key, value in found.items()})}",
            flush=True,
        )
        figures |= {f"rescored_{share:g}_{key}": value for key, value in found.items()}
    return figures


if __name__ == "__main__":
    main()
