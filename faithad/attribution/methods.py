"""The attribution methods as one table, and what every engine that computes them agrees on.

The explained scalar of a clip x (F mel bands, T frames) is its own anomaly score E(x) = mean((f(x) - x)²), with x at
both places and nothing detached (Deschênes et al. 2026, arXiv 2601.12660). Every method looks at E, or at its gradient,
at one or more points, and sums a contribution of each point to a map (F, T). Methods without points of their own look
at the clip itself and share one pass.

Contents
    METHODS                 the table: a new method is a row here, two functions at the most, and nothing elsewhere
    PAPER_METHODS           the six of the published experiment
    AttributionSettings     the constants; defaults are those of the published experiment
    choose_methods          names to rows
    frozen                  a network without dropout and without weight gradients, for the time of a call

Shape letters: N points of one clip. The baseline of the path methods and of occlusion is zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.attribution.noise import Noise
from faithad.errors import ConfigError
from faithad.model.micro_batches import sent
from faithad.settings import AttributionSettings

Needs = Literal["forward", "gradient", "activations"]
_Value = TypeVar("_Value")


class Points(NamedTuple):
    """Where a method looks.

    Attributes:
        at: (N, F, T).
        factor: what each point's gradient, or drop in error, counts for: broadcasts to (N, F, T).
    """

    at: Tensor
    factor: Tensor


class Evaluation(NamedTuple):
    """What the network says at N points; None is what was not asked for.

    Attributes:
        error: E, (N,).
        reconstruction: f, (N, F, T).
        gradient: of E at each point, (N, F, T).
        activation: output of the layer that Grad-CAM explains, (N, channels, height, width).
        activation_gradient: of E in that output.
    """

    error: Tensor
    reconstruction: Tensor
    gradient: Tensor | None = None
    activation: Tensor | None = None
    activation_gradient: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: in configurations and tables.
        title: in reports.
        reference: where it comes from.
        signed: the map tells cells that raise the error from cells that lower it.
        needs: of each point: E by a forward pass, its gradient too, or also the layer that Grad-CAM explains.
        reduce: (points, what was found there, error and reconstruction of the clip itself) to a part of the map,
            (F, T). The map is the sum of all parts. The clip itself is evaluated where a method looks there or needs
            forward passes only; else it is None.
        points: (clip (F, T), numbers of the points wanted, settings, noise) to those points; None for the clip itself.
        n_points: (settings, (F, T)) to how many points there are beside the clip itself.
        stochastic: the map depends on noise, hence on a seed.
    """

    name: str
    title: str
    reference: str
    signed: bool
    needs: Needs
    reduce: Callable[[Points, Evaluation, Evaluation | None], Tensor]
    points: Callable[[Tensor, Sequence[int], AttributionSettings, Noise], Points] | None = None
    n_points: Callable[[AttributionSettings, tuple[int, int]], int] = lambda settings, shape: 0
    stochastic: bool = False


def _squared_error(points: Points, found: Evaluation, clip: Evaluation | None) -> Tensor:
    return (found.reconstruction - points.at).square().sum(dim=0)


def _gradients(points: Points, found: Evaluation, clip: Evaluation | None) -> Tensor:
    return (points.factor * _given(found.gradient)).sum(dim=0)


def _magnitudes(points: Points, found: Evaluation, clip: Evaluation | None) -> Tensor:
    return (points.factor * _given(found.gradient).abs()).sum(dim=0)


def _input_times_gradient(points: Points, found: Evaluation, clip: Evaluation | None) -> Tensor:
    return (points.at * _given(found.gradient)).sum(dim=0)


def _weighted_channels(points: Points, found: Evaluation, clip: Evaluation | None) -> Tensor:
    # Without a ReLU: the channels that lower the error count as much as those that raise it.
    weights = _given(found.activation_gradient).mean(dim=(2, 3), keepdim=True)
    coarse = (weights * _given(found.activation)).sum(dim=1, keepdim=True)
    return functional.interpolate(coarse, points.at.shape[1:], mode="bilinear", align_corners=False)[:, 0].sum(dim=0)


def _drops(points: Points, found: Evaluation, clip: Evaluation | None) -> Tensor:
    drops = _given(clip).error - found.error
    return (points.factor * drops[:, None, None]).sum(dim=0)


def _noisy_copies(clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise) -> Points:
    normal, _ = noise.draw(samples, clip)
    return Points(clip + settings.smooth_grad_sigma * normal, _full(1 / settings.smooth_grad_samples, clip))


def _gauss_legendre_path(clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise) -> Points:
    nodes, weights = _gauss_legendre(settings.integrated_gradients_steps)
    chosen = list(samples)
    return Points(_column(nodes[chosen], clip) * clip, _column(weights[chosen], clip) * clip)


def _noisy_places_on_the_path(
    clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise
) -> Points:
    normal, alphas = noise.draw(samples, clip)
    noisy = clip + settings.gradient_shap_sigma * normal
    return Points(alphas * noisy, noisy / settings.gradient_shap_samples)


def _without_a_patch(clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise) -> Points:
    height, width = settings.occlusion_bands, settings.occlusion_frames
    bands, frames = (torch.arange(size, device=clip.device) for size in clip.shape)
    across = -(-len(frames) // width)
    patch = (bands // height)[:, None] * across + (frames // width)[None, :]
    hidden = patch == torch.tensor(samples, device=clip.device)[:, None, None]
    return Points(torch.where(hidden, 0, clip), hidden.to(clip.dtype))


_TABLE = (
    Method(
        name="error_map",
        title="Error map",
        reference="Deschênes et al. 2026, arXiv 2601.12660",
        signed=False,
        needs="forward",
        reduce=_squared_error,
    ),
    Method(
        name="saliency",
        title="Saliency",
        reference="Simonyan et al. 2014, arXiv 1312.6034",
        signed=False,
        needs="gradient",
        reduce=_magnitudes,
    ),
    Method(
        name="smooth_grad",
        title="SmoothGrad",
        reference="Smilkov et al. 2017, arXiv 1706.03825",
        signed=False,
        stochastic=True,
        needs="gradient",
        n_points=lambda settings, shape: settings.smooth_grad_samples,
        points=_noisy_copies,
        reduce=_magnitudes,
    ),
    Method(
        name="integrated_gradients",
        title="Integrated Gradients",
        reference="Sundararajan et al. 2017, arXiv 1703.01365",
        signed=True,
        needs="gradient",
        n_points=lambda settings, shape: settings.integrated_gradients_steps,
        points=_gauss_legendre_path,
        reduce=_gradients,
    ),
    Method(
        name="gradient_shap",
        title="GradSHAP",
        reference="Lundberg and Lee 2017, arXiv 1705.07874",
        signed=True,
        stochastic=True,
        needs="gradient",
        n_points=lambda settings, shape: settings.gradient_shap_samples,
        points=_noisy_places_on_the_path,
        reduce=_gradients,
    ),
    Method(
        name="grad_cam",
        title="Grad-CAM",
        reference="Selvaraju et al. 2017, arXiv 1610.02391",
        signed=True,
        needs="activations",
        reduce=_weighted_channels,
    ),
    Method(
        name="input_x_gradient",
        title="Input x Gradient",
        reference="Shrikumar et al. 2016, arXiv 1605.01713",
        signed=True,
        needs="gradient",
        reduce=_input_times_gradient,
    ),
    Method(
        name="occlusion",
        title="Occlusion",
        reference="Zeiler and Fergus 2014, arXiv 1311.2901",
        signed=True,
        needs="forward",
        n_points=lambda settings, shape: (
            -(-shape[0] // settings.occlusion_bands) * -(-shape[1] // settings.occlusion_frames)
        ),
        points=_without_a_patch,
        reduce=_drops,
    ),
)
METHODS = {method.name: method for method in _TABLE}
PAPER_METHODS = ("error_map", "saliency", "smooth_grad", "integrated_gradients", "gradient_shap", "grad_cam")


def choose_methods(names: Iterable[str]) -> list[Method]:
    """The rows of the named methods, in the order of the names.

    Raises:
        ConfigError: a name is not in the table.
    """
    names = list(names)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ConfigError(f"Unknown attribution methods: {', '.join(unknown)}. Allowed: {', '.join(METHODS)}.")
    return [METHODS[name] for name in names]


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


@lru_cache
def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return sent(torch.from_numpy(values).to(like.dtype), like.device)[:, None, None]


def _full(value: float, like: Tensor) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=like.dtype, device=like.device)


def _given(value: _Value | None) -> _Value:
    if value is None:
        raise TypeError("a method reads what its row in the table does not ask for in `needs`")
    return value
