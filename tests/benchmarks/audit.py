"""What an audit costs beside the model: time for a clip, scaling over workers, memory over length, bytes on disk.

    python tests/benchmarks/audit.py [--quick] [--parts overhead throughput memory bytes]

overhead    6,400 clips through `run_audit` with a network that returns its input, on one core: decoding, features, the
            way through Ray, the rows and their Parquet files. CPU time of all processes for each clip, by their role,
            between a tenth and nine tenths of the shards, so that starting Ray is left out; wall time beside it; and
            what the parts take by themselves in one process.
throughput  scores of the paper's network with 1, 2 and 4 actors, each time on as many cores (one PyTorch thread each),
            over the same stretch; `scaling` is the ratio to so many times one. CPU time by role beside it, and what as
            many processes score that do nothing else (`alone`): more no audit can have of these cores.
memory      the largest proportional set size (PSS) of the driver, any reader and any actor of `faithad audit`, for
            2,000 and 20,000 clips in WAV files of 5.6 hours each, a small network, no explanations.
bytes       32 clips of the paper's shape, all six methods, by table. Maps apart, as they are optional.

The figures go to runs/bench/audit.json, flat. Files of nearly 1 GB are made below the folder for temporary files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from attribution import device_name, spectrograms, trained_network
from audits import (
    CLIPS_IN_SHARD,
    PAPER,
    audit,
    clips_of,
    cores,
    local_ray,
    long_recordings,
    normalization,
    prepared_model,
    read,
    save,
)
from processes import Watch
from torch import Tensor, nn

from faithad import parquet
from faithad.audit.shard import audit_clips, table_schemas, to_table
from faithad.config.audit import load_audit_run
from faithad.features import log_mel
from faithad.model.table import build_network
from faithad.pipelines.shards.log_mels import add_log_mels, log_mels_of
from faithad.pipelines.shards.stream import from_bytes, to_bytes
from faithad.settings import FeatureSettings

OUTPUT = Path("runs/bench/audit.json")
FAITHAD = Path(sys.executable).parent / "faithad"
ALONE_S = 5.0
SMALL = FeatureSettings(n_fft=4000, hop_samples=2000, n_mels=16)


def main() -> None:
    arguments = parse_arguments()
    figures: dict[str, object] = {"device": device_name(torch.device("cpu")), "load": os.getloadavg()[0]}
    parts: dict[str, Callable[[Path, bool], dict[str, float]]] = {
        "overhead": overhead,
        "throughput": throughput,
        "memory": memory,
        "bytes": bytes_per_clip,
    }
    with tempfile.TemporaryDirectory(prefix="faithad-bench-") as folder:
        for name in arguments.parts:
            here = Path(folder, name)
            here.mkdir()
            found = parts[name](here, arguments.quick)
            report(found)
            figures |= found
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    OUTPUT.write_text(json.dumps(before | figures, indent=2) + "\n")


# --- time for a clip --------------------------------------------------------------------------------------------------


class Unchanged(nn.Module):
    """A network that costs nothing: the reconstruction is the input."""

    def __init__(self, n_mels: int, n_frames: int) -> None:
        super().__init__()
        self.n_mels, self.n_frames = n_mels, n_frames

    def forward(self, x: Tensor) -> Tensor:
        return x


def replace_network() -> None:
    """In this process, the baseline `dense_ae` is the network that costs nothing; all else is as it is."""
    from faithad.model.table import MODELS

    location = f"{Unchanged.__module__}:{Unchanged.__qualname__}"
    MODELS.built_in["dense_ae"] = dataclasses.replace(MODELS["dense_ae"], location=location)


def overhead(folder: Path, quick: bool) -> dict[str, float]:
    replace_network()
    # As many as make whole shards: of fewer clips there are fewer in a shard.
    n_clips = 1_600 if quick else 6_400
    model = save(folder / "model", Unchanged(PAPER.n_mels, PAPER.n_frames), PAPER, name="dense_ae")
    sounds = long_recordings(folder / "sounds", n_clips=n_clips, files=1)
    with cores(1), local_ray(1, runtime_env={"worker_process_setup_hook": replace_network}):
        watch = Watch(psutil.Process())
        watch.start()
        out = audit(model, sounds, folder / "out", "audit.actors=1")
        watch.stop()
    first, last, clips = span(out)
    seconds = watch.cpu_between(first, last)
    figures = {f"overhead_{role}_ms": 1e3 * each / clips for role, each in seconds.items()}
    figures["overhead_ms"] = sum(figures.values())
    figures["overhead_wall_ms"] = 1e3 * (last - first) / clips
    return figures | overhead_parts(folder / "parts", model, sounds) | {"overhead_n_clips": n_clips}


def overhead_parts(folder: Path, model: str, sounds: Path) -> dict[str, float]:
    """CPU milliseconds for a clip of what can be told apart in one process."""
    torch.set_num_threads(1)
    clips = clips_of(sounds).slice(0, CLIPS_IN_SHARD)
    rows = clips.to_pylist()
    run = load_audit_run(None, model=model, recordings=[str(sounds)], out=str(folder), overrides=["audit.explain=none"])
    held = prepared_model(model, run.attribution, run.audit)
    samples = [read(row) for row in rows]
    table, _ = add_log_mels(clips, PAPER, mark=str(folder / "mark.json"), run="bench")
    log_mels = torch.from_numpy(log_mels_of(table, PAPER).copy())
    tables = audit_clips(held, rows, log_mels, explain=False)

    def write() -> None:
        for name in ("scores", "ledger"):
            schema = table_schemas(held.trained)[name]
            parquet.write_table(to_table(tables[name], schema), str(folder / f"{name}.parquet"), schema=schema)

    timed = {
        "decode": lambda: [read(row) for row in rows],
        "features": lambda: [log_mel(torch.from_numpy(each)[None], PAPER) for each in samples],
        "transport": lambda: log_mels_of(from_bytes(to_bytes(table)), PAPER).copy(),
        "rows": lambda: audit_clips(held, rows, log_mels, explain=False),
        "parquet": write,
    }
    return {f"overhead_{name}_ms": 1e3 * cpu_seconds(part) / len(rows) for name, part in timed.items()}


def cpu_seconds(function: Callable[[], object], repetitions: int = 7) -> float:
    """The median of some repetitions, after one that does not count."""
    function()
    took = []
    for _ in range(repetitions):
        started = time.process_time()
        function()
        took.append(time.process_time() - started)
    return float(np.median(took))


# --- workers ----------------------------------------------------------------------------------------------------------


def throughput(folder: Path, quick: bool) -> dict[str, float]:
    torch.manual_seed(0)
    model = save(folder / "model", build_network("ae", PAPER.n_mels, 400), PAPER, name="ae")
    sounds = long_recordings(folder / "sounds", n_clips=256 if quick else 2_000, files=1)
    figures: dict[str, float] = {}
    for n in (1, 2, 4):
        if n > len(os.sched_getaffinity(0)):
            continue
        with cores(n):
            figures[f"alone_clips_per_s_{n}"] = alone(model, sounds, n)
            watch = Watch(psutil.Process())
            with local_ray(n):
                watch.start()
                out = audit(model, sounds, folder / f"out-{n}", f"audit.actors={n}")
                watch.stop()
        first, last, clips = span(out)
        seconds = watch.cpu_between(first, last)
        figures |= {f"throughput_{role}_ms_{n}": 1e3 * each / clips for role, each in seconds.items()}
        figures[f"clips_per_s_{n}"] = clips / (last - first)
        for what in ("", "alone_"):
            rate, one = figures[f"{what}clips_per_s_{n}"], figures[f"{what}clips_per_s_1"]
            figures[f"{what}scaling_{n}"] = rate / (n * one)
    return figures


def alone(model: str, sounds: Path, n: int) -> float:
    """Clips a second that n processes score side by side, without Ray, reading or writing: what the cores allow."""
    context = multiprocessing.get_context("spawn")
    together, rates = context.Barrier(n), context.Queue()
    processes = [context.Process(target=score_on, args=(model, str(sounds), together, rates)) for _ in range(n)]
    for process in processes:
        process.start()
    found = [rates.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(found))


def score_on(model: str, sounds: str, together: Any, rates: Any) -> None:
    torch.set_num_threads(1)
    rows = clips_of(Path(sounds)).slice(0, CLIPS_IN_SHARD).to_pylist()
    run = load_audit_run(None, model=model, recordings=[sounds], out="-", overrides=["audit.explain=none"])
    held = prepared_model(model, run.attribution, run.audit)
    log_mels = torch.cat([log_mel(torch.from_numpy(read(row))[None], PAPER) for row in rows])
    audit_clips(held, rows, log_mels, explain=False)
    together.wait()
    started, n_clips = time.monotonic(), 0
    while time.monotonic() < started + ALONE_S:
        audit_clips(held, rows, log_mels, explain=False)
        n_clips += len(rows)
    rates.put(n_clips / (time.monotonic() - started))


def span(out: Path) -> tuple[float, float, int]:
    """When a tenth and when nine tenths of the shards were done, and how many clips were done in between."""
    ledgers = sorted((out / "ledger").glob("part-*.parquet"), key=lambda path: path.stat().st_mtime)
    first, last = len(ledgers) // 10, len(ledgers) * 9 // 10
    clips = sum(parquet.read_table(str(path), columns=["recording"]).num_rows for path in ledgers[first + 1 : last + 1])
    return ledgers[first].stat().st_mtime, ledgers[last].stat().st_mtime, clips


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(folder: Path, quick: bool) -> dict[str, float]:
    torch.manual_seed(0)
    network = build_network("ae", SMALL.n_mels, 100)
    model = save(folder / "model", network, SMALL, name="ae", threshold=usual_score(network, folder / "sounds"))
    lengths = (400, 2_000) if quick else (2_000, 20_000)
    figures: dict[str, float] = {}
    for n_clips in lengths:
        sounds = long_recordings(folder / f"sounds-{n_clips}", n_clips=n_clips, files=max(1, n_clips // 2_000))
        places = {"--model": model, "--recordings": sounds, "--out": folder / f"out-{n_clips}"}
        given = [str(word) for pair in places.items() for word in pair]
        command = [FAITHAD, "audit", *given, "--set", "audit.explain=none"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        watch = Watch(psutil.Process(process.pid), memory=True)
        started = time.monotonic()
        watch.start()
        assert process.wait() == 0
        figures[f"audit_s_{n_clips}"] = time.monotonic() - started
        watch.stop()
        figures |= {f"{who}_mib_{n_clips}": mib for who, mib in watch.peak_mib.items()}
    short, long = lengths
    for who in ("driver", "reader", "actor", "all"):
        figures[f"{who}_growth"] = figures[f"{who}_mib_{long}"] / figures[f"{who}_mib_{short}"] - 1
    return figures


def usual_score(network: nn.Module, folder: Path) -> float:
    """What one clip in twenty exceeds, so that there are as many alarms and events as a mill may have."""
    rows = clips_of(long_recordings(folder, n_clips=60, files=1)).to_pylist()
    x = torch.cat([normalization(SMALL).apply(log_mel(torch.from_numpy(read(row))[None], SMALL)) for row in rows])
    with torch.inference_mode():
        x = x[..., :100]
        return float((network.eval()(x) - x).square().mean(dim=(1, 2)).quantile(0.95))


# --- bytes ------------------------------------------------------------------------------------------------------------


def bytes_per_clip(folder: Path, quick: bool) -> dict[str, float]:
    n_clips = 4 if quick else 32
    network, log_mels = trained_network(8 if quick else 40, torch.device("cpu")), spectrograms(n_clips, seed=2)
    model = save(folder / "model", network, PAPER, name="mae")
    run = load_audit_run(None, model=model, recordings=["-"], out=str(folder))
    held = prepared_model(model, run.attribution, run.audit)
    rows = [
        {
            "clip_id": f"{number:016x}",
            "recording": "test/MPD_19-12-04_0848_00006.wav",
            "onset_s": 10.0 * number,
            "duration_s": 10.0,
            "annotated": True,
            "intervals": [{"onset_s": 2.0, "offset_s": 4.0}],
            "keep_maps": True,
        }
        for number in range(n_clips)
    ]
    tables = audit_clips(held, rows, log_mels, explain=True)
    curves = [{**row, "map": None, "map_scale": None} for row in tables["attributions"]]
    figures = {}
    for name, found in (tables | {"attributions": curves, "maps": tables["attributions"]}).items():
        schema = table_schemas(held.trained)["attributions" if name == "maps" else name]
        location = folder / f"{name}.parquet"
        parquet.write_table(to_table(found, schema), str(location), schema=schema)
        figures[f"bytes_{name}"] = location.stat().st_size / n_clips
    return figures | {"bytes_maps": figures["bytes_maps"] - figures["bytes_attributions"]}


def report(figures: dict[str, float]) -> None:
    for key, value in figures.items():
        print(f"{key:32s} {value:,.3f}" if isinstance(value, float) else f"{key:32s} {value}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["overhead", "throughput", "memory", "bytes"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--quick", action="store_true", help="fewer clips")
    return parser.parse_args()


if __name__ == "__main__":
    main()
