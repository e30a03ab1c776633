"""The points of a batch of clips: which go through the network together, and what comes of each.

A micro-batch holds:
1. On a CPU, points of one method and one clip only. Each clip and method is cut into micro-batches in the same way
   whatever else is computed, and one thread computes each. So a map is the same to the last bit in every batch, order
   and process, with any number of threads and any other methods. With a fast form of the network it is also the same
   for any size of the micro-batch, as far as the tests can show; other networks round differently in a batch of another
   size.
2. On a GPU, any points of equally long clips: a GPU needs many at once, and its sums are not repeatable to the last
   bit anyhow.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from faithad.attribution.methods import Method, Needs, NetworkEvaluation, Points, choose_methods
from faithad.attribution.noise import Noise
from faithad.errors import ConfigError
from faithad.features import fill_up
from faithad.model.fast_network import watchable
from faithad.model.masking import mse_per_clip
from faithad.model.micro_batches import MicroBatches
from faithad.model.precision import low_precision
from faithad.scoring.score import Detector
from faithad.settings import AttributionSettings, Precision

INTEGRATED = "integrated_gradients"
_LEVELS: tuple[Needs, ...] = ("forward", "gradient", "activations")


class _Pair(NamedTuple):
    """One point of one clip; `method` is None for the clip itself."""

    clip: int
    method: Method | None
    sample: int


class _Run(NamedTuple):
    """Neighbours in a micro-batch that belong to the same clip and method."""

    clip: int
    method: Method | None
    points: Points
    evaluation: NetworkEvaluation


@dataclass
class PointStream:
    """The points of a batch of clips, and their evaluation; the fields are the arguments of `attribute_batch`."""

    network: nn.Module
    x: Tensor
    methods: list[Method]
    settings: AttributionSettings
    seed: int
    clip_ids: Sequence[str]
    n_frames: list[int]
    precision: Precision
    reconstruction: Tensor | None
    score: Detector | None
    normals: Tensor | None

    def __post_init__(self) -> None:
        self.methods_at_the_clip = [method for method in self.methods if method.points is None]
        self.methods_elsewhere = [method for method in self.methods if method.points is not None]
        needs: list[Needs] = [method.needs for method in self.methods_at_the_clip]
        if any(method.needs == "forward" for method in self.methods_elsewhere):
            needs.append("forward")
        self.needs_at_the_clip: Needs | None = max(needs, key=_LEVELS.index, default=None)
        # The last output of the layer that Grad-CAM explains, of each thread its own.
        self.watched = threading.local()

    def maps(self, limit: int) -> dict[str, Tensor]:
        """The maps (B, F, T) of all methods, with at most `limit` points in one pass."""
        maps = {method.name: torch.zeros_like(self.x) for method in self.methods}
        with self.watching():
            batches = MicroBatches(self.evaluate, limit=limit, device=self.x.device)
            at_the_clips: dict[int, NetworkEvaluation] = {}
            for _, runs in batches.results(self.groups()):
                for run in runs:
                    if run.method is None:
                        at_the_clips[run.clip] = NetworkEvaluation(run.evaluation.error, run.evaluation.reconstruction)
                    for method in [run.method] if run.method else self.methods_at_the_clip:
                        part = method.reduce(run.points, run.evaluation, at_the_clips.get(run.clip))
                        maps[method.name][run.clip, :, : self.n_frames[run.clip]] += part
        return maps

    def integrated_gradients(self, clips: list[int], steps: int) -> PointStream:
        """The same for some of the clips, this method and this many steps alone."""
        return replace(
            self,
            x=self.x[clips],
            methods=choose_methods([INTEGRATED]),
            settings=replace(self.settings, integrated_gradients_steps=steps),
            clip_ids=[self.clip_ids[clip] for clip in clips],
            n_frames=[self.n_frames[clip] for clip in clips],
            reconstruction=None,
        )

    def groups(self) -> Iterator[list[_Pair]]:
        """Pairs that may go through the network together, the clips themselves first."""
        clips = range(len(self.x))
        n_mels = self.x.shape[1]
        themselves = [_Pair(clip, None, 0) for clip in clips] if self.needs_at_the_clip else []
        others = [
            _Pair(clip, method, sample)
            for clip in clips
            for method in self.methods_elsewhere
            for sample in range(method.n_points(self.settings, (n_mels, self.n_frames[clip])))
        ]
        if not _spans_clips(self.x.device):
            yield from (list(group) for _, group in groupby(themselves + others, key=_clip_and_method))
            return
        for n_frames in sorted(set(self.n_frames)):
            yield [pair for pair in themselves if self.n_frames[pair.clip] == n_frames]
        for needs, n_frames in product(_LEVELS, sorted(set(self.n_frames))):
            yield [
                pair
                for pair in others
                if pair.method and pair.method.needs == needs and self.n_frames[pair.clip] == n_frames
            ]

    def evaluate(self, pairs: Sequence[_Pair]) -> list[_Run]:
        """All pairs in one pass; they need the same of the network, and their clips are equally long."""
        n_frames = self.n_frames[pairs[0].clip]
        labels, points = [], []
        for (clip, _), group in groupby(pairs, key=_clip_and_method):
            run = list(group)
            labels.append((clip, run[0].method))
            points.append(self._points(run))
        method = pairs[0].method
        needs = method.needs if method else self.needs_at_the_clip
        if method is None and needs == "forward" and self.reconstruction is not None and self.score is None:
            clips = [pair.clip for pair in pairs]
            evaluation = _compare(self.x[clips, :, :n_frames], self.reconstruction[clips, :, :n_frames])
        else:
            clip_ids = [self.clip_ids[pair.clip] for pair in pairs]
            evaluation = self._evaluate(torch.cat([part.at for part in points]), needs or "forward", clip_ids)
            if method is None and self.reconstruction is not None:
                reconstruction = self.reconstruction[[pair.clip for pair in pairs], :, :n_frames]
                evaluation = evaluation._replace(reconstruction=reconstruction)
        runs, start = [], 0
        for (clip, method), part in zip(labels, points, strict=True):
            stop = start + len(part.at)
            runs.append(_Run(clip, method, part, _rows(evaluation, slice(start, stop))))
            start = stop
        return runs

    def _points(self, run: list[_Pair]) -> Points:
        clip, method, _ = run[0]
        own = self.x[clip, :, : self.n_frames[clip]]
        if method is None or method.points is None:
            at = own[None]
            return Points(at, torch.ones_like(at[:, :1, :1]))
        noise = Noise(self.seed, self.clip_ids[clip], method.name, self.normals)
        return method.points(own, [pair.sample for pair in run], self.settings, noise)

    def _evaluate(self, points: Tensor, needs: Needs, clip_ids: Sequence[str]) -> NetworkEvaluation:
        if needs == "forward":
            with torch.no_grad():
                return self._errors(self.network, points, clip_ids)
        vars(self.watched).pop("output", None)  # of a pass without gradients
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            network = watchable(self.network) if needs == "activations" else self.network
            evaluation = self._errors(network, points, clip_ids)
            error, reconstruction = evaluation.error, evaluation.reconstruction
            cells = None if evaluation.cells is None else evaluation.cells.detach()
            # Taken away in any case: it holds the whole graph.
            activation: Tensor | None = vars(self.watched).pop("output", None)
            if needs == "gradient":
                (gradient,) = torch.autograd.grad(error.sum(), points)
                return NetworkEvaluation(error.detach(), reconstruction.detach(), gradient, cells=cells)
            if activation is None:
                raise ConfigError(
                    f"{type(network).__name__} does not call the layer that its attribute grad_cam_layer names, "
                    f"{network.grad_cam_layer!r}, when it is called itself. Name a layer that it calls, or leave the "
                    "methods out that explain a layer, such as grad_cam."
                )
            gradients = torch.autograd.grad(error.sum(), (points, activation))
        seen = (error.detach(), reconstruction.detach(), gradients[0], activation.detach(), gradients[1])
        return NetworkEvaluation(*seen, network_frames=self.x.shape[2], cells=cells)

    def _errors(self, network: nn.Module, points: Tensor, clip_ids: Sequence[str]) -> NetworkEvaluation:
        """The explained error of each point, and the reconstruction."""
        if self.score is None:
            return _compare(points, self._reconstruct(network, points))
        with torch.no_grad():
            reconstruction = self._reconstruct(network, points)
        # Not the compiled form, which has no other error than that of the reconstruction.
        detector = replace(self.score, network=watchable(network))
        with low_precision(self.precision, points.device):
            cells = detector.cells(fill_up(points, self.x.shape[2]), clip_ids)[..., : points.shape[2]]
        return NetworkEvaluation(detector.pool(cells).to(points.dtype), reconstruction, cells=cells)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Keep each output of the layer that Grad-CAM explains, if a method needs it.

        Raises:
            ConfigError: a method needs it, and the network does not name the layer.
        """
        network = watchable(self.network)
        layer = grad_cam_layer(network, self.methods)
        if layer is None:
            yield
            return
        hook = layer.register_forward_hook(lambda _, inputs, output: setattr(self.watched, "output", output))
        try:
            yield
        finally:
            hook.remove()

    def _reconstruct(self, network: nn.Module, points: Tensor) -> Tensor:
        filled = fill_up(points, self.x.shape[2])
        with low_precision(self.precision, points.device):
            reconstruction: Tensor = network(filled)
        if reconstruction.shape != filled.shape:
            raise ConfigError(
                f"The network must map (clips, mel bands, frames) to the same shape; it maps {tuple(filled.shape)} to "
                f"{tuple(reconstruction.shape)}."
            )
        return reconstruction[..., : points.shape[2]].to(points.dtype)


def grad_cam_layer(network: nn.Module, methods: Iterable[Method]) -> nn.Module | None:
    """The layer of a network that some of the methods explain; None if none of them explains a layer.

    Raises:
        ConfigError: a method explains a layer, and the network does not name one of its layers.
    """
    names = ", ".join(method.name for method in methods if method.needs == "activations")
    if not names:
        return None
    layer = getattr(network, "grad_cam_layer", None)
    layers: dict[Any, nn.Module] = dict(network.named_modules())
    if layer not in layers:
        raise ConfigError(
            f"{names} explains one layer of a network, and {type(network).__name__} does not say which: its "
            f"attribute grad_cam_layer is {layer!r} and must be the name of one of its layers, such as "
            f"{list(layers)[-1]!r}, whose output is (clips, channels, height, width). Or leave {names} out of the "
            "methods."
        )
    return layers[layer]


def _compare(points: Tensor, reconstruction: Tensor) -> NetworkEvaluation:
    return NetworkEvaluation(mse_per_clip(reconstruction, points), reconstruction)


def _rows(evaluation: NetworkEvaluation, rows: slice) -> NetworkEvaluation:
    parts = (part[rows] if isinstance(part, Tensor) else part for part in evaluation)
    return NetworkEvaluation(*parts)  # type: ignore[arg-type]


def _clip_and_method(pair: _Pair) -> tuple[int, str]:
    return pair.clip, pair.method.name if pair.method else ""


def _spans_clips(device: torch.device) -> bool:
    """Whether points of several clips and methods share a micro-batch."""
    return device.type != "cpu"
