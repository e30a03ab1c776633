"""The parts that the skip-connected networks are made of.

Shape letters: B spectrograms, C channels, H x W their size at this depth.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.errors import ConfigError

SLOPE = 0.01
_MIN_SIZE = 16  # four poolings by two


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution, stride 1, padding 1, that ends with the activation unless `activated` is false."""

    def __init__(self, in_channels: int, out_channels: int, *, activated: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, H, W)."""
        y = super().forward(x)
        return act(y) if self.activated else y


def act(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SLOPE)


def halve(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 2)


def pad(x: Tensor, channels: int) -> Tensor:
    """Append zero channels up to this many."""
    return functional.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


def first(x: Tensor, channels: int) -> Tensor:
    return x[:, :channels]


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, align_corners false; an image that has this size already is returned as it is."""
    if x.shape[2:] == (height, width):
        return x
    return functional.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def refuse_small(n_mels: int, n_frames: int) -> None:
    """Raises ConfigError for a shape that cannot be halved four times."""
    if n_mels < _MIN_SIZE or n_frames < _MIN_SIZE:
        raise ConfigError(
            f"The network cannot be built for {n_mels} mel bands x {n_frames} frames: both must be at least "
            f"{_MIN_SIZE}."
        )


def refuse_other_shape(x: Tensor, n_mels: int, n_frames: int) -> None:
    """Raises ConfigError for an input that is not (B, n_mels, n_frames)."""
    if x.ndim != 3 or x.shape[1:] != (n_mels, n_frames):
        raise ConfigError(
            f"The network was built for (clips, {n_mels} mel bands, {n_frames} frames) and was given "
            f"{tuple(x.shape)}. Compute the features with the settings that the model was trained with."
        )
