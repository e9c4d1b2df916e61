"""Up-sample, pad or crop, filter with a FIR kernel and down-sample images, in that order.

    1. up:    put ``up - 1`` zeros behind every pixel (so N pixels become N * up);
    2. pad:   zeros on each side; negative padding crops;
    3. filter: convolve with ``f`` (``flip_filter=True``: correlate), keeping the valid region only;
    4. down:  keep every ``down``-th pixel, beginning with the first.

``gain`` multiplies the result. Everything is linear in the image, so derivatives of any order are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = int | Sequence[int]  # one number for both axes, or (x, y)


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
    up_x, up_y = _pair(up)
    down_x, down_y = _pair(down)
    pads = _padding(padding)
    if f is None:
        f = x.new_ones((1, 1))
    elif f.ndim == 1:
        f = f.outer(f)
    f = f * gain if gain != 1 else f
    return _reference(x, f.to(x.dtype), (up_x, up_y), (down_x, down_y), pads, flip_filter)


def _reference(
    x: Tensor,
    f: Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
) -> Tensor:
    """The operation in plain PyTorch, as depthwise convolutions."""
    channels = x.shape[1]
    left, right, top, bottom = padding
    if up != (1, 1):
        # A transposed convolution never multiplies by the inserted zeros. With the whole border of fw - 1 it
        # gives the filtered image of padding fw - 1 on both sides (less the up - 1 trailing zeros): crop or
        # pad the rest.
        fh, fw = f.shape
        kernel = f.flip((0, 1)) if flip_filter else f
        y = F.conv_transpose2d(x, kernel.expand(channels, 1, fh, fw), stride=(up[1], up[0]), groups=channels)
        rest = (left - fw + 1, right - fw + up[0], top - fh + 1, bottom - fh + up[1])
        y = F.pad(y, rest) if any(rest) else y
        return y[:, :, :: down[1], :: down[0]] if down != (1, 1) else y
    if min(padding) >= 0 and left == right and top == bottom:
        pad_now = (top, left)
    else:
        pad_now = (0, 0)
        x = F.pad(x, padding)
    kernel = f if flip_filter else f.flip((0, 1))
    weight = kernel.expand(channels, 1, *f.shape)
    return F.conv2d(x, weight, stride=(down[1], down[0]), padding=pad_now, groups=channels)


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
