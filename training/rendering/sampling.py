"""Where along a ray to look: stratified depths, then more where the coarse weights are (method section 8)."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOOR = 0.01  # added to every coarse weight, so that no part of the ray is ever left out
_EPSILON = 1e-5  # added to every bin, and the mass below which a bin counts as 1 in the division


def stratified(near: float, far: float, offsets: Tensor) -> Tensor:
    """Depths ``linspace(near, far, S) + u (far - near) / (S - 1)``.

    Args:
        near, far: ends of the ray, in world units from its origin; the last sample may lie one step beyond.
        offsets: (..., S) u in [0, 1), S >= 2; all 0.5 when deterministic.

    Returns:
        (..., S) depths, ascending.
    """
    count = offsets.shape[-1]
    start = torch.linspace(near, far, count, dtype=offsets.dtype, device=offsets.device)
    return start + offsets * ((far - near) / (count - 1))


@torch.no_grad()
def importance(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Inverse transform sampling of the coarse weights. Not differentiable.

    Args:
        depths: (..., S) coarse depths, ascending, S >= 4.
        weights: (..., S - 1) weights of the intervals between them.
        u: (..., K) in [0, 1]; linspace(0, 1, K) when deterministic.

    Returns:
        (..., K) new depths, between the first and the last midpoint of the coarse depths; ascending
        where u is.
    """
    padded = torch.nn.functional.pad(weights, (1, 1), value=0.0)
    widened = torch.maximum(padded[..., :-1], padded[..., 1:])  # (..., S)
    smooth = 0.5 * (widened[..., :-1] + widened[..., 1:]) + _FLOOR  # (..., S - 1)
    mass = smooth[..., 1:-1] + _EPSILON  # (..., S - 3)
    cumulated = torch.cumsum(mass / mass.sum(-1, keepdim=True), dim=-1)
    cumulated = torch.nn.functional.pad(cumulated, (1, 0))  # (..., S - 2), from 0 to 1
    midpoints = 0.5 * (depths[..., :-1] + depths[..., 1:])  # (..., S - 1): one more than there are bin edges

    above = torch.searchsorted(cumulated, u.expand(*cumulated.shape[:-1], -1).contiguous(), right=True)
    below = (above - 1).clamp_min(0)
    above = above.clamp_max(cumulated.shape[-1] - 1)
    low, high = cumulated.gather(-1, below), cumulated.gather(-1, above)
    left, right = midpoints.gather(-1, below), midpoints.gather(-1, above)
    share = high - low
    share = torch.where(share < _EPSILON, torch.ones_like(share), share)
    return left + (u - low) / share * (right - left)
