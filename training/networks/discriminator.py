"""The dual discriminator: image and up-sampled raw image together, conditioned on the camera (method section
3)."""

from __future__ import annotations

from math import log2, sqrt

import torch
from torch import Tensor, nn

from torch_utils.ops.upfirdn2d import setup_filter
from training.networks.inputs import resize
from training.networks.layers import FIR_TAPS, Conv2dLayer, FullyConnectedLayer, channels_at
from training.networks.mapping import MappingNetwork
from training.networks.synthesis import FP16_CLAMP, enter_precision


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the side. The first one (``img_channels`` > 0) reads the picture itself."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_channels: int = 0,
        use_fp16: bool = False,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.use_fp16 = use_fp16
        self.is_first = img_channels > 0
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS))
        if self.is_first:
            self.fromrgb = Conv2dLayer(
                img_channels, in_channels, 1, activation="lrelu", conv_clamp=conv_clamp
            )
        self.conv0 = Conv2dLayer(in_channels, in_channels, 3, activation="lrelu", conv_clamp=conv_clamp)
        self.conv1 = Conv2dLayer(
            in_channels, out_channels, 3, activation="lrelu", down=2, conv_clamp=conv_clamp
        )
        self.skip = Conv2dLayer(in_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in or img_channels, H, W) -> (N, out, H/2, W/2)."""
        x = enter_precision(x, self.use_fp16)
        if self.is_first:
            x = self.fromrgb(x)
        skip = self.skip(x, gain=sqrt(0.5))  # keeps the variance of the sum
        return self.conv1(self.conv0(x), gain=sqrt(0.5)) + skip


class DiscriminatorEpilogue(nn.Module):
    """Features at 4 x 4 to a logit."""

    def __init__(
        self, in_channels: int, cmap_dim: int, group_size: int, conv_clamp: float | None = None
    ) -> None:
        """``cmap_dim=0``: unconditional."""
        super().__init__()
        self.cmap_dim = cmap_dim
        self.group_size = group_size
        self.conv = Conv2dLayer(in_channels + 1, in_channels, 3, activation="lrelu", conv_clamp=conv_clamp)
        self.fc = FullyConnectedLayer(in_channels * 4 * 4, in_channels, activation="lrelu")
        self.out = FullyConnectedLayer(in_channels, cmap_dim or 1)

    def forward(self, x: Tensor, cmap: Tensor | None) -> Tensor:
        """x (N, C, 4, 4), mapped label (N, cmap_dim) or None -> logits (N, 1)."""
        x = append_batch_deviation(x.float().contiguous(), self.group_size)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        return x if cmap is None else (x * cmap).sum(dim=1, keepdim=True) / sqrt(self.cmap_dim)


def append_batch_deviation(x: Tensor, group_size: int) -> Tensor:
    """Adds one channel: the standard deviation over a group of images, averaged over channels and pixels.

    x (N, C, H, W) -> (N, C + 1, H, W). Image i belongs to group i mod (N / G). G is ``group_size``, or the
    largest divisor of N below it where N is no multiple.
    """
    batch, channels, height, width = x.shape
    group = next(g for g in range(min(group_size, batch), 0, -1) if batch % g == 0)
    grouped = x.reshape(group, batch // group, channels, height, width)
    deviation = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt()  # (N / G, C, H, W)
    deviation = deviation.mean(dim=(1, 2, 3)).repeat(group)  # (N,)
    return torch.cat([x, deviation[:, None, None, None].expand(-1, 1, height, width)], dim=1)


class DualDiscriminator(nn.Module):
    """Judges a picture (N, K, H, H) together with its raw rendering (N, K, r, r). K: 3, or 3 + P with the
    mask.

    ``c_dim=0`` makes it unconditional. ``fp16_blocks``: how many of the highest resolutions run in float16 on
    CUDA.
    """

    def __init__(
        self,
        c_dim: int,
        resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        mbstd_group_size: int = 4,
        fp16_blocks: int = 0,
    ) -> None:
        super().__init__()
        levels = int(log2(resolution))
        if resolution != 2**levels or levels < 3:
            raise ValueError(
                f"a discriminator's resolution is {resolution}; it must be a power of two of at least 8"
            )
        self.c_dim = c_dim
        self.resolution = resolution
        self.resolutions = [2**level for level in range(levels, 2, -1)]
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS))
        clamp = FP16_CLAMP if fp16_blocks else None
        for index, res in enumerate(self.resolutions):
            block = DiscriminatorBlock(
                channels_at(res, channel_base, channel_max),
                channels_at(res // 2, channel_base, channel_max),
                img_channels=2 * img_channels if index == 0 else 0,
                use_fp16=index < fp16_blocks,
                conv_clamp=clamp,
            )
            self.add_module(f"b{res}", block)
        channels = channels_at(4, channel_base, channel_max)
        cmap_dim = channels if c_dim > 0 else 0
        if c_dim > 0:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, num_ws=None, num_layers=8)
        self.b4 = DiscriminatorEpilogue(channels, cmap_dim, mbstd_group_size, conv_clamp=clamp)

    def forward(self, image: Tensor, image_raw: Tensor, c: Tensor | None) -> Tensor:
        """image (N, K, H, H), image_raw (N, K, r, r), camera label c (N, c_dim) -> logits (N, 1)."""
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(self.features(image, image_raw)[-1], cmap)

    def features(self, image: Tensor, image_raw: Tensor) -> list[Tensor]:
        """What each block makes of the same pictures: (N, C, H/2, H/2), (N, C', H/4, H/4) ... to 4 x 4."""
        x = torch.cat([image, resize(image_raw, self.resolution)], dim=1)
        found = []
        for res in self.resolutions:
            x = getattr(self, f"b{res}")(x)
            found.append(x)
        return found
