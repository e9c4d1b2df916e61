"""The backbone: w to texture and shape planes (method section 2.2)."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn

from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from training.networks.layers import FIR_TAPS, OutputLayer, SynthesisLayer, channels_at

FP16_CLAMP = 256.0  # bound of activations in float16 blocks, as published


class PlaneBlock(nn.Module):
    """One resolution of the backbone, with one output layer for texture and one for shape."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        plane_channels_total: int,
        use_fp16: bool = False,
        conv_clamp: float | None = None,
    ) -> None:
        """``in_channels=0`` makes the first block, which begins with a learned constant."""
        super().__init__()
        self.is_first = in_channels == 0
        self.use_fp16 = use_fp16
        self.num_conv = 1 if self.is_first else 2
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS))
        if self.is_first:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, w_dim, resolution, up=2, conv_clamp=conv_clamp
            )
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, conv_clamp=conv_clamp)
        self.torgb_tex = OutputLayer(out_channels, plane_channels_total, w_dim, conv_clamp=conv_clamp)
        self.torgb_shp = OutputLayer(out_channels, plane_channels_total, w_dim, conv_clamp=conv_clamp)

    def forward(
        self, x: Tensor | None, texture: Tensor | None, shape: Tensor | None, ws: Tensor, noise_mode: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, in, R/2, R/2), planes so far (N, 3C, R/2, R/2), ws (N, num_conv + 1, w_dim) -> the same at
        R."""
        w_iter = iter(ws.unbind(dim=1))
        if self.is_first:
            x = self.const.expand(len(ws), -1, -1, -1)
        x = enter_precision(x, self.use_fp16)
        if not self.is_first:
            x = self.conv0(x, next(w_iter), noise_mode)
        x = self.conv1(x, next(w_iter), noise_mode)
        w_out = next(w_iter)
        texture = add_to_skip(texture, self.torgb_tex(x, w_out), self.resample_filter)
        shape = add_to_skip(shape, self.torgb_shp(x, w_out), self.resample_filter)
        return x, texture, shape


class PlaneSynthesis(nn.Module):
    """ws (N, num_ws, w_dim) -> texture planes and shape planes, each (N, plane_channels_total, R, R).

    Block b4, b8 ... bR, each ``min(channel_base / r, channel_max)`` channels wide. ``fp16_blocks``: how many
    of the highest resolutions run in float16 where the device is CUDA; ``conv_clamp`` bounds all activations.
    """

    def __init__(
        self,
        w_dim: int,
        resolution: int,
        plane_channels_total: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        fp16_blocks: int = 0,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        levels = int(log2(resolution))
        if resolution != 2**levels or levels < 2:
            raise ValueError(
                f"the planes' resolution is {resolution}; it must be a power of two of at least 4"
            )
        self.resolutions = [2**level for level in range(2, levels + 1)]
        self.num_ws = 0
        in_channels = 0
        for index, res in enumerate(self.resolutions):
            channels = channels_at(res, channel_base, channel_max)
            block = PlaneBlock(
                in_channels,
                channels,
                w_dim,
                res,
                plane_channels_total,
                use_fp16=index >= len(self.resolutions) - fp16_blocks,
                conv_clamp=FP16_CLAMP if fp16_blocks and conv_clamp is None else conv_clamp,
            )
            self.add_module(f"b{res}", block)
            self.num_ws += block.num_conv
            in_channels = channels
        self.num_ws += 1  # the last block's output layers have their own w

    def forward(self, ws: Tensor, *, noise_mode: str = "const") -> tuple[Tensor, Tensor]:
        """``noise_mode``: 'const', 'random' or 'none'."""
        x = texture = shape = None
        start = 0
        for res in self.resolutions:
            block = getattr(self, f"b{res}")
            # A block's output layers share the w of the next block's conv0: windows overlap by one.
            block_ws = ws[:, start : start + block.num_conv + 1].float()
            x, texture, shape = block(x, texture, shape, block_ws, noise_mode)
            start += block.num_conv
        return texture, shape


def enter_precision(x: Tensor, use_fp16: bool) -> Tensor:
    """x in float16 where that is wanted and the device is CUDA, else in float32; channels-last where that is
    faster: in half precision on CUDA, and on CPUs, whose transposed convolutions take half as long then."""
    if x.device.type == "cpu":
        return x.to(dtype=torch.float32, memory_format=torch.channels_last)
    if use_fp16 and x.device.type == "cuda":
        return x.to(dtype=torch.float16, memory_format=torch.channels_last)
    return x.float()


def add_to_skip(skip: Tensor | None, new: Tensor, resample_filter: Tensor) -> Tensor:
    """Adds a block's output (N, K, 2R, 2R) in float32 to the up-sampled sum (N, K, R, R) of the blocks
    before."""
    new = new.float()
    return new if skip is None else upsample2d(skip, resample_filter).add_(new)
