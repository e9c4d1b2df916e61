"""Up-sample, pad or crop, filter with a FIR kernel and down-sample images, in that order.

    1. up:    put ``up - 1`` zeros behind every pixel (so N pixels become N * up);
    2. pad:   zeros on each side; negative padding crops;
    3. filter: convolve with ``f`` (``flip_filter=True``: correlate), keeping the valid region only;
    4. down:  keep every ``down``-th pixel, beginning with the first.

``gain`` multiplies the result. Everything is linear in the image, so derivatives of any order are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from torch_utils import extension
from torch_utils.ops.types import undisturbed

Pair = int | Sequence[int]  # one number for both axes, or (x, y)

_NATIVE_TYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def setup_filter(taps: Tensor | Sequence[float], *, normalize: bool = True, gain: float = 1.0) -> Tensor:
    """FIR filter from taps: a vector becomes its outer product. Returns (fh, fw) float32 with sum ``gain``
    (or the taps times ``gain`` where ``normalize`` is off)."""
    f = torch.as_tensor(taps, dtype=torch.float32)
    if f.ndim == 1:
        f = f.outer(f)
    if f.ndim != 2:
        raise ValueError(f"a filter has 1 or 2 dimensions, not {f.ndim}")
    return (f / f.sum() if normalize else f) * gain


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    *,
    up: Pair = 1,
    down: Pair = 1,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Up-samples, pads, filters and down-samples each channel of x (N, C, H, W) by itself.

    f: (fh, fw), or (n,) for a separable square filter, or None for the identity; it is not differentiated.
    ``padding`` is one number, (x, y) or (left, right, top, bottom), counted after up-sampling.
    ``impl`` is 'auto', 'reference' or 'native'.
    """
    if f is None:
        f = x.new_ones((1, 1))
    elif f.ndim == 1:
        f = f.outer(f)
    steps = _Steps(_pair(up), _pair(down), _padding(padding), flip_filter)
    if impl == "auto" and not _pays(x, steps):
        impl = "reference"
    supported = x.dtype in _NATIVE_TYPES.get(x.device.type, ())
    if supported and extension.use_native("upfirdn2d", impl, x.device, x.numel()):
        # single precision even for pictures of half
        taps = torch.float64 if x.dtype == torch.float64 else torch.float32
        if f.dtype != taps:  # as for the reference, the filter's own type rounds the product
            f, gain = (f * gain).to(taps), 1.0
        return _native(x, f, *steps, gain)
    f = f * gain if gain != 1 else f
    with undisturbed(x):
        return _Upfirdn2d.apply(x, f.to(x.dtype), steps)


class _Steps(NamedTuple):
    """What happens to the image, beside the filter's taps and the gain."""

    up: tuple[int, int]  # x, y
    down: tuple[int, int]
    padding: tuple[int, int, int, int]  # left, right, top, bottom
    flip: bool  # whether the filter is correlated; else it is convolved with

    def transposed(self, image: torch.Size, result: torch.Size, f: torch.Size) -> _Steps:
        """The steps of the transposed operation, from ``result``'s shape back to ``image``'s."""
        left, _, top, _ = self.padding
        (up_x, up_y), (down_x, down_y) = self.up, self.down
        padding = (
            f[1] - 1 - left,
            image[3] * up_x - result[3] * down_x + left - up_x + 1,
            f[0] - 1 - top,
            image[2] * up_y - result[2] * down_y + top - up_y + 1,
        )
        return _Steps(up=self.down, down=self.up, padding=padding, flip=not self.flip)


class _Upfirdn2d(Function):
    """The operation and its transpose are of one kind, so they are each other's derivatives, to any order.

    (Autograd's second derivative of a depthwise convolution would loop over the channels.)
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, f: Tensor, steps: _Steps) -> Tensor:
        y = _reference(x, f, steps)
        ctx.save_for_backward(f)
        ctx.steps = steps.transposed(x.shape, y.shape, f.shape)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (f,) = ctx.saved_tensors
        return _Upfirdn2d.apply(grad, f, ctx.steps), None, None


def _reference(x: Tensor, f: Tensor, steps: _Steps) -> Tensor:
    """The operation in plain PyTorch, as a depthwise convolution."""
    channels = x.shape[1]
    left, right, top, bottom = steps.padding
    down_x, down_y = steps.down
    # conv2d correlates and conv_transpose2d convolves.
    correlate = f if steps.flip else f.flip((0, 1))
    if steps.up == (1, 1):
        pad_now = (max(0, min(top, bottom)), max(0, min(left, right)))
        rest = (left - pad_now[1], right - pad_now[1], top - pad_now[0], bottom - pad_now[0])
        x = F.pad(x, rest) if any(rest) else x
        weight = correlate.expand(channels, 1, *f.shape)
        return F.conv2d(x, weight, stride=(down_y, down_x), padding=pad_now, groups=channels)
    # A transposed convolution never multiplies by the inserted zeros. It gives the whole filtered image, with
    # padding fw - 1 in front and fw - up behind: crop that to what was asked for.
    up_x, up_y = steps.up
    fh, fw = f.shape
    crop_x, crop_y = (fw - 1 - left, fw - up_x - right), (fh - 1 - top, fh - up_y - bottom)
    crop_now = (max(0, min(crop_y)), max(0, min(crop_x)))
    weight = correlate.flip((0, 1)).expand(channels, 1, fh, fw)
    y = F.conv_transpose2d(x, weight, stride=(up_y, up_x), padding=crop_now, groups=channels)
    rest = (
        crop_now[1] - crop_x[0],
        crop_now[1] - crop_x[1],
        crop_now[0] - crop_y[0],
        crop_now[0] - crop_y[1],
    )
    y = F.pad(y, rest) if any(rest) else y
    return y[:, :, ::down_y, ::down_x] if steps.down != (1, 1) else y


# ---- The native operation: schema, shape and derivative of what ops/src/upfirdn2d.cpp computes. It reads
# the taps backwards and multiplies by the gain as it goes: no small operation comes before it.


def _pays(x: Tensor, steps: _Steps) -> bool:
    """Whether the native operation is the faster one here. On a CPU it filters rows of pixels, which costs
    short ones too much; channels that lie beside each other make them long, except where up-sampling parts
    them."""
    if x.device.type != "cpu":
        return True
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return steps.up == (1, 1) or x.shape[1] >= 48
    return steps.up[0] * x.shape[3] >= 48


def _fake(
    x: Tensor, f: Tensor, up: list[int], down: list[int], padding: list[int], flip: bool, gain: float
) -> Tensor:
    left, right, top, bottom = padding
    height = (x.shape[2] * up[1] + top + bottom - f.shape[0]) // down[1] + 1
    width = (x.shape[3] * up[0] + left + right - f.shape[1]) // down[0] + 1
    pixels = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    memory = torch.channels_last if pixels else torch.contiguous_format
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, device=x.device, memory_format=memory)


def _keep(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, f, *steps, ctx.gain = inputs
    ctx.save_for_backward(f)
    ctx.steps = _Steps(*steps).transposed(x.shape, output.shape, f.shape)


def _backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    (f,) = ctx.saved_tensors
    return _native(grad, f, *ctx.steps, ctx.gain), *(None,) * 6


_native = extension.define(
    "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, int[] padding, bool flip, float gain) -> Tensor",
    _fake,
    _backward,
    _keep,
)


def filter2d(
    x: Tensor,
    f: Tensor,
    *,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Filters x (N, C, H, W) and keeps its size (``padding`` adds to that)."""
    fw, fh = _filter_size(f)
    left, right, top, bottom = _padding(padding)
    pads = (left + fw // 2, right + (fw - 1) // 2, top + fh // 2, bottom + (fh - 1) // 2)
    return upfirdn2d(x, f, padding=pads, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: Tensor,
    f: Tensor,
    *,
    up: Pair = 2,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Up-samples x (N, C, H, W) to (N, C, H up, W up), keeping its mean (gain up^2) and its centre."""
    up_x, up_y = _pair(up)
    fw, fh = _filter_size(f)
    left, right, top, bottom = _padding(padding)
    pads = (
        left + (fw + up_x - 1) // 2,
        right + (fw - up_x) // 2,
        top + (fh + up_y - 1) // 2,
        bottom + (fh - up_y) // 2,
    )
    gain = gain * up_x * up_y
    return upfirdn2d(x, f, up=(up_x, up_y), padding=pads, flip_filter=flip_filter, gain=gain, impl=impl)


def downsample2d(
    x: Tensor,
    f: Tensor,
    *,
    down: Pair = 2,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Down-samples x (N, C, H, W) to (N, C, H / down, W / down), keeping its mean and its centre."""
    down_x, down_y = _pair(down)
    fw, fh = _filter_size(f)
    left, right, top, bottom = _padding(padding)
    pads = (
        left + (fw - down_x + 1) // 2,
        right + (fw - down_x) // 2,
        top + (fh - down_y + 1) // 2,
        bottom + (fh - down_y) // 2,
    )
    return upfirdn2d(x, f, down=(down_x, down_y), padding=pads, flip_filter=flip_filter, gain=gain, impl=impl)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _padding(value: Pair) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) from one number, (x, y) or all four."""
    if isinstance(value, int):
        return value, value, value, value
    if len(value) == 2:
        return value[0], value[0], value[1], value[1]
    left, right, top, bottom = value
    return left, right, top, bottom


def _filter_size(f: Tensor) -> tuple[int, int]:
    """(width, height) of a filter."""
    return f.shape[-1], f.shape[0]
