"""The models by name: which there are, which train by gradient, which are explained, and how a network is built.

`ae` and `mae` are one network, the Skip-CAE-Transformer, trained in two ways; both are explained. The others are the
baselines of the model paper ("Planing It by Ear", Deschênes et al. 2025, arXiv 2501.04819), for the detection table:
three networks that train as the AE does, and two classical detectors that are fitted (see `classical`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from faithad.errors import ConfigError
from faithad.model.baselines import CAE, DenseAE, SkipCAE
from faithad.model.classical import CLASSICAL
from faithad.model.skip_cae_transformer import SkipCAETransformer

__all__ = ["CLASSICAL", "EXPLAINED", "TRAINED", "build_network"]

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ae": SkipCAETransformer,
    "mae": SkipCAETransformer,
    "dense_ae": DenseAE,
    "cae": CAE,
    "skip_cae": SkipCAE,
}

EXPLAINED = ("ae", "mae")
TRAINED = tuple(_NETWORKS)


def build_network(model: str, n_mels: int, n_frames: int, **options: float) -> nn.Module:
    """An untrained network that maps spectrograms (B, F, T) to reconstructions (B, F, T).

    It has the attributes `n_mels` and `n_frames`. Its weights come from PyTorch's global generator.

    Args:
        model: one of `TRAINED`.
        n_mels: F, at least 16.
        n_frames: T, at least 16.
        options: what only some networks take: `dropout` (ae, mae).

    Raises:
        ConfigError: no network goes by that name, or it cannot be built for that shape.
    """
    if model not in _NETWORKS:
        raise ConfigError(f"There is no network {model!r} to train; allowed: {', '.join(TRAINED)}.")
    return _NETWORKS[model](n_mels, n_frames, **options)
