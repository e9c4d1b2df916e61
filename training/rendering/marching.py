"""Volume rendering of samples that are sorted along their rays.

The method averages colour, density and depth between neighbouring samples, so S samples make S - 1 intervals
and there is no last, infinite one. With interval weights w_i the picture is
``sum_i w_i (c_i + c_{i+1}) / 2``. That is ``sum_i v_i c_i`` with ``v_i = (w_{i-1} + w_i) / 2``: the weights
are moved to the samples once, and colours, masks and normals need neither averaging nor sorting.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MARCHING = ("published", "sigma")


def interval_weights(density: Tensor, depth: Tensor, marching: str) -> Tensor:
    """Weight of each interval: ``w_i = T_i (1 - exp(-m_i d_i))`` with ``T_i = exp(-sum_{j<i} m_j d_j)``.

    d_i is the length of interval i and m_i its density: sigma_mid for 'sigma', softplus(sigma_mid - 1) for
    'published', where sigma_mid is the mean of both ends.

    Args:
        density, depth: (..., S), sorted by depth.

    Returns:
        (..., S - 1), non-negative, at most 1 in sum.
    """
    if marching not in MARCHING:
        raise ValueError(f"marching is {marching!r}; it must be one of {MARCHING}")
    middle = 0.5 * (density[..., :-1] + density[..., 1:])
    if marching == "published":
        middle = functional.softplus(middle - 1)
    thickness = middle * (depth[..., 1:] - depth[..., :-1])
    # The published product of (1 - alpha + 1e-10) is this exponential, up to the 1e-10 that keeps it from 0.
    before = functional.pad(torch.cumsum(thickness, dim=-1)[..., :-1], (1, 0))
    return torch.exp(-before) * -torch.expm1(-thickness)


def sample_weights(weights: Tensor) -> Tensor:
    """Interval weights (..., S - 1) to sample weights (..., S): half of each interval goes to either end."""
    return 0.5 * (functional.pad(weights, (0, 1)) + functional.pad(weights, (1, 0)))


def unsorted_weights(density: Tensor, depth: Tensor, marching: str) -> Tensor:
    """Sample weights (..., S) of samples that lie along their rays in any order, in that order.

    Sorting the densities and bringing the weights back is far cheaper than sorting colours and parts.

    Args:
        density: (..., S); depth: (..., S), or of a shape that broadcasts to it.
    """
    depth, order = depth.sort(dim=-1)
    order = order.expand_as(density)
    weights = sample_weights(interval_weights(density.gather(-1, order), depth, marching))
    return torch.zeros_like(weights).scatter(-1, order, weights)


def composite(values: Tensor, weights: Tensor) -> Tensor:
    """``sum_s v_s c_s``: values (..., S, F) and sample weights (..., S), in any common order, to (..., F)."""
    return (weights.unsqueeze(-2) @ values).squeeze(-2)


def expected_depth(depth: Tensor, weights: Tensor) -> Tensor:
    """``sum(v z) / sum(v)`` over (..., S) -> (...); infinity where the ray meets nothing at all.

    The division is masked, not repaired afterwards: the gradient is 0, not NaN, where all weights are 0.
    """
    total = weights.sum(-1)
    met = total > 0
    mean = (weights * depth).sum(-1) / torch.where(met, total, torch.ones_like(total))
    return torch.where(met, mean, torch.full_like(mean, torch.inf))
