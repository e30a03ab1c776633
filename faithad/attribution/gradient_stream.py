"""All methods of many clips as one stream of points.

Every (clip, point) pair of a batch goes through the network once, in micro-batches, and is reduced to its clip's map as
soon as it is there: memory depends on the micro-batch, not on the clips nor on their points. Methods that look at the
clip itself share one pass.

What goes through together:
1. On a CPU, points of one method and one clip only, cut in the same way whatever is computed beside them, each part by
   one thread. So a map is the same to the last bit in every batch, order and process, with any number of threads and
   any other methods. Across micro-batch sizes too, with `FastNetwork`, as far as its tests can show; elsewhere products
   round differently in a batch of another size.
2. On a GPU, which needs many points at once and whose sums are not repeatable to the last bit anyhow, any points.

Two float32 ways to compute a gradient may differ by more than rounding: where an activation or a maximum is rounded to
the other side of its kink, the gradient at that point jumps. In float64 all ways agree.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from faithad.attribution.methods import Evaluation, Method, Needs, Points, choose_methods
from faithad.attribution.noise import Noise
from faithad.errors import ConfigError
from faithad.model.fast_network import ExplainedNetwork, arithmetic, fast_network, watchable
from faithad.model.masking import mse_per_clip
from faithad.model.micro_batches import MicroBatches
from faithad.settings import AttributionSettings, Precision

# A gradient at one point of a planer clip (80, 400) needs 25 MB. More at once are no faster on a CPU; nine at the most
# cut the paper's 25, 50 and 25 points evenly.
CPU_MICRO_BATCH = 9
GPU_MICRO_BATCH = 256
_LEVELS: tuple[Needs, ...] = ("forward", "gradient", "activations")


class _Pair(NamedTuple):
    """One point of one clip. Without a method: the clip itself."""

    clip: int
    method: Method | None
    sample: int


class _Run(NamedTuple):
    """Neighbours in a micro-batch that belong to the same clip and method."""

    clip: int
    method: Method | None
    points: Points
    found: Evaluation


def attribute_batch(
    network: ExplainedNetwork,
    x: Tensor,
    *,
    methods: Iterable[str],
    settings: AttributionSettings,
    seed: int,
    clip_ids: Sequence[str],
    micro_batch: int | None = None,
    precision: Precision = "float32",
    reconstruction: Tensor | None = None,
) -> dict[str, Tensor]:
    """The maps of many clips.

    The network's mode and flags are afterwards as they were; no global generator is touched, no graph is left.

    Args:
        network: on the device of x. Who explains several batches gives `fast_network(network, precision)`, so that
            it is made once.
        x: (B, F, T), what the network takes in.
        methods: names from `METHODS`.
        settings: the constants of the methods.
        seed: of the noise, together with each clip's id.
        clip_ids: B names; the same clip has the same noise whatever is computed before or beside it.
        micro_batch: spectrograms in one pass, at the most (on a CPU: per thread). None: what suits the device.
        precision: of matrix products and convolutions, see `faithad.model.fast_network`.
        reconstruction: f(x), (B, F, T), where it is known. The error map is taken from it.

    Returns:
        One map (B, F, T) per method, in the order of `methods`, without a graph.

    Raises:
        ConfigError: a method is unknown, or shapes do not fit together.
    """
    chosen = choose_methods(methods)
    _check(network, x, clip_ids, reconstruction, micro_batch)
    limit = micro_batch or (CPU_MICRO_BATCH if x.device.type == "cpu" else GPU_MICRO_BATCH)
    # Gradients are switched on where they are taken; whatever is computed outside must not leave a graph behind.
    with frozen(network), arithmetic(precision), torch.inference_mode(False), torch.no_grad():
        x = x.detach().clone()
        if reconstruction is not None:
            reconstruction = reconstruction.detach().clone()
        maps = {method.name: torch.zeros_like(x) for method in chosen}
        with _Points(fast_network(network, precision), x, chosen, settings, seed, clip_ids, reconstruction) as points:
            batches = MicroBatches(points.evaluate, limit=limit, device=x.device)
            at_the_clips: dict[int, Evaluation] = {}
            for _, runs in batches.results(points.groups()):
                for run in runs:
                    if run.method is None:
                        at_the_clips[run.clip] = Evaluation(run.found.error, run.found.reconstruction)
                    for method in [run.method] if run.method else points.methods_at_the_clip:
                        part = method.reduce(run.points, run.found, at_the_clips.get(run.clip))
                        maps[method.name][run.clip] += part
    return maps


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the weights; both are put back as they were, module by module."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval()
        network.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


class _Points:
    """The points of a batch of clips, and how they are evaluated."""

    def __init__(
        self,
        network: ExplainedNetwork,
        x: Tensor,
        methods: list[Method],
        settings: AttributionSettings,
        seed: int,
        clip_ids: Sequence[str],
        reconstruction: Tensor | None,
    ) -> None:
        self.network, self.x, self.settings, self.reconstruction = network, x, settings, reconstruction
        self.seed, self.clip_ids = seed, clip_ids
        self.methods_at_the_clip = [method for method in methods if method.points is None]
        self.methods_elsewhere = [method for method in methods if method.points is not None]
        needs: list[Needs] = [method.needs for method in self.methods_at_the_clip]
        if any(method.needs == "forward" for method in self.methods_elsewhere):
            needs.append("forward")
        self.needs_at_the_clip: Needs | None = max(needs, key=_LEVELS.index, default=None)
        self.layer = _WatchedLayer(network)

    def groups(self) -> Iterator[list[_Pair]]:
        """Pairs that may go through the network together, the clips themselves first."""
        clips = range(len(self.x))
        shape = self.x.shape[1], self.x.shape[2]
        themselves = [_Pair(clip, None, 0) for clip in clips] if self.needs_at_the_clip else []
        others = [
            _Pair(clip, method, sample)
            for clip in clips
            for method in self.methods_elsewhere
            for sample in range(method.n_points(self.settings, shape))
        ]
        if not _spans_clips(self.x.device):
            yield from (list(group) for _, group in groupby(themselves + others, key=_clip_and_method))
            return
        yield themselves
        for needs in _LEVELS:
            yield [pair for pair in others if pair.method and pair.method.needs == needs]

    def evaluate(self, pairs: Sequence[_Pair]) -> list[_Run]:
        """All pairs in one pass; they need the same of the network."""
        labels, points = [], []
        for (clip, _), group in groupby(pairs, key=_clip_and_method):
            run = list(group)
            labels.append((clip, run[0].method))
            points.append(self._points(run))
        method = pairs[0].method
        needs = method.needs if method else self.needs_at_the_clip
        if method is None and needs == "forward" and self.reconstruction is not None:
            clips = [pair.clip for pair in pairs]
            found = _compare(self.x[clips], self.reconstruction[clips])
        else:
            found = self._evaluate(torch.cat([each.at for each in points]), needs or "forward")
            if method is None and self.reconstruction is not None:
                found = found._replace(reconstruction=self.reconstruction[[pair.clip for pair in pairs]])
        runs, start = [], 0
        for (clip, method), each in zip(labels, points, strict=True):
            stop = start + len(each.at)
            runs.append(_Run(clip, method, each, _rows(found, slice(start, stop))))
            start = stop
        return runs

    def _points(self, run: list[_Pair]) -> Points:
        clip, method, _ = run[0]
        if method is None or method.points is None:
            at = self.x[clip : clip + 1]
            return Points(at, torch.ones_like(at[:, :1, :1]))
        noise = Noise(self.seed, self.clip_ids[clip], method.name)
        return method.points(self.x[clip], [pair.sample for pair in run], self.settings, noise)

    def _evaluate(self, points: Tensor, needs: Needs) -> Evaluation:
        if needs == "forward":
            with torch.no_grad():
                return _compare(points, self.network(points))
        with torch.enable_grad(), self.layer.outputs(wanted=needs == "activations") as activations:
            points = points.detach().requires_grad_()
            network = watchable(self.network) if needs == "activations" else self.network
            found = _compare(points, network(points))
            gradient, *rest = torch.autograd.grad(found.error.sum(), [points, *activations])
        return Evaluation(
            found.error.detach(),
            found.reconstruction.detach(),
            gradient,
            activations[0].detach() if activations else None,
            rest[0] if rest else None,
        )

    def __enter__(self) -> _Points:
        self.layer.watch()
        return self

    def __exit__(self, *exception: object) -> None:
        self.layer.leave()


class _WatchedLayer:
    """Catches the output of the layer that Grad-CAM explains, for the thread that wants it."""

    def __init__(self, network: ExplainedNetwork) -> None:
        self._layer = network.grad_cam_layer
        self._mine = threading.local()

    def watch(self) -> None:
        self._handle = self._layer.register_forward_hook(self._catch)

    def leave(self) -> None:
        self._handle.remove()

    @contextlib.contextmanager
    def outputs(self, *, wanted: bool) -> Iterator[list[Tensor]]:
        caught: list[Tensor] = []
        try:
            self._mine.caught = caught if wanted else None
            yield caught
        finally:
            self._mine.caught = None

    def _catch(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        caught = getattr(self._mine, "caught", None)
        if caught is not None:
            caught.append(output)


def _spans_clips(device: torch.device) -> bool:
    """Whether points of several clips and methods share a micro-batch."""
    return device.type != "cpu"


def _compare(points: Tensor, reconstruction: Tensor) -> Evaluation:
    return Evaluation(mse_per_clip(reconstruction, points), reconstruction)


def _rows(found: Evaluation, rows: slice) -> Evaluation:
    return Evaluation(*(None if each is None else each[rows] for each in found))  # type: ignore[arg-type]


def _clip_and_method(pair: _Pair) -> tuple[int, str]:
    return pair.clip, pair.method.name if pair.method else ""


def _check(
    network: ExplainedNetwork,
    x: Tensor,
    clip_ids: Sequence[str],
    reconstruction: Tensor | None,
    micro_batch: int | None,
) -> None:
    if x.ndim != 3 or x.shape[1:] != (network.n_mels, network.n_frames):
        raise ConfigError(
            f"The network explains clips of {network.n_mels} mel bands x {network.n_frames} frames and was given "
            f"{tuple(x.shape)}; the first axis counts the clips."
        )
    if len(clip_ids) != len(x):
        raise ConfigError(
            f"{len(x)} clips need as many ids, which their noise is keyed by; {len(clip_ids)} were given."
        )
    if reconstruction is not None and reconstruction.shape != x.shape:
        raise ConfigError(
            f"The reconstruction must have the clips' shape {tuple(x.shape)}, found {tuple(reconstruction.shape)}."
        )
    if micro_batch is not None and micro_batch < 1:
        raise ConfigError(f"micro_batch must be at least 1, found {micro_batch}.")
