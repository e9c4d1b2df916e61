"""What holds an edit in place: the requested mask, and the source outside the region (method section 4.7).

Pure functions on tensors. P classes, (N, R, S) samples along R rays of N views.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.editing.region import Region
from training.field import Field
from training.rendering import marching
from training.rendering.renderer import RaySamples

# Mask channels lie in about [-1, 1]. Times 5, a channel at 1 with all others at -1 is a probability of 0.999
# among 19.
_MASK_LOGIT_SCALE = 5.0
_PART_SHARPNESS = 20.0  # as the renderer's mask: sigmoid(-20 s_p)


def mask_cross_entropy(mask: Tensor, requested: Tensor, changed: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(5 mask) to the requested classes, half of its weight on the repainted
    pixels.

    Args:
        mask: (1, P, h, w) channels in about [-1, 1], at any size.
        requested: (H, W) int64; changed: (H, W) bool. Both are brought to (h, w) with nearest neighbours.
    """
    size = mask.shape[-2:]
    requested, changed = resize_classes(requested, size), resize_classes(changed, size)
    loss = functional.cross_entropy(_MASK_LOGIT_SCALE * mask, requested[None], reduction="none")[0]
    if not changed.any() or changed.all():
        return loss.mean()
    return 0.5 * (loss[changed].mean() + loss[~changed].mean())


def resize_classes(classes: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Class map or bool (H, W) at another size, by the nearest pixel centre; dtype kept."""
    if classes.shape == torch.Size(size):
        return classes
    return functional.interpolate(classes[None, None].double(), size=size, mode="nearest-exact")[0, 0].to(
        classes.dtype
    )


def dense_mask(samples: RaySamples, marching_kind: str) -> Tensor:
    """The mask channels with gradients to the *global* SDF too: (N, R, P) in [-1, 1], equal in value to the
    renderer's.

    The renderer detaches the density, so that masks do not bend the shape while a generator is trained. An
    edit wants just that: where the request says hat and there is air, density must grow.
    """
    depth, order = samples.depth.sort(dim=-1)
    density = samples.density.squeeze(-1).gather(-1, order)
    weights = marching.sample_weights(marching.interval_weights(density, depth, marching_kind))
    weights = torch.zeros_like(weights).scatter(-1, order, weights)
    return marching.composite(torch.sigmoid(-_PART_SHARPNESS * samples.part_sdf), weights) * 2 - 1


def image_outside(image: Tensor, source: Tensor, footprint: Tensor) -> Tensor:
    """Mean |image - source| over the pixels outside the footprint; (N, 3, H, W) twice and (N, H, W) bool."""
    outside = (~footprint).to(image)[:, None]
    return ((image - source).abs() * outside).sum() / (outside.sum() * image.shape[1]).clamp_min(1)


def sdf_outside(frozen: Field, learned: Field, region: Region, points: Tensor) -> Tensor:
    """Mean |s - s_frozen| + mean_p |s_p - s_p_frozen| over those points (K, 3) that are outside the region.

    The blend never shows these values; they are kept because the learned field's classes enlarge the region,
    and because a backbone that drifts where nobody looks drifts at the region's border as well.
    """
    points = points[~region.contains(points)][None]
    if points.shape[1] == 0:
        return points.new_zeros(())
    with torch.no_grad():
        target = frozen.query(points, colour=False, parts=True)
    value = learned.query(points, colour=False, parts=True)
    return (value.sdf - target.sdf).abs().mean() + (value.part_sdf - target.part_sdf).abs().mean()


def eikonal_inside(samples: RaySamples, region: Region) -> Tensor:
    """Mean (|grad s| - 1)^2 over the samples inside the region."""
    gradient = samples.gradient[region.contains(samples.points)]
    if len(gradient) == 0:
        return samples.sdf.new_zeros(())
    # + 1e-12: the norm has no derivative at zero, which outside the planes' box happens
    return ((gradient.square().sum(-1) + 1e-12).sqrt() - 1).square().mean()


def consistency_inside(samples: RaySamples, region: Region) -> Tensor:
    """Mean (max(s, 0) - min_p max(s_p, 0))^2 over the samples inside the region.

    Unlike in training no side is detached: parts that the requested mask moved take the global surface along.
    """
    inside = region.contains(samples.points)
    if not inside.any():
        return samples.sdf.new_zeros(())
    union = samples.part_sdf[inside].clamp_min(0).amin(-1)
    return (samples.sdf[inside][:, 0].clamp_min(0) - union).square().mean()
