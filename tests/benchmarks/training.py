"""How fast a training is: as published, this one, and a bare PyTorch loop; and by how many workers and trainings.

    python tests/benchmarks/training.py [--clips 256] [--threads N] [--device cpu|cuda] [--quick]
        [--precision float32|tf32|bfloat16] [--optimizer adamw|fused_adamw] [--compile MODE]

One process, one set of clips of 80 x 400, batches of 32. The published way: each item of a Dataset is cut into patches
and masked in Python, a DataLoader collates. The bare loop takes clips and masks that lie ready in memory; it shares
network, layout, precision and optimiser with this one. The ways take turns; times are medians. Then the same training
in processes of its own, on their share of the threads: one worker, two workers, four trainings side by side. The
figures are printed and written to runs/bench/training.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from attribution import device_name, peak_memory_mib, spectrograms
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from faithad.model.masking import apply_mask, cells_of, masked_mse, patch_masks
from faithad.model.optimization import new_optimizer
from faithad.model.precision import arithmetic, low_precision
from faithad.model.shared_batch_norm import share_batch_norm
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.training import Training
from faithad.settings import TrainingSettings

OUTPUT = Path("runs/bench/training.json")
RATIO, PATCH, BATCH = 0.30, 4, 32
# Published: 4,327 clips in 47 s, on a GPU.
PUBLISHED_CLIPS_PER_S = 4_327 / 47


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.out is not None:
        be_a_worker(arguments)
        return
    device = torch.device(arguments.device)
    clips = spectrograms(arguments.clips, seed=1)
    print(
        f"{len(clips)} clips of 80 x 400, {arguments.threads} threads, {device}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    training = Timed(tuned_network(arguments), clips.to(device), clips[:1].to(device), settings_of(arguments))
    ways = {
        "published": published_epochs(clips, device),
        "this": training.train,
        "bare": bare_epochs(clips.to(device), arguments),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory = dict.fromkeys(ways, 0.0)
    for repetition in range(arguments.repetitions + 1):
        for name, epoch in ways.items():
            with peak_memory_mib(device) as peak:
                took = timed(epoch, device)
            memory[name] = max(memory[name], peak[0])
            if repetition:  # the first one warms up
                seconds[name].append(took)
                print(f"  {repetition}. {name:9s} {len(clips) / took:7.1f} clips/s", flush=True)

    rate = {name: len(clips) / statistics.median(times) for name, times in seconds.items()}
    ratios = [bare / this for bare, this in zip(seconds["bare"], seconds["this"], strict=True)]
    figures = {
        "threads": arguments.threads,
        "device": device_name(device),
        "n_clips": len(clips),
        "precision": arguments.precision,
        "optimizer": arguments.optimizer,
        "compile": arguments.compile,
        "load": os.getloadavg()[0],
        "clips_per_s": rate["this"],
        "published_clips_per_s": rate["published"],
        "bare_clips_per_s": rate["bare"],
        "ratio_to_published": rate["this"] / rate["published"],
        # Of neighbours in time: another process that takes a core slows both.
        "ratio_to_bare": statistics.median(ratios),
        "share_outside_forward_backward_step": training.share_outside(),
        "share_of_masking": masking_s(clips, device) / statistics.median(seconds["this"]),
        "peak_memory_mib": memory["this"],
        "published_peak_memory_mib": memory["published"],
    }
    if device.type == "cuda":
        figures["ratio_to_published_figure"] = rate["this"] / PUBLISHED_CLIPS_PER_S
    del training, ways
    report({**figures, **in_processes(arguments)})


class Timed(Training):
    """Trains epoch after epoch, without validation, and tells the time outside of its steps."""

    n_epochs = 0
    learning_s = epoch_s = 0.0

    def train(self) -> None:
        self.n_epochs += 1
        self._train_epoch(self.n_epochs)

    def share_outside(self) -> float:
        """Of one more epoch, in which the host waits for the device before and after each step."""
        self.learning_s = 0.0
        self.epoch_s = timed(self.train, self._device)
        return 1 - self.learning_s / self.epoch_s

    def _learn(self, x: Tensor, mask: Tensor | None, *, batch_size: int) -> Tensor:
        synchronize(self._device)
        started = time.perf_counter()
        losses = super()._learn(x, mask, batch_size=batch_size)
        synchronize(self._device)
        self.learning_s += time.perf_counter() - started
        return losses


class MaskedItems(Dataset[tuple[Tensor, Tensor]]):
    """As the published experiment does: a patch at a time, in Python, for each item."""

    def __init__(self, clips: Tensor) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.clips[index]
        mask = torch.zeros_like(x)
        corners = [(f, t) for f in range(0, x.shape[0], PATCH) for t in range(0, x.shape[1], PATCH)]
        for f, t in random.sample(corners, int(RATIO * len(corners))):
            mask[f : f + PATCH, t : t + PATCH] = 1
        return x, mask


def published_epochs(clips: Tensor, device: torch.device) -> Callable[[], None]:
    torch.manual_seed(0)
    random.seed(0)
    network = SkipCAETransformer().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    loader = DataLoader(MaskedItems(clips), batch_size=BATCH, shuffle=True)

    def epoch() -> None:
        for x, mask in loader:
            x, mask = x.to(device), mask.to(device)
            y = network(x * (1 - mask))
            loss = ((y - x).square() * mask).sum() / mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def bare_epochs(clips: Tensor, arguments: argparse.Namespace) -> Callable[[], None]:
    network = new_network(arguments)
    optimizer = new_optimizer(network, settings_of(arguments))
    masks = patch_masks(torch.arange(len(clips), device=clips.device), 80, 400, patch=PATCH, ratio=RATIO, key=0)
    batches = list(zip(clips.split(BATCH), masks.split(BATCH), strict=True))

    def epoch() -> None:
        with arithmetic(arguments.precision):
            for x, mask in batches:
                with low_precision(arguments.precision, x.device):
                    y = network(apply_mask(x, mask))
                optimizer.zero_grad()
                masked_mse(y.float(), x, mask).mean().backward()
                optimizer.step()

    return epoch


def masking_s(clips: Tensor, device: torch.device) -> float:
    """The masks of one epoch, drawn and spread, as `Training` does; the least of several."""
    numbers = torch.arange(len(clips), device=device)
    training = Training(nn.Linear(1, 1).to(device), clips.to(device), clips[:1].to(device), settings_of(None))

    def masks() -> None:
        drawn = training._hidden_patches(numbers, "masks", 1)
        assert drawn is not None
        for patches in drawn.split(BATCH):
            cells_of(patches, PATCH)

    return min(timed(masks, device) for _ in range(5))


def in_processes(arguments: argparse.Namespace) -> dict[str, float]:
    """Clips per second of trainings in processes of their own."""
    threads = arguments.threads
    figures = {"one_process_clips_per_s": rate_of(arguments, trainings=1, workers=1, threads=threads)}
    if arguments.device == "cpu" and threads >= 2:
        half = threads // 2
        alone = rate_of(arguments, trainings=1, workers=1, threads=half)
        together = rate_of(arguments, trainings=1, workers=2, threads=half)
        figures |= {
            "worker_threads": half,
            "one_worker_clips_per_s": alone,
            "two_workers_clips_per_s": together,
            "two_workers_to_one": together / alone,
            "two_workers_to_one_on_all_threads": together / figures["one_process_clips_per_s"],
        }
    n = 4
    each = max(1, threads // n) if arguments.device == "cpu" else threads
    figures["four_trainings_clips_per_s"] = rate_of(arguments, trainings=n, workers=1, threads=each)
    figures["four_trainings_to_one"] = figures["four_trainings_clips_per_s"] / figures["one_process_clips_per_s"]
    return figures


def rate_of(arguments: argparse.Namespace, *, trainings: int, workers: int, threads: int) -> float:
    """Clips per second of all trainings together, each by so many workers, each with so many threads."""
    passed_on = [f"--{name}={getattr(arguments, name)}" for name in ("device", "precision", "optimizer", "compile")]
    passed_on += [f"--clips={arguments.clips}", f"--repetitions={arguments.repetitions}", f"--threads={threads}"]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, *passed_on, f"--out={folder}"],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(workers),
                    "TRAINING": str(training),
                    "TRAININGS": str(trainings),
                    "GLOO_SOCKET_IFNAME": "lo",
                    "OMP_NUM_THREADS": str(threads),
                },
            )
            for training in range(trainings)
            for rank in range(workers)
        ]
        try:
            if failed := [process.args for process in processes if process.wait()]:
                raise SystemExit(f"failed: {failed[0]}")
        finally:
            for process in processes:
                process.kill()
        rates = [json.loads(path.read_text()) for path in Path(folder).glob("rate-*.json")]
    print(
        f"  {trainings} training(s), {workers} worker(s), {threads} threads each: {sum(rates):.1f} clips/s", flush=True
    )
    return sum(rates)


def be_a_worker(arguments: argparse.Namespace) -> None:
    """One process of `rate_of`; rank 0 of each training writes its rate."""
    rank, workers, training, trainings = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TRAINING", "TRAININGS")
    )
    folder = Path(arguments.out)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{training}", rank=rank, world_size=workers)
    begin = dist.FileStore(str(folder / "begin"), trainings * workers)
    rate = worker_rate(arguments, rank, workers, lambda: wait_for_all(begin, trainings * workers))
    if rank == 0:
        (folder / f"rate-{training}.json").write_text(json.dumps(rate))
    if workers > 1:
        dist.destroy_process_group()


def worker_rate(arguments: argparse.Namespace, rank: int, workers: int, wait: Callable[[], None]) -> float:
    device, network = torch.device(arguments.device), tuned_network(arguments, workers)
    if workers > 1:
        network = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
    clips = spectrograms(arguments.clips, seed=1).to(device)
    training = Timed(network, clips, clips[:1], settings_of(arguments), rank=rank, workers=workers)
    training.train()
    wait()
    seconds = timed(lambda: [training.train() for _ in range(arguments.repetitions)], device)
    return arguments.repetitions * len(clips) / seconds


def wait_for_all(store: dist.FileStore, n: int) -> None:
    store.add("ready", 1)
    while store.add("ready", 0) < n:
        time.sleep(0.01)


def tuned_network(arguments: argparse.Namespace, workers: int = 1) -> nn.Module:
    """As pipelines.training.worker.new_network makes it, which would need Ray."""
    network = new_network(arguments)
    if workers > 1 or (arguments.device == "cpu" and arguments.compile == "none"):
        share_batch_norm(network)
    return network


def new_network(arguments: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    network = SkipCAETransformer().to(arguments.device, memory_format=torch.channels_last)
    if arguments.compile != "none":
        network.compile(mode=arguments.compile)
    return network


def settings_of(arguments: argparse.Namespace | None) -> TrainingSettings:
    return TrainingSettings(
        epochs=500,
        batch_size=BATCH,
        learning_rate=1e-3,
        minimum_learning_rate=1e-5,
        weight_decay=0.01,
        restart_period=5,
        patience=30,
        minimum_improvement=1e-5,
        mask_ratio=RATIO,
        patch=PATCH,
        seed=0,
        precision="float32" if arguments is None else arguments.precision,
        optimizer="adamw" if arguments is None else arguments.optimizer,
    )


def timed(function: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(figures: dict[str, object]) -> None:
    for key, value in figures.items():
        print(f"{key:44s} {value:.3g}" if isinstance(value, float) else f"{key:44s} {value}")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256, help="a multiple of 32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--optimizer", choices=("adamw", "fused_adamw"), default="adamw")
    parser.add_argument("--compile", default="none")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two batches, once")
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clips, arguments.repetitions = 2 * BATCH, 1
    return arguments


if __name__ == "__main__":
    main()
