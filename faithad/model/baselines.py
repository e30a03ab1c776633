"""The networks that the model paper compares with: a dense, a convolutional, and a skip-connected autoencoder.

They are compared with the Skip-CAE-Transformer in the detection table ("Planing It by Ear", Deschênes et al. 2025,
arXiv 2501.04819), and train on the same data in the same way. The two convolutional ones are explained as it is;
Grad-CAM explains their encoder's last convolution, before its activation. All map (B, F, T) to (B, F, T) for any F and
T of at least 16, odd ones too, and are initialised as PyTorch does by default.

Shape letters: B clips, F mel bands, T frames, W windows of consecutive frames.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.model.fast_layers import with_fast_layers
from faithad.model.layers import Conv3x3, act, first, halve, pad, refuse_other_shape, refuse_small, resize

_WINDOW = 5
_HIDDEN = 128
_CODE = 8
# Squared errors below are taken for none: the root has no slope at 0.
_NO_ERROR = 1e-12

_FILTERS = (16, 32, 64, 32)


class DenseAE(nn.Module):
    """The autoencoder of the DCASE Task 2 baseline: windows of five frames through a code of eight values.

    Source: Koizumi et al. 2020 ("Description and discussion on DCASE2020 Challenge Task2", arXiv 2006.05822) and the
    baseline systems of 2020 to 2024. Each of the W = T - 4 windows (F x 5 values) passes four dense layers of 128, one
    of 8, four of 128, each with batch normalisation and ReLU, and a linear one back to F x 5. 267,928 parameters at the
    128 bands of DCASE, 206,248 at 80. A dense layer over all windows of a clip is a convolution, and is written as one.

    The baseline's loss and score are the mean squared error over all windows, in which a cell of the spectrogram has up
    to five reconstructions. `forward` returns the one value whose squared error is the mean of their squared errors: it
    differs from x by the root of that mean, on the side of their mean, so that E(x), the mean of (f(x) - x)² over the
    clip, is exactly the baseline's. (The mean of the windows would be another model, whose windows correct each other.)

    Departures from the baseline:
    1. It trains as the other networks here do: AdamW, 32 clips a batch. The baseline draws 512 windows of any clips.
    2. Its first version, in Keras, draws its first weights from Glorot's distribution.

    Args:
        n_mels: F, at least 16.
        n_frames: T, at least 16.

    Raises:
        ConfigError: the shape is too small.
    """

    def __init__(self, n_mels: int, n_frames: int) -> None:
        super().__init__()
        refuse_small(n_mels, n_frames)
        self.n_mels, self.n_frames = n_mels, n_frames
        widths = [_HIDDEN] * 4 + [_CODE] + [_HIDDEN] * 4
        layers: list[nn.Module] = [nn.Conv2d(1, _HIDDEN, (n_mels, _WINDOW))]
        for width, following in zip(widths, [*widths[1:], n_mels * _WINDOW], strict=True):
            # Momentum and epsilon are the baseline's.
            layers += [nn.BatchNorm2d(width, eps=1e-3, momentum=0.01), nn.ReLU(), nn.Conv2d(width, following, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) → (B, F, T).

        Raises:
            ConfigError: x has another shape than the network was built for.
        """
        refuse_other_shape(x, self.n_mels, self.n_frames)
        windows = x.unfold(2, _WINDOW, 1).transpose(2, 3)  # (B, F, 5, W)
        error = self.reconstruct_windows(x) - windows
        # The window that starts at frame w holds frame t at position t - w.
        placed = [functional.pad(error[:, :, i], (i, _WINDOW - 1 - i)) for i in range(_WINDOW)]
        squared = torch.stack([part.square() for part in placed]).sum(dim=0) * (x.shape[2] / windows[0, 0].numel())
        side = torch.stack(placed).sum(dim=0).detach()
        return x + torch.copysign(squared.clamp(min=_NO_ERROR).sqrt(), side)

    def reconstruct_windows(self, x: Tensor) -> Tensor:
        """The reconstruction of every window, (B, F, T) → (B, F, 5, W)."""
        stacked: Tensor = self.layers(x[:, None])  # (B, 5 F, 1, W)
        windows: Tensor = stacked[:, :, 0].unflatten(1, (self.n_mels, _WINDOW))
        return windows


class CAE(nn.Module):
    """A convolutional autoencoder without skip connections, after the one of Duman et al. for industrial sound.

    Source: Duman, Bayram, İnce, "Acoustic Anomaly Detection Using Convolutional Autoencoders in Industrial Processes",
    SOCO 2019. The encoder has convolutions interspersed with poolings, the decoder transposed convolutions, the loss is
    the squared error of the whole spectrogram. Four stages of 3x3 convolution, batch normalisation, ReLU and maximum
    pooling by two, of 16, 32, 64 and 32 filters; four of 4x4 transposed convolution with stride two, batch
    normalisation and ReLU, mirrored; a bilinear resize to (F, T), where rounding has lost cells; a last 3x3
    convolution. The code is as large as that of the Skip-CAE-Transformer, 32 x F/16 x T/16. 120,401 parameters.

    Departure: the numbers of stages and filters are ours. The source's table of layers is not openly readable, and the
    model paper, which uses it, gives none; a published figure for it need not be that of this network.

    Args:
        n_mels: F, at least 16.
        n_frames: T, at least 16.

    Raises:
        ConfigError: the shape is too small for four poolings.
    """

    grad_cam_layer = "encoder.12"
    fast_form = with_fast_layers

    def __init__(self, n_mels: int, n_frames: int) -> None:
        super().__init__()
        refuse_small(n_mels, n_frames)
        self.n_mels, self.n_frames = n_mels, n_frames
        encoder: list[nn.Module] = []
        for before, after in itertools.pairwise((1, *_FILTERS)):
            convolution = Conv3x3(before, after, activated=False)
            encoder += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        decoder: list[nn.Module] = []
        for before, after in itertools.pairwise((*reversed(_FILTERS), _FILTERS[0])):
            decoder += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.last = Conv3x3(_FILTERS[0], 1, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) → (B, F, T).

        Raises:
            ConfigError: x has another shape than the network was built for.
        """
        refuse_other_shape(x, self.n_mels, self.n_frames)
        decoded = resize(self.decoder(self.encoder(x[:, None])), self.n_mels, self.n_frames)
        reconstruction: Tensor = self.last(decoded)
        return reconstruction[:, 0]


class SkipCAE(nn.Module):
    """The Skip-CAE: the Skip-CAE-Transformer without its transformer.

    Source: "Planing It by Ear". Stage by stage the network of `skip_cae_transformer`, where the two stages that hold
    the transformer, E4 and D2, are like their neighbours: without attention, and without the linear layers that join
    its output to the skip connections. Nothing then needs the sizes of encoder and decoder to agree before the last
    resize. 116,635 parameters at any shape.

    Args:
        n_mels: F, at least 16.
        n_frames: T, at least 16.

    Raises:
        ConfigError: the shape is too small for four poolings.
    """

    grad_cam_layer = "encoder.3.pairs.0.1"
    fast_form = with_fast_layers

    def __init__(self, n_mels: int, n_frames: int) -> None:
        super().__init__()
        refuse_small(n_mels, n_frames)
        self.n_mels, self.n_frames = n_mels, n_frames
        self.encoder = nn.ModuleList([_SkipStage(1, 2, 4), _SkipStage(4, 8), _SkipStage(8, 16), _SkipStage(16, 32)])
        self.decoder = nn.ModuleList([_SkipStage(32, 64, 32), _SkipStage(32, 16), _SkipStage(16, 8), _SkipStage(8, 4)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(channels, channels, 2, 2) for channels in (32, 16, 8, 4)])
        self.conv21, self.conv22 = Conv3x3(4, 2), Conv3x3(2, 1, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) → (B, F, T).

        Raises:
            ConfigError: x has another shape than the network was built for.
        """
        refuse_other_shape(x, self.n_mels, self.n_frames)
        h = x[:, None]
        for stage in self.encoder:
            h = halve(stage(h))
        for stage, up in zip(self.decoder, self.up, strict=True):
            h = up(stage(h))
        v = resize(h, self.n_mels, self.n_frames)
        reconstruction: Tensor = self.conv22(self.conv21(v) + first(v, 2))
        return reconstruction[:, 0]


class _SkipStage(nn.Module):
    """Pairs of convolutions, each adding up its two activations, and a skip connection over all, normalised.

    The second convolution of a pair leaves its activation to the stage: Grad-CAM explains the output before it.
    """

    def __init__(self, in_channels: int, *out_channels: int) -> None:
        super().__init__()
        widths = itertools.pairwise((in_channels, *out_channels))
        self.pairs = nn.ModuleList([nn.ModuleList([Conv3x3(c, d), Conv3x3(d, d, activated=False)]) for c, d in widths])
        self.bn = nn.BatchNorm2d(out_channels[-1])

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for pair in self.pairs:
            assert isinstance(pair, nn.ModuleList)
            h = pair[0](h)
            h = act(pair[1](h)) + h
        skip = first(x, h.shape[1]) if x.shape[1] > h.shape[1] else pad(x, h.shape[1])
        normalised: Tensor = self.bn(h + skip)
        return normalised
