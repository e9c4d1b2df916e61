"""Super-resolution of rendered features to a picture or to mask channels (method section 2.5)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torch_utils.ops.upfirdn2d import setup_filter
from training.networks.inputs import resize
from training.networks.layers import FIR_TAPS, OutputLayer, SynthesisLayer
from training.networks.synthesis import FP16_CLAMP, add_to_skip, enter_precision


class SuperResolutionBlock(nn.Module):
    """Doubles the side of features and picture."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        use_fp16: bool = False,
        conv_clamp: float | None = None,
    ) -> None:
        """``resolution`` is the side of the output; ``conv_clamp`` bounds activations in float32 too."""
        super().__init__()
        self.use_fp16 = use_fp16
        clamp = FP16_CLAMP if use_fp16 and conv_clamp is None else conv_clamp
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS))
        self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, conv_clamp=clamp)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, conv_clamp=clamp)
        self.torgb = OutputLayer(out_channels, img_channels, w_dim, conv_clamp=clamp)

    def forward(self, x: Tensor, img: Tensor, ws: Tensor, noise_mode: str = "none") -> tuple[Tensor, Tensor]:
        """x (N, in, R/2, R/2), img (N, K, R/2, R/2), ws (N, 3, w_dim) -> x (N, out, R, R), img (N, K, R,
        R)."""
        x = enter_precision(x, self.use_fp16)
        x = self.conv0(x, ws[:, 0], noise_mode)
        x = self.conv1(x, ws[:, 1], noise_mode)
        return x, add_to_skip(img, self.torgb(x, ws[:, 2]), self.resample_filter)


class SuperResolution(nn.Module):
    """Raw picture (N, K, r, r) and features (N, F, r, r) -> picture (N, K, H, H), H = input_resolution *
    2^blocks."""

    def __init__(
        self,
        in_channels: int,
        img_channels: int,
        w_dim: int,
        input_resolution: int,
        channels: Sequence[int],
        use_fp16: bool = False,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.use_fp16 = use_fp16
        self.input_resolution = input_resolution
        self.num_blocks = len(channels)
        resolution = input_resolution
        for index, out_channels in enumerate(channels):
            resolution *= 2
            block = SuperResolutionBlock(
                in_channels, out_channels, w_dim, resolution, img_channels, use_fp16, conv_clamp
            )
            self.add_module(f"block{index}", block)
            in_channels = out_channels

    def forward(self, rgb: Tensor, features: Tensor, ws: Tensor, *, noise_mode: str = "none") -> Tensor:
        """Every layer takes the last of ws (N, num_ws, w_dim)."""
        last = ws[:, -1:].expand(-1, 3, -1).float()
        img, x = resize(rgb, self.input_resolution), resize(features, self.input_resolution)
        for index in range(self.num_blocks):
            x, img = getattr(self, f"block{index}")(x, img, last, noise_mode)
        return img
