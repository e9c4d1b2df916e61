"""What holds an edit in place: the requested mask, and the source outside the region (method section 4.7).

Pure functions on tensors. P classes, (N, R, S) samples along R rays of N views. Terms that are means over
chosen points pick these out; with ``whole`` they are computed at all points and the others get no weight, so
that no tensor's size depends on values, as a recorded step needs (:mod:`training.graphs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils.ops import march_rays as marching
from training.editing.region import Region
from training.field import Field
from training.rendering.renderer import RaySamples

# Mask channels lie in about [-1, 1]. Times 5, a channel at 1 with all others at -1 is a probability of 0.999
# among 19.
_MASK_LOGIT_SCALE = 5.0
_PART_SHARPNESS = 20.0  # as the renderer's mask: sigmoid(-20 s_p)
_LEAST_CHANGE = 0.05  # of unit vectors; different people are about 1 apart
_TINY = 1e-12  # keeps logarithms finite; far below the weight of any sample that could ever be seen


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
    return _half_on(loss, changed)


def _half_on(loss: Tensor, changed: Tensor) -> Tensor:
    """Mean in which the repainted pixels weigh as much as all others together, where there are both."""
    count = changed.sum()
    half = loss.new_full((), 0.5)
    weights = torch.where(changed, half / count, half / (changed.numel() - count))
    one_kind = (count == 0) | (count == changed.numel())
    return (loss * torch.where(one_kind, 1 / changed.numel(), weights)).sum()


def resize_classes(classes: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Class map or bool (H, W) at another size, by the nearest pixel centre; dtype kept."""
    if classes.shape == torch.Size(size):
        return classes
    return functional.interpolate(classes[None, None].double(), size=size, mode="nearest-exact")[0, 0].to(
        classes.dtype
    )


def mask_likelihood(samples: RaySamples, requested: Tensor, changed: Tensor, marching_kind: str) -> Tensor:
    """Mean negative log-likelihood of the requested classes along the rays of M's camera.

    A ray ends at sample i with the volume-rendering weight w_i, and that sample is of class p with
    probability q_ip = softmax_p(-20 s_ip); a ray that meets nothing shows the background:

        -log P(class c) = -log(sum_i w_i q_ic + [c = background] (1 - sum_i w_i))

    Unlike the cross-entropy of the rendered mask this has a gradient where the request is far from what is
    there: the rendered channels, composites of sigmoid(-20 s_p), are flat a tenth of the box away from a
    part, and detach the density. Here some sample must become of class c, whichever is nearest to it in
    likelihood, *and* be what the ray meets: where M says hat and there is air, density grows.

    Args:
        samples: of one view, (1, R, S, ...).
        requested, changed: as in :func:`mask_cross_entropy`; half of the weight is on the repainted pixels.
    """
    side = math.isqrt(samples.depth.shape[1])
    requested, changed = resize_classes(requested, (side, side)), resize_classes(changed, (side, side))
    depth, order = samples.depth[0].sort(dim=-1)  # (R, S)
    density = samples.density[0, ..., 0].gather(-1, order)
    weights = marching.sample_weights(marching.interval_weights(density, depth, marching_kind))
    wanted = requested.reshape(-1, 1, 1).expand(-1, depth.shape[-1], 1)
    log_class = functional.log_softmax(-_PART_SHARPNESS * samples.part_sdf[0], dim=-1)
    log_class = log_class.gather(-1, wanted)[..., 0].gather(-1, order)  # (R, S)
    through = torch.where(requested.reshape(-1) == 0, (1 - weights.sum(-1)).clamp_min(0), 0.0)
    terms = torch.cat([(weights + _TINY).log() + log_class, (through[:, None] + _TINY).log()], dim=-1)
    return _half_on(-torch.logsumexp(terms, dim=-1), changed.reshape(-1))


def image_outside(image: Tensor, source: Tensor, footprint: Tensor) -> Tensor:
    """Mean |image - source| over the pixels outside the footprint; (N, 3, H, W) twice and (N, H, W) bool."""
    outside = (~footprint).to(image)[:, None]
    return ((image - source).abs() * outside).sum() / (outside.sum() * image.shape[1]).clamp_min(1)


class Embeddings(Protocol):
    """What the directional loss needs of a CLIP: unit vectors (N, D) of pictures and of sentences."""

    def encode_images(self, images: Tensor) -> Tensor: ...
    def encode_texts(self, texts: Sequence[str]) -> Tensor: ...


def clip_direction(clip: Embeddings, before: Tensor, after: Tensor, words: Tensor) -> Tensor:
    """``1 - cos(E(after) - E(before), T_1 - T_0)``, the mean over views (Gal et al. 2022).

    Pictures (N, 3, H, W); words (2, D), embeddings of the source's sentence and of the wanted one. A change
    is taken to be at least _LEAST_CHANGE long: an edit begins with none, which has no direction.
    """
    with torch.no_grad():
        start = clip.encode_images(before)
    change = clip.encode_images(after) - start
    wanted = functional.normalize(words[1:] - words[:1], dim=1)
    length = (change.square().sum(1) + _LEAST_CHANGE**2).sqrt()
    return 1 - ((change * wanted).sum(1) / length).mean()


class _Chosen:
    """Those of many points that a mean is over. Terms need finite derivatives at the others too."""

    def __init__(self, mask: Tensor, whole: bool) -> None:
        """mask: (...) bool."""
        self.mask = mask
        self.whole = whole

    def of(self, x: Tensor) -> Tensor:
        """x (..., K) at the chosen points, (M, K); whole: at all points."""
        return x.flatten(0, -2) if self.whole else x[self.mask]

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values (M, K) made of what :meth:`of` gave; 0 where nothing is chosen."""
        if not self.whole:
            return values.mean() if len(values) else values.sum()
        mask = self.mask.reshape(-1, 1)
        return values.where(mask, 0.0).sum() / (mask.sum() * values.shape[1]).clamp_min(1)


def sdf_outside(
    frozen: Field, learned: Field, region: Region, points: Tensor, *, whole: bool = False
) -> Tensor:
    """Mean |s - s_frozen| + mean_p |s_p - s_p_frozen| over those points (K, 3) that are outside the region.

    The blend never shows these values; they are kept because the learned field's classes enlarge the region,
    and because a backbone that drifts where nobody looks drifts at the region's border as well.
    """
    outside = _Chosen(~region.contains(points), whole)
    points = outside.of(points)[None]
    if points.shape[1] == 0:
        return points.new_zeros(())
    with torch.no_grad():
        target = frozen.query(points, colour=False, parts=True)
    value = learned.query(points, colour=False, parts=True)
    pairs = (value.sdf, target.sdf), (value.part_sdf, target.part_sdf)
    return sum(outside.mean((now - before).abs()[0]) for now, before in pairs)


def eikonal_inside(samples: RaySamples, region: Region, *, whole: bool = False) -> Tensor:
    """Mean (|grad s| - 1)^2 over the samples inside the region."""
    inside = _Chosen(region.contains(samples.points), whole)
    # + 1e-12: the norm has no derivative at zero, which outside the planes' box happens
    norm = (inside.of(samples.gradient).square().sum(-1, keepdim=True) + 1e-12).sqrt()
    return inside.mean((norm - 1).square())


def consistency_inside(samples: RaySamples, region: Region, *, whole: bool = False) -> Tensor:
    """Mean (max(s, 0) - min_p max(s_p, 0))^2 over the samples inside the region.

    Unlike in training no side is detached: parts that the requested mask moved take the global surface along.
    """
    inside = _Chosen(region.contains(samples.points), whole)
    union = inside.of(samples.part_sdf).clamp_min(0).amin(-1, keepdim=True)
    return inside.mean((inside.of(samples.sdf).clamp_min(0) - union).square())
