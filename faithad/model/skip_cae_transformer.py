"""The Skip-CAE-Transformer, whole: a convolutional autoencoder whose bottleneck is a transformer.

Source: "Planing It by Ear" (Deschênes et al. 2025, arXiv 2501.04819) for the network, "Toward Faithful Explanations in
Acoustic Anomaly Detection" (Deschênes et al. 2026, arXiv 2601.12660) for its use as AE and as MAE: one network, two
ways of training.

Shape letters: B clips, F mel bands, T frames. One channel goes in and comes out. `skip` connections are sums: where
the channels differ, the source is padded with zero channels or cut to its first ones.

Where the papers leave it open, the network does what the published experiment did:
1. The transformer's tokens are the 32 channels (times `width`), each flattened to d = (F//8)(T//8) values, without a
   positional code: attention runs across channels, never across time.
2. Where F//8 or T//8 is odd, the first up-sampling comes back one cell short, because pooling dropped it; adaptive
   average pooling brings it to the size of the encoder's output, which the decoder attends to.
3. The last up-sampling is followed by a bilinear resize to (F, T), which matters where F or T is not divided by 8.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.errors import ConfigError
from faithad.model.fast_layers import with_fast_layers
from faithad.model.layers import Conv3x3, act, first, halve, pad, refuse_other_shape, refuse_small, resize

_FEED_FORWARD = 2048
_HEADS = (10, 8, 6, 5, 4, 2, 1)
# Of width and depth.
_MOST_TIMES = 16


class SkipCAETransformer(nn.Module):
    """Reconstructs spectrograms of one fixed shape.

    7,233,831 parameters at (80, 400). Initialised as PyTorch does by default. Convolutions end with their activation,
    but for conv10, whose output Grad-CAM explains before it, and conv22, which has none.

    Args:
        n_mels: F, at least 16.
        n_frames: T, at least 16.
        dropout: probability inside the transformer layers; none elsewhere.
        width: factor of the paper's number of channels.
        depth: transformer layers in the encoder, and in the decoder; the paper has one each.

    Raises:
        ConfigError: the shape is too small for four poolings, or width or depth is no number from 1 to 16.
    """

    grad_cam_layer = "conv10"
    fast_form = with_fast_layers

    def __init__(
        self, n_mels: int = 80, n_frames: int = 400, dropout: float = 0.1, width: int = 1, depth: int = 1
    ) -> None:
        super().__init__()
        refuse_small(n_mels, n_frames)
        for name, value in (("width", width), ("depth", depth)):
            if not isinstance(value, int) or not 1 <= value <= _MOST_TIMES:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1 to {_MOST_TIMES}.")
        self.n_mels, self.n_frames = n_mels, n_frames
        self.dropout, self.width, self.depth = dropout, width, depth
        bottleneck_frames = n_frames // 8
        d = (n_mels // 8) * bottleneck_frames
        self.n_heads = next(heads for heads in _HEADS if d % heads == 0)

        c2, c4, c8, c16, c32, c64 = (width * channels for channels in (2, 4, 8, 16, 32, 64))
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            Conv3x3(*channels) for channels in ((1, c2), (c2, c2), (c2, c4), (c4, c4))
        )
        self.conv5, self.conv6 = Conv3x3(c4, c8), Conv3x3(c8, c8)
        self.conv7, self.conv8 = Conv3x3(c8, c16), Conv3x3(c16, c16)
        self.conv9, self.conv10 = Conv3x3(c16, c32), Conv3x3(c32, c32, activated=False)
        self.bn1, self.bn2, self.bn3, self.bn4 = (nn.BatchNorm2d(channels) for channels in (c4, c8, c16, c32))
        self.encoder = nn.TransformerEncoderLayer(
            d, self.n_heads, dim_feedforward=_FEED_FORWARD, dropout=dropout, batch_first=True
        )
        self.linear_e = nn.Linear(bottleneck_frames, bottleneck_frames)

        self.conv11, self.conv12 = Conv3x3(c32, c64), Conv3x3(c64, c64)
        self.conv13, self.conv14 = Conv3x3(c64, c32), Conv3x3(c32, c32)
        self.conv15, self.conv16 = Conv3x3(c32, c16), Conv3x3(c16, c16)
        self.conv17, self.conv18 = Conv3x3(c16, c8), Conv3x3(c8, c8)
        self.conv19, self.conv20 = Conv3x3(c8, c4), Conv3x3(c4, c4)
        self.conv21, self.conv22 = Conv3x3(c4, c2), Conv3x3(c2, 1, activated=False)
        self.bn5, self.bn6, self.bn7, self.bn8 = (nn.BatchNorm2d(channels) for channels in (c32, c16, c8, c4))
        self.conv_t1, self.conv_t2, self.conv_t3, self.conv_t4 = (
            nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2) for channels in (c32, c16, c8, c4)
        )
        self.decoder = nn.TransformerDecoderLayer(
            d, self.n_heads, dim_feedforward=_FEED_FORWARD, dropout=dropout, batch_first=True
        )
        self.linear_d = nn.Linear(bottleneck_frames, bottleneck_frames)
        # Drawn last, so that the weights of the paper's network are the same with and without these lines.
        self.further_encoders, self.further_decoders = (
            nn.ModuleList(
                layer(d, self.n_heads, dim_feedforward=_FEED_FORWARD, dropout=dropout, batch_first=True)
                for _ in range(depth - 1)
            )
            for layer in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
        )

    @property
    def options(self) -> dict[str, float]:
        """The arguments that it was built with besides the shape; width and depth where they are not the paper's."""
        sizes = {"width": self.width, "depth": self.depth}
        return {"dropout": self.dropout, **{name: value for name, value in sizes.items() if value != 1}}

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct spectrograms.

        Args:
            x: (B, F, T), features as the network was trained on.

        Returns:
            (B, F, T).

        Raises:
            ConfigError: x has another shape than the network was built for.
        """
        refuse_other_shape(x, self.n_mels, self.n_frames)
        attended, z = self._encode(x[:, None])
        return self._decode(z, attended)[:, 0]

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder transformer's output (B, 32 width, F/8, T/8), and the code z, half that size each way."""
        width = self.width
        h1 = self.conv1(x)
        h2 = self.conv2(h1)
        h3 = self.conv3(h2 + h1)
        h4 = self.conv4(h3)
        e1 = halve(self.bn1(h4 + h3 + pad(x, 4 * width)))

        h6 = self.conv5(e1)
        h7 = self.conv6(h6)
        e2 = halve(self.bn2(h7 + h6 + pad(e1, 8 * width)))

        h9 = self.conv7(e2)
        h10 = self.conv8(h9)
        e3 = halve(self.bn3(h10 + h9 + pad(e2, 16 * width)))

        h12 = self.conv9(e3)
        h13 = act(self.conv10(h12))
        tokens = self.encoder(h13.flatten(2))
        for layer in self.further_encoders:
            tokens = layer(tokens)
        attended = tokens.view_as(h13)
        z = halve(self.bn4(attended + act(self.linear_e(h12 + pad(e3, 32 * width)))))
        return attended, z

    def _decode(self, z: Tensor, attended: Tensor) -> Tensor:
        width = self.width
        h1 = self.conv11(z)
        h2 = self.conv12(h1)
        h3 = self.conv13(h2 + h1)
        h4 = self.conv14(h3)
        u1 = self.conv_t1(self.bn5(h4 + h3 + z))
        if u1.shape != attended.shape:
            u1 = functional.adaptive_avg_pool2d(u1, (attended.shape[2], attended.shape[3]))

        tokens, memory = self.decoder(u1.flatten(2), attended.flatten(2)), attended.flatten(2)
        for layer in self.further_decoders:
            tokens = layer(tokens, memory)
        d = tokens.view_as(attended)
        h6 = self.conv15(d)
        h7 = self.conv16(h6)
        u2 = self.conv_t2(self.bn6(h7 + act(self.linear_d(h6 + first(d, 16 * width)))))

        h9 = self.conv17(u2)
        h10 = self.conv18(h9)
        u3 = self.conv_t3(self.bn7(h10 + h9 + first(u2, 8 * width)))

        h12 = self.conv19(u3)
        h13 = self.conv20(h12)
        u4 = self.conv_t4(self.bn8(h13 + h12 + first(u3, 4 * width)))

        v = resize(u4, self.n_mels, self.n_frames)
        h15 = self.conv21(v)
        return cast(Tensor, self.conv22(h15 + first(v, 2 * width)))
