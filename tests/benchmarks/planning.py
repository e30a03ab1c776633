"""Whether `faithad plan` is right: plans made here, and the same studies and audits run right after.

    python tests/benchmarks/planning.py [--cases small demo audit search] [--repeats 3] [--limit 0.25]

small   a study of 16 clips and small networks: nothing but the start of processes
demo    configs/demo.yaml
audit   720 clips (two hours) of a demo mill with the demo's model, of which 36 are explained
search  four cells of configs/search.yaml, one seed

Each repeat measures, plans and then runs the command itself in a new process, whose time from start to end counts; the
command prints those of its stages. The exit status is 1 if a case's median error is above the limit. On a machine on
which others work, too, plan and run may meet different conditions: read the load that is printed with them. The
figures go to runs/bench/planning.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from faithad.demo.mill import synthesize
from faithad.pipelines.plan.estimate import estimate, total_s, written
from faithad.pipelines.plan.run import make_plan

OUTPUT = Path("runs/bench/planning.json")
FAITHAD = Path(sys.executable).parent / "faithad"
CONFIGS = Path(__file__).parents[2] / "configs"
SMALL: dict[str, Any] = {
    "name": "small",
    "seeds": [0],
    "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
    "train": {"epochs": 2},
    "attribution": {"smooth_grad_samples": 3, "integrated_gradients_steps": 4, "gradient_shap_samples": 3},
    "audit": {"maps": 2, "clips_per_shard": 4},
}


def main() -> None:
    arguments = parse_arguments()
    figures: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="faithad-bench-") as name:
        folder = Path(name)
        for case in arguments.cases:
            command, config = prepare(case, folder)
            figures[case] = [repeat(command, config, folder / f"{case}-{k}") for k in range(arguments.repeats)]
    worst = 0.0
    for case, repeats in figures.items():
        errors = [figure["error"] for figure in repeats]
        worst = max(worst, abs(statistics.median(errors)))
        print(
            f"{case}: errors {', '.join(f'{error:+.0%}' for error in errors)}, median {statistics.median(errors):+.0%}"
        )
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(worst > arguments.limit)


def prepare(case: str, folder: Path) -> tuple[str, Path]:
    """The command to plan, and its configuration; roots are set later."""
    config = folder / f"{case}.yaml"
    if case == "small":
        mill = folder / "small-mill"
        synthesize(mill, train_recordings=4, test_recordings=4, seed=3, recording_s=20.0)
        data = {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
        config.write_text(yaml.safe_dump(SMALL | {"root": str(folder / "-"), "data": data}))
        return "study", config
    values = yaml.safe_load((CONFIGS / f"{'search' if case == 'search' else 'demo'}.yaml").read_text())
    values["data"]["root"] = str(folder / "demo-mill")
    if case == "search":
        values |= {"seeds": [0], "search": values["search"] | {"mask_ratios": [0.3, 0.5]}}
    if case != "audit":
        config.write_text(yaml.safe_dump(values))
        return "search" if case == "search" else "study", config
    # Of the mill that the model is trained on: of another one nearly every clip alarms, which no plan can know.
    sounds, model = folder / "hours", folder / "model"
    synthesize(sounds, train_recordings=24, test_recordings=120, seed=1, workers=4)
    values["data"] |= {"root": str(sounds), "synthetic": None}
    (folder / "train.yaml").write_text(yaml.safe_dump(values | {"root": str(model), "models": ["mae"]}))
    subprocess.run([FAITHAD, "train", "--config", folder / "train.yaml"], check=True)
    config.write_text(
        yaml.safe_dump(
            {
                "model": str(model / "models" / "mae-0"),
                "recordings": [str(sounds / "test")],
                "out": str(folder / "-"),
                "attribution": values["attribution"],
                # A number, and not the alarms: how many of a mill's clips are abnormal no plan can know.
                "audit": {"explain": "top:36"},
            }
        )
    )
    return "audit", config


def repeat(command: str, config: Path, root: Path) -> dict[str, Any]:
    """One plan and one run."""
    change = f"{'out' if command == 'audit' else 'root'}={root}"
    load, started = os.getloadavg()[0], time.monotonic()
    plan = make_plan(str(config), overrides=[change], search=command == "search")
    planned_s, planning_s = total_s(plan), time.monotonic() - started
    started = time.monotonic()
    subprocess.run([FAITHAD, command, "--config", config, "--set", change], check=True)
    real_s = time.monotonic() - started
    figures = {
        "load": load,
        "planning_s": planning_s,
        "planned_s": planned_s,
        "real_s": real_s,
        "error": planned_s / real_s - 1,
        "planned_stages_s": {stage.name: stage.seconds for stage in estimate(plan)},
        "planned_bytes": sum(written(plan).values()),
        "real_bytes": sum(path.stat().st_size for path in root.rglob("*") if path.is_file()),
    }
    print(json.dumps(figures), flush=True)
    return figures


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = ["small", "demo", "audit", "search"]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=0.25)
    return parser.parse_args()


if __name__ == "__main__":
    main()
