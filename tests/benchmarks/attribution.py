"""How long the six attributions and their faithfulness take: as published, and by the gradient stream.

    python -m tests.benchmarks.attribution [--clips 4] [--threads N] [--device cpu|cuda] [--quick]
        [--precision float32|tf32|bfloat16] [--compile default|max-autotune-no-cudagraphs]

One process, one set of clips, a network that was trained for a moment. The published way: one clip and one method at a
time through Captum, f(x) and f(x') computed for every mask. Both ways take turns; times are medians. The figures are
printed and written to runs/bench/attribution.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from faithad.attribution.gradient_stream import attribute_batch, frozen
from faithad.attribution.methods import PAPER_METHODS
from faithad.attribution.noise import Noise
from faithad.evaluation.faithfulness import errors_after_replacement, faithfulness_score, segment_masks
from faithad.evaluation.peaks import curve, peak_frames
from faithad.model.fast_network import fast_network
from faithad.model.masking import mse_per_clip
from faithad.model.precision import arithmetic
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.settings import AttributionSettings, Compile, Precision
from tests.attribution import captum_oracle

PERCENTILES = [float(p) for p in range(90, 100)]
INTERVALS = [(2.0, 4.0), (7.0, 8.0)]
FRAMES_PER_S = 40.0
SETTINGS = AttributionSettings()
OUTPUT = Path("runs/bench/attribution.json")
GRADIENTS_PER_CLIP = 1 + 25 + 50 + 25


class Outcome(NamedTuple):
    """Maps (B, F, T) by method, and faithfulness (B, methods, frame and segment, percentiles)."""

    maps: dict[str, Tensor]
    faithfulness: np.ndarray


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    network, x = trained_network(8 if arguments.quick else 40, device), spectrograms(arguments.clips, seed=2).to(device)
    ids = [f"clip{number}" for number in range(len(x))]
    print(
        f"{len(x)} clips of 80 x 400, {arguments.threads} threads, {device}; load {os.getloadavg()[0]:.1f}", flush=True
    )

    explained = fast_network(network, arguments.precision, arguments.compile)  # once for each model, as in an audit
    streamed = functools.partial(stream, explained=explained, precision=arguments.precision)
    ways = {"published": published, "stream": streamed}
    if device.type == "cuda":  # libraries are loaded, and what is to be compiled is
        for way in ways.values():
            way(network, x, ids)
    outcomes, memory = {}, {}
    seconds, cpu_seconds = ({name: [] for name in ways} for _ in range(2))
    for repetition in range(1 if arguments.quick else arguments.repetitions):
        for name, way in ways.items():
            with peak_memory_mib(device) as peak:
                started, cpu_started = time.perf_counter(), time.process_time()
                outcomes[name] = way(network, x, ids)
                seconds[name].append(time.perf_counter() - started)
                cpu_seconds[name].append(time.process_time() - cpu_started)
            memory[name] = max(peak[0], memory.get(name, 0.0))
            print(f"  {repetition + 1}. {name:9s} {seconds[name][-1] / len(x):6.2f} s per clip", flush=True)

    median = {name: statistics.median(times) / len(x) for name, times in seconds.items()}
    figures = {
        "threads": arguments.threads,
        "device": device_name(device),
        "n_clips": len(x),
        "precision": arguments.precision,
        "compile": arguments.compile,
        "load": os.getloadavg()[0],
        "ratio": median["published"] / median["stream"],
        "clips_per_s": 1 / median["stream"],
        "published_clips_per_s": 1 / median["published"],
        "cpu_s_per_clip": statistics.median(cpu_seconds["stream"]) / len(x),
        "published_cpu_s_per_clip": statistics.median(cpu_seconds["published"]) / len(x),
        "peak_memory_mib": memory["stream"],
        "published_peak_memory_mib": memory["published"],
        **throughput(network, x, ids, median["stream"], device),
        **differences(outcomes["stream"], outcomes["published"]),
        **float32_floor(network, x, ids),
        **precision_errors(network, x, ids, worst_clip(outcomes["stream"], outcomes["published"]), device),
    }
    report(figures)


def published(network: SkipCAETransformer, x: Tensor, ids: list[str]) -> Outcome:
    maps: dict[str, list[Tensor]] = {name: [] for name in PAPER_METHODS}
    scores = []
    for clip, clip_id in zip(x, ids, strict=True):
        for name in PAPER_METHODS:
            found = captum_oracle.attribute(network, clip, methods=[name], settings=SETTINGS, seed=0, clip_id=clip_id)
            maps[name].append(found[name])
            scores += [faithfulness_of_one(network, clip, mask) for mask in masks_of(found[name])]
    stacked = {name: torch.stack(each) for name, each in maps.items()}
    return Outcome(stacked, np.array(scores).reshape(len(x), len(PAPER_METHODS), 2, -1))


@torch.no_grad()
def faithfulness_of_one(network: SkipCAETransformer, clip: Tensor, mask: np.ndarray) -> float:
    reconstruction = network(clip[None])[0]
    before = (reconstruction - clip).square().mean()
    replaced = torch.where(torch.from_numpy(mask).to(clip.device), reconstruction, clip)
    after = (network(replaced[None])[0] - replaced).square().mean()
    return max(0.0, 1.0 - float(after / before))


def stream(
    network: SkipCAETransformer, x: Tensor, ids: list[str], *, explained: nn.Module, precision: Precision
) -> Outcome:
    fast = fast_network(network)
    with frozen(fast), arithmetic("float32"), torch.no_grad():
        reconstruction = torch.cat([fast(part) for part in x.split(1 if x.device.type == "cpu" else 64)])
        before = mse_per_clip(reconstruction, x).double().cpu().numpy()
        maps = attribute_batch(
            explained,
            x,
            methods=PAPER_METHODS,
            settings=SETTINGS,
            seed=0,
            clip_ids=ids,
            precision=precision,
            reconstruction=reconstruction,
        )
        on_host = {name: each.cpu() for name, each in maps.items()}
        masks = [masks_of(on_host[name][clip]) for clip in range(len(x)) for name in PAPER_METHODS]
        owners = np.repeat(np.arange(len(x)), sum(map(len, masks)) // len(x))
        limit = 9 if x.device.type == "cpu" else 256
        after = errors_after_replacement(
            fast, x, reconstruction, np.concatenate(masks), owners, error_before=before, micro_batch=limit
        )
    scores = faithfulness_score(before[owners], after)
    return Outcome(maps, scores.reshape(len(x), len(PAPER_METHODS), 2, -1))


def masks_of(attribution_map: Tensor) -> np.ndarray:
    """Bool (2 P, T): frames, then segments."""
    peaks = peak_frames(curve(attribution_map), PERCENTILES)
    return np.concatenate([peaks, segment_masks(peaks, INTERVALS, FRAMES_PER_S)])


def differences(found: Outcome, expected: Outcome) -> dict[str, float]:
    figures = {}
    for name in PAPER_METHODS:
        figures[f"max_relative_difference_{name}"] = largest(found.maps[name], expected.maps[name])
        figures[f"norm_relative_difference_{name}"] = norm(found.maps[name], expected.maps[name])
    figures["max_relative_difference"] = max(figures[f"max_relative_difference_{name}"] for name in PAPER_METHODS)
    figures["norm_relative_difference"] = max(figures[f"norm_relative_difference_{name}"] for name in PAPER_METHODS)
    scores, others = found.faithfulness, expected.faithfulness
    figures["max_relative_difference_faithfulness"] = float(np.abs(scores - others).max() / np.abs(others).max())
    return figures


def worst_clip(found: Outcome, expected: Outcome) -> int:
    """Where the two ways are furthest apart, to see which of them is further from float64."""
    clips = range(len(found.faithfulness))
    return max(
        clips,
        key=lambda clip: max(
            largest(found.maps[name][clip, None], expected.maps[name][clip, None]) for name in PAPER_METHODS
        ),
    )


def precision_errors(
    network: SkipCAETransformer, x: Tensor, ids: list[str], clip: int, device: torch.device
) -> dict[str, float]:
    """Of each map of one clip against float64: Captum's plain float32 beside the stream's precisions."""
    x, ids = x[clip : clip + 1], ids[clip : clip + 1]
    double = SkipCAETransformer(network.n_mels, network.n_frames).to(device).double().eval()
    double.load_state_dict(network.state_dict())

    def maps(network: SkipCAETransformer, x: Tensor, precision: Precision) -> dict[str, Tensor]:
        return attribute_batch(
            network, x, methods=PAPER_METHODS, settings=SETTINGS, seed=0, clip_ids=ids, precision=precision
        )

    exact = maps(double, x.double(), "float32")
    plain = captum_oracle.attribute(network, x[0], methods=PAPER_METHODS, settings=SETTINGS, seed=0, clip_id=ids[0])
    found = {"captum": {name: each[None] for name, each in plain.items()}}
    precisions: tuple[Precision, ...] = (
        ("float32", "bfloat16") if device.type == "cpu" else ("float32", "tf32", "bfloat16")
    )
    found |= {precision: maps(network, x, precision) for precision in precisions}
    figures = {}
    for label, each in found.items():
        figures[f"error_{label}_max"] = max(largest(each[name], exact[name]) for name in PAPER_METHODS)
        figures[f"error_{label}_norm"] = max(norm(each[name], exact[name]) for name in PAPER_METHODS)
    return figures


def float32_floor(network: SkipCAETransformer, x: Tensor, ids: list[str]) -> dict[str, float]:
    """How far plain PyTorch is from itself: SmoothGrad's gradients with all points in one batch, and one at a time.

    No two ways to compute in float32 can be expected to agree better than this.
    """
    figures = {"max_relative_difference_pytorch_alone": 0.0, "norm_relative_difference_pytorch_alone": 0.0}
    for clip, clip_id in zip(x, ids, strict=True):
        noise, _ = Noise(0, clip_id, "smooth_grad").draw(range(SETTINGS.smooth_grad_samples), clip)
        points = clip + SETTINGS.smooth_grad_sigma * noise
        together, single = (
            torch.cat([magnitudes(network, part) for part in points.split(size)]).mean(dim=0, keepdim=True)
            for size in (len(points), 1)
        )
        for name, distance in (("max", largest), ("norm", norm)):
            key = f"{name}_relative_difference_pytorch_alone"
            figures[key] = max(figures[key], distance(together, single))
    return figures


def magnitudes(network: SkipCAETransformer, points: Tensor) -> Tensor:
    points = points.detach().requires_grad_()
    with frozen(network), arithmetic("float32"), torch.enable_grad():
        (gradients,) = torch.autograd.grad(mse_per_clip(network(points), points).sum(), points)
    return gradients.abs()


def largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference of any cell, relative to the largest value of its clip's map."""
    scale = expected.abs().amax(dim=(1, 2), keepdim=True)
    return float(((found.double() - expected).abs() / scale).max())


def norm(found: Tensor, expected: Tensor) -> float:
    """Of the difference, relative to the map's; the worst clip's."""
    return float(((found.double() - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))).max())


def throughput(
    network: SkipCAETransformer, x: Tensor, ids: list[str], seconds: float, device: torch.device
) -> dict[str, float]:
    gflop_forward, gflop_gradient = gflop_per_point(network, x[:1])
    forwards = distinct_masks(network, x, ids)
    gflop = GRADIENTS_PER_CLIP * gflop_gradient + forwards * gflop_forward
    return {
        "gflop_per_clip": gflop,
        "forwards_per_clip": forwards,
        "gflops": gflop / seconds,
        "matmul_gflops": matmul_gflops(device),
    }


def gflop_per_point(network: SkipCAETransformer, x: Tensor) -> tuple[float, float]:
    with frozen(network):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            network(x)
        with FlopCounterMode(display=False) as gradient:
            points = x.detach().requires_grad_()
            (network(points) - points).square().mean().backward()
    return forward.get_total_flops() / 1e9, gradient.get_total_flops() / 1e9


def distinct_masks(network: SkipCAETransformer, x: Tensor, ids: list[str]) -> float:
    """Forward passes that one clip needs: f(x) and each distinct mask that is not empty."""
    maps = attribute_batch(network, x[:1], methods=PAPER_METHODS, settings=SETTINGS, seed=0, clip_ids=ids[:1])
    masks = {mask.tobytes() for each in maps.values() for mask in masks_of(each[0]) if mask.any()}
    return 1.0 + len(masks)


def matmul_gflops(device: torch.device, n: int = 4096) -> float:
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)

    def product() -> None:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with arithmetic("float32"):
        return 2 * n**3 / 1e9 / min(timed(product) for _ in range(5))


def timed(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@contextmanager
def peak_memory_mib(device: torch.device) -> Iterator[list[float]]:
    """The most that the process (on a GPU: PyTorch's allocator) held above what it held before."""
    peak = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        torch.cuda.synchronize()
        peak[0] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    before_mib, done = resident_mib(), threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], resident_mib() - before_mib)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def spectrograms(n_clips: int, *, seed: int) -> Tensor:
    """Smooth noise with bands of sound: neighbours hang together, as in a normalised spectrogram."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_clips, 1, 84, 404, generator=generator)
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1)[:, 0] * 4
    smooth[:, 30:36, 120:170] += 3
    return smooth


def trained_network(steps: int, device: torch.device) -> SkipCAETransformer:
    """A few steps, so that gradients and kinks are those of a network that has learnt something."""
    torch.manual_seed(0)
    network = SkipCAETransformer().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    x = spectrograms(16, seed=1)
    for step in range(steps):
        batch = x[torch.arange(8) + 8 * (step % 2)]
        optimizer.zero_grad()
        (network(batch) - batch).square().mean().backward()
        optimizer.step()
    network.zero_grad()
    return network.eval().to(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "cpu"


def report(figures: dict[str, object]) -> None:
    for key, value in figures.items():
        print(f"{key:44s} {value:.3g}" if isinstance(value, float) else f"{key:44s} {value}")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of the stream's gradients")
    parser.add_argument("--compile", choices=get_args(Compile), default="none", help="how the stream's network is")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one clip, once, after a shorter training")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clips = min(arguments.clips, 1)
    return arguments


if __name__ == "__main__":
    main()
