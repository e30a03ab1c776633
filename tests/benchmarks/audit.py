"""What an audit costs beside the model: time for a clip, scaling over workers, memory over length, bytes on disk.

    python tests/benchmarks/audit.py [--quick] [--parts overhead throughput memory bytes]

overhead    6,400 clips through `run_audit` with a network that returns its input, on one core: decoding, features, the
            way through Ray, the rows and their Parquet files. CPU time of all processes for each clip, by their role,
            between a tenth and nine tenths of the shards, so that starting Ray is left out; wall time beside it; and
            what the parts take by themselves in one process.
throughput  scores of the paper's network with 1, 2 and 4 actors, each time on as many cores (one PyTorch thread each),
            over the same stretch; `scaling` is the ratio to so many times one.
memory      the largest proportional set size (PSS) of the driver, any reader and any actor of `faithad audit`, for
            2,000 and 20,000 clips in WAV files of 5.6 hours each, a small network, no explanations.
bytes       32 clips of the paper's shape, all six methods, by table. Maps apart, as they are optional.

The figures go to runs/bench/audit.json, flat. Files of nearly 1 GB are made below the folder for temporary files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
import soundfile
import torch
from attribution import device_name, spectrograms, trained_network
from processes import Watch
from torch import Tensor, nn

from faithad import storage
from faithad.clips.inputs import find_recordings
from faithad.clips.manifest import cut_recording, manifest_table
from faithad.clips.recordings import probe_recording, read_clip
from faithad.config_audit import RunAudit, load_audit_run
from faithad.config_sections import Attribution
from faithad.features import FeatureSettings, Normalization, log_mel
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.networks import build_network
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.audit.shard import AuditModel, audit_clips, table_schemas, to_table
from faithad.pipelines.shards.log_mels import add_log_mels, log_mels_of
from faithad.pipelines.shards.stream import from_bytes, to_bytes

OUTPUT = Path("runs/bench/audit.json")
FAITHAD = Path(sys.executable).parent / "faithad"
PAPER = FeatureSettings()
SMALL = FeatureSettings(n_fft=4000, hop_samples=2000, n_mels=16)
CLIPS_IN_SHARD = RunAudit().clips_per_shard


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
    from faithad.model import networks

    networks._NETWORKS["dense_ae"] = Unchanged


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
            storage.write_table(to_table(tables[name], schema), str(folder / f"{name}.parquet"), schema=schema)

    timed = {
        "decode": lambda: [read(row) for row in rows],
        "features": lambda: [log_mel(torch.from_numpy(each)[None], PAPER) for each in samples],
        "transport": lambda: log_mels_of(from_bytes(to_bytes(table)), PAPER).copy(),
        "rows": lambda: audit_clips(held, rows, log_mels, explain=False),
        "parquet": write,
    }
    return {f"overhead_{name}_ms": 1e3 * cpu_seconds(part) / len(rows) for name, part in timed.items()}


def read(row: dict[str, Any]) -> np.ndarray:
    return read_clip(
        row["uri"],
        onset_s=row["onset_s"],
        duration_s=row["duration_s"],
        clip_s=10.0,
        sample_rate_hz=PAPER.sample_rate_hz,
    )


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
    rates = {}
    for n in (1, 2, 4):
        if n > len(os.sched_getaffinity(0)):
            continue
        with cores(n), local_ray(n):
            out = audit(model, sounds, folder / f"out-{n}", f"audit.actors={n}")
        first, last, clips = span(out)
        rates[n] = clips / (last - first)
    figures = {f"clips_per_s_{n}": rate for n, rate in rates.items()}
    return figures | {f"scaling_{n}": rate / (n * rates[1]) for n, rate in rates.items()}


def span(out: Path) -> tuple[float, float, int]:
    """When a tenth and when nine tenths of the shards were done, and how many clips were done in between."""
    ledgers = sorted((out / "ledger").glob("part-*.parquet"), key=lambda path: path.stat().st_mtime)
    first, last = len(ledgers) // 10, len(ledgers) * 9 // 10
    clips = sum(storage.read_table(str(path), columns=["recording"]).num_rows for path in ledgers[first + 1 : last + 1])
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
        storage.write_table(to_table(found, schema), str(location), schema=schema)
        figures[f"bytes_{name}"] = location.stat().st_size / n_clips
    return figures | {"bytes_maps": figures["bytes_maps"] - figures["bytes_attributions"]}


# --- what they share --------------------------------------------------------------------------------------------------


def save(folder: Path, network: nn.Module, features: FeatureSettings, *, name: str, threshold: float = 1e12) -> str:
    """A model as a training leaves it. By default its alarm is never raised."""
    alarm = AlarmThreshold("quantile", "mean", 0.05, threshold, 18.0, 100)
    trained = TrainedModel(network.eval(), normalization(features), features, name, 0, alarm, 1, "bench")
    save_model(trained, str(folder))
    return str(folder)


def normalization(features: FeatureSettings) -> Normalization:
    return Normalization(torch.full((features.n_mels,), -40.0), torch.full((features.n_mels,), 10.0))


def prepared_model(model: str, attribution: Attribution, audit: Any) -> AuditModel:
    from faithad.model.checkpoint import load_model

    return AuditModel.prepare(load_model(model), attribution=attribution, audit=audit, device=torch.device("cpu"))


def long_recordings(folder: Path, *, n_clips: int, files: int) -> Path:
    """WAV files, mono, 16 bit, 20 kHz: one of noise with a hum, and links to it by other names."""
    folder.mkdir()
    rate_hz, minute = PAPER.sample_rate_hz, 60
    generator = np.random.default_rng(0)
    hum = 0.2 * np.sin(2 * np.pi * 100 * np.arange(minute * rate_hz) / rate_hz)
    left = n_clips // files * 10 * rate_hz
    with soundfile.SoundFile(folder / "hours-00.wav", "w", rate_hz, 1, "PCM_16") as file:
        while left > 0:
            block = (hum + generator.normal(0, 0.05, len(hum)))[:left]
            file.write(block)
            left -= len(block)
    for number in range(1, files):
        (folder / f"hours-{number:02}.wav").symlink_to("hours-00.wav")
    return folder


def clips_of(sounds: Path) -> pa.Table:
    (recording,) = find_recordings([("test", str(sounds))])
    rows, _ = cut_recording(recording, probe_recording(recording.uri), clip_s=10.0, remainder="drop")
    return manifest_table(rows)


def audit(model: str, sounds: Path, out: Path, *overrides: str) -> Path:
    overrides = ("audit.explain=none", f"audit.clips_per_shard={CLIPS_IN_SHARD}", *overrides)
    outcome = run_audit(
        load_audit_run(None, model=model, recordings=[str(sounds)], out=str(out), overrides=list(overrides)),
        redo=False,
        retry_failed=False,
    )
    assert outcome.n_failed == 0, outcome.line
    return out


@contextmanager
def cores(n: int) -> Iterator[None]:
    """This process, and what it starts, on the first n of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def local_ray(n: int, **options: Any) -> Iterator[None]:
    ray.init(address="local", num_cpus=n, include_dashboard=False, log_to_driver=False, logging_level="error",
             object_store_memory=1 << 30, **options)  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


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
