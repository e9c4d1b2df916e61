"""Layers that the networks share: fully connected, plain and modulated convolutions.

Equalised learning rate throughout (method section 7): parameters are stored with unit variance and multiplied
by their gain when used. Tensor names equal those of the published models, so their state dicts load as they
are; that is why some layers keep a ``resample_filter`` that they never read.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

FIR_TAPS = (1, 3, 3, 1)
NOISE_MODES = ("const", "random", "none")
# From this size on, one picture's activations take longer to scale than the weights (measured on a CPU, where
# 128 channels at 256 x 256 gain a tenth forwards and a sixth with the backward pass).
_MANY_PIXELS = 64 * 64


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Channels of a StyleGAN2 block at a resolution."""
    return min(channel_base // resolution, channel_max)


def normalize_second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean(x^2) + eps) along dim 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class FullyConnectedLayer(nn.Module):
    """y = act(x W^T lr / sqrt(in) + b lr), lr being the layer's learning-rate multiplier. x: (..., in)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        weight = self.weight.to(x.dtype) * self.weight_gain
        bias = self.bias
        if bias is not None:
            bias = bias.to(x.dtype) * self.bias_gain if self.bias_gain != 1 else bias.to(x.dtype)
        if self.activation == "linear":
            return F.linear(x, weight, bias)
        return bias_act(F.linear(x, weight), bias, dim=-1, act=self.activation, overwrite=True)


def conv2d_up2(x: Tensor, weight: Tensor, resample_filter: Tensor) -> Tensor:
    """Transposed convolution of stride 2 followed by the FIR: x (N, I, H, W) -> (N, O, 2H, 2W).

    weight (O, I, k, k), odd k. Gain 4 makes up for the zeros that the stride inserts.
    """
    kernel = weight.shape[-1]
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # (N, O, 2H + k - 2, 2W + k - 2)
    taps = resample_filter.shape[-1]
    # The FIR keeps the picture centred: k // 2 of padding for the kernel, the up-sampling's for the taps.
    before = (taps + 1) // 2 + kernel // 2 - (kernel - 1)
    after = (taps - 2) // 2 + kernel // 2 - (kernel - 2)
    return upfirdn2d(x, resample_filter, padding=(before, after, before, after), gain=4)


def conv2d_down2(x: Tensor, weight: Tensor, resample_filter: Tensor) -> Tensor:
    """FIR followed by a convolution of stride 2: x (N, I, H, W) -> (N, O, H/2, W/2); weight (O, I, k, k), odd
    k."""
    kernel, taps = weight.shape[-1], resample_filter.shape[-1]
    before = (taps - 1) // 2 + kernel // 2
    after = (taps - 2) // 2 + kernel // 2
    pads = (before, after, before, after)
    if kernel == 1:  # both linear, so the FIR may drop the pixels that the stride would skip
        return F.conv2d(upfirdn2d(x, resample_filter, down=2, padding=pads), weight)
    return F.conv2d(upfirdn2d(x, resample_filter, padding=pads), weight, stride=2)


def _demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """1 / sqrt(sum_ik (s_i w_oik)^2 + 1e-8): weight (O, I, k, k), styles (N, I) -> (N, O)."""
    energy = weight.square().sum(dim=(2, 3))  # (O, I)
    return (styles.square() @ energy.t() + 1e-8).rsqrt()


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> Tensor:
    """Convolution whose weights are scaled per sample and input channel, then normalised per output channel.

        y = conv(x, w') + noise,  w'_oik = s_i w_oik / sqrt(sum_ik (s_i w_oik)^2 + 1e-8)

    x (N, I, H, W), weight (O, I, k, k), styles s (N, I), noise broadcastable to y. ``up`` is 1 or 2 (then k
    is odd, ``padding`` is k // 2 and the result is filtered by ``resample_filter``). ``flip_weight=True``
    correlates. The weights stay those of the batch: scaling activations before and after ONE ordinary
    convolution gives the same result as a convolution per sample. A single large picture is the exception:
    there the weights are fewer than the activations, so they are scaled.
    """
    if x.dtype == torch.float16 and demodulate:
        # Demodulation makes the scales of w and s irrelevant: bring both to at most 1, so that half cannot
        # overflow.
        weight = weight * (1 / sqrt(weight[0].numel()) / weight.abs().amax(dim=(1, 2, 3), keepdim=True))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    scale = None
    if len(x) == 1 and x.shape[2] * x.shape[3] >= _MANY_PIXELS:
        weight = weight * styles[0, :, None, None]
        if demodulate:
            weight = weight * (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        y = x
    else:
        if demodulate:
            scale = _demodulation(weight, styles).to(x.dtype)[:, :, None, None]
        y = x * styles.to(x.dtype)[:, :, None, None]
    weight = weight.to(x.dtype)
    if not flip_weight:
        weight = weight.flip((2, 3))
    if up == 1:
        y = F.conv2d(y, weight, padding=padding)
    else:
        if up != 2 or padding != weight.shape[-1] // 2:
            raise ValueError(
                f"up {up} with padding {padding} is not implemented: up 2 with padding k // 2 is"
            )
        y = conv2d_up2(y, weight.flip((2, 3)), resample_filter)  # a transposed convolution flips: undo that
    if scale is None:
        return y if noise is None else y.add_(noise.to(x.dtype))  # in what the convolution has just made
    return y * scale if noise is None else torch.addcmul(noise.to(x.dtype), y, scale)


class SynthesisLayer(nn.Module):
    """Modulated 3 x 3 convolution, noise, bias, leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        conv_clamp: float | None = None,
    ) -> None:
        """``resolution`` is the side of the output; ``conv_clamp`` bounds it (for float16)."""
        super().__init__()
        self.up = up
        self.padding = kernel_size // 2
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise_mode: str = "const") -> Tensor:
        """x (N, in, R / up, R / up), w (N, w_dim) -> (N, out, R, R)."""
        y = modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            noise=self._noise(len(x), noise_mode),
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,  # as published: up-convolutions do not flip back
        )
        return bias_act(y, self.bias, act="lrelu", clamp=self.conv_clamp, overwrite=True)

    def _noise(self, batch: int, mode: str) -> Tensor | None:
        """Noise of this layer's strength, broadcastable to (N, out, R, R), or None."""
        if mode == "none":
            return None
        if mode == "const":
            return self.noise_const * self.noise_strength
        if mode != "random":
            raise ValueError(f"noise_mode is '{mode}'; it must be one of {', '.join(NOISE_MODES)}")
        fresh = torch.randn(batch, 1, *self.noise_const.shape, device=self.noise_const.device)
        return fresh * self.noise_strength


class OutputLayer(nn.Module):
    """Modulated 1 x 1 convolution to pictures or planes, without demodulation ("torgb")."""

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, conv_clamp: float | None = None
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.style_gain = 1 / sqrt(in_channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (N, in, H, W), w (N, w_dim) -> (N, out, H, W)."""
        styles = self.affine(w) * self.style_gain
        y = modulated_conv2d(x, self.weight, styles, demodulate=False)
        return bias_act(y, self.bias, clamp=self.conv_clamp, overwrite=True)


class Conv2dLayer(nn.Module):
    """Convolution, optionally down-sampling by 2, with bias and activation (discriminators)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        down: int = 1,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        if down not in (1, 2):
            raise ValueError(f"down is {down}; only 1 and 2 are implemented")
        self.activation = activation
        self.down = down
        self.padding = kernel_size // 2
        self.conv_clamp = conv_clamp
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / sqrt(in_channels * kernel_size**2)
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """x (N, in, H, W) -> (N, out, H / down, W / down), times ``gain`` (the clamp grows with it)."""
        weight = (self.weight * self.weight_gain).to(x.dtype)
        if self.down == 1:
            x = F.conv2d(x, weight, padding=self.padding)
        else:
            x = conv2d_down2(x, weight, self.resample_filter)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        gain *= ACTIVATIONS[self.activation].gain
        return bias_act(x, self.bias, act=self.activation, gain=gain, clamp=clamp, overwrite=True)
