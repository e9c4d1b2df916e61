"""A distance between pictures that looks at features instead of pixels, after LPIPS (Zhang et al. 2018).

LPIPS compares features of a network that was trained on photos; here it is the reader's, of portraits, and no
weights are learnt on top. So the numbers are not LPIPS's, but are made the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def perceptual_distance(first: Sequence[Tensor], second: Sequence[Tensor], where: Tensor) -> float:
    """Mean over levels of the mean over places of |a / |a| - b / |b||^2, at most 4.

    Args:
        first, second: features (1, C, h, w) of two pictures, level by level.
        where: (H, W) bool, the places that count; of a coarser place, the share of it that does.
    """
    distances = []
    for a, b in zip(first, second, strict=True):
        gap = (functional.normalize(a, dim=1) - functional.normalize(b, dim=1)).square().sum(1)[0]
        weight = functional.adaptive_avg_pool2d(where[None, None].to(gap), gap.shape[-2:])[0, 0]
        distances.append((gap * weight).sum() / weight.sum().clamp_min(1e-6))
    return torch.stack(distances).mean().item()
