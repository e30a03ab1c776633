"""The six attribution methods as one table, and what every engine that computes them agrees on.

The explained scalar of a clip x (F mel bands, T frames) is its own anomaly score E(x) = mean((f(x) - x)²), with x at
both places and nothing detached (Deschênes et al. 2026, arXiv 2601.12660). Apart from the error map, every method is
the gradient of E at one or more points, followed by a reduction to a map (F, T).

Contents
    METHODS                 the table
    AttributionSettings     the constants; defaults are those of the published experiment
    choose_methods          names to rows
    noise_seed              what the noise of a clip is keyed by
    frozen                  a network without dropout and without weight gradients, for the time of a call
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from faithad.errors import ConfigError


@dataclass(frozen=True)
class AttributionSettings:
    """Constants of the methods. The baseline of both path methods is zero.

    Attributes:
        smooth_grad_samples: noisy copies of the clip.
        smooth_grad_sigma: standard deviation of their noise, in the unit of the network's input.
        integrated_gradients_steps: Gauss-Legendre nodes on the path from zero to the clip.
        gradient_shap_samples: noisy copies of the clip, each at one random place of its path from zero.
        gradient_shap_sigma: as `smooth_grad_sigma`.
    """

    smooth_grad_samples: int = 25
    smooth_grad_sigma: float = 0.1
    integrated_gradients_steps: int = 50
    gradient_shap_samples: int = 25
    gradient_shap_sigma: float = 0.09


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: in configurations and tables.
        title: in reports.
        n_points: gradients that one clip needs.
        signed: the map tells cells that raise the error from cells that lower it.
        stochastic: the map depends on noise, hence on a seed.
        reference: where it comes from.
    """

    name: str
    title: str
    n_points: Callable[[AttributionSettings], int]
    signed: bool
    stochastic: bool
    reference: str


METHODS = {
    "error_map": Method(
        name="error_map",
        title="Error map",
        n_points=lambda settings: 0,
        signed=False,
        stochastic=False,
        reference="Deschênes et al. 2026, arXiv 2601.12660",
    ),
    "saliency": Method(
        name="saliency",
        title="Saliency",
        n_points=lambda settings: 1,
        signed=False,
        stochastic=False,
        reference="Simonyan et al. 2014, arXiv 1312.6034",
    ),
    "smooth_grad": Method(
        name="smooth_grad",
        title="SmoothGrad",
        n_points=lambda settings: settings.smooth_grad_samples,
        signed=False,
        stochastic=True,
        reference="Smilkov et al. 2017, arXiv 1706.03825",
    ),
    "integrated_gradients": Method(
        name="integrated_gradients",
        title="Integrated Gradients",
        n_points=lambda settings: settings.integrated_gradients_steps,
        signed=True,
        stochastic=False,
        reference="Sundararajan et al. 2017, arXiv 1703.01365",
    ),
    "gradient_shap": Method(
        name="gradient_shap",
        title="GradSHAP",
        n_points=lambda settings: settings.gradient_shap_samples,
        signed=True,
        stochastic=True,
        reference="Lundberg and Lee 2017, arXiv 1705.07874",
    ),
    "grad_cam": Method(
        name="grad_cam",
        title="Grad-CAM",
        n_points=lambda settings: 1,
        signed=True,
        stochastic=False,
        reference="Selvaraju et al. 2017, arXiv 1610.02391",
    ),
}


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


def noise_seed(seed: int, clip_id: str, method: str) -> int:
    """A seed of 32 bits for the noise of one method on one clip.

    It is the same in every process and on every machine, so a clip's maps depend neither on its batch nor on the
    worker, nor on what was computed before.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}|{clip_id}|{method}".encode(), digest_size=4).digest(), "big")


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
