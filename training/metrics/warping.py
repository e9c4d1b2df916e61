"""Do two views agree? Each pixel of one is carried to where the other must show it, by its depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.rendering.cameras import project, split_label
from training.rendering.rays import camera_rays

TOLERANCE = 0.05  # world units: what lies deeper than this behind the other view's surface is hidden by it


@dataclass(frozen=True)
class Sight:
    """N views with their surface."""

    camera: Tensor  # (N, 25)
    image: Tensor  # (N, 3, H, H) in [-1, 1]
    classes: Tensor  # (N, H, H) int64, 0: background
    depth: Tensor  # (N, 1, H, H) distance along the ray, world units; anything on the background

    def __getitem__(self, chosen: slice | list[int]) -> Sight:
        return Sight(self.camera[chosen], self.image[chosen], self.classes[chosen], self.depth[chosen])

    def __len__(self) -> int:
        return len(self.camera)


@dataclass(frozen=True)
class Agreement:
    """Means over the foreground pixels of the first views that the second ones can see."""

    depth: float  # world units, of the difference of distances, at most TOLERANCE each
    colour: float  # of |difference| of the pictures, as a multiple of |difference| from their mean colour
    classes: float  # share of pixels with the same class
    compared: float  # share of the foreground pixels that could be compared


def warp(depth: Tensor, camera: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels with ``depth`` (N, 1, H, H) seen from ``camera`` (N, 25), as the ``other`` camera sees them.

    x = o + t d is the point that a pixel shows; returns its position (N, H, H, 2), (u, v) in [0, 1] inside
    the picture, and its distance |x - o'| (N, H, H) from the other camera.
    """
    side = depth.shape[-1]
    origins, directions = camera_rays(camera, side)
    points = origins + directions * depth.flatten(1)[..., None]
    position, _ = project(other, points)
    distance = (points - split_label(other)[0][:, None, :3, 3]).norm(dim=-1)
    return position.unflatten(1, (side, side)), distance.unflatten(1, (side, side))


def agreement(first: Sight, second: Sight) -> Agreement:
    """Carries each foreground pixel of the first views to the second ones and compares.

    Left out: what falls outside the picture, and what is hidden, that is, lies more than TOLERANCE behind the
    surface seen there. What hits the background there, or lies in front of its surface by more than
    TOLERANCE, should not be: it counts with an error of TOLERANCE.
    """
    position, distance = warp(first.depth, first.camera, second.camera)
    inside = ((position > 0) & (position < 1)).all(-1)
    solid = (second.classes > 0).float()[:, None]
    # a mean of foreground neighbours only: the background's depth means nothing
    share = _sample(solid, position)[:, 0]
    seen = _sample(second.depth * solid, position)[:, 0] / share.clamp_min(1e-6)
    hits = share > 0.5
    behind = distance - seen
    foreground = (first.classes > 0) & inside
    compared = foreground & ~(hits & (behind > TOLERANCE))
    error = torch.where(hits, behind.abs().clamp(max=TOLERANCE), TOLERANCE)
    colour = (_sample(second.image, position) - first.image).abs().mean(1)
    contrast = (
        (first.image - _mean_colour(first.image, compared)).abs().mean(1)
    )  # flat pictures agree cheaply
    same = _nearest(second.classes, position) == first.classes
    return Agreement(
        depth=_mean(error, compared),
        colour=_mean(colour, compared) / max(_mean(contrast, compared), 1e-6),
        classes=_mean(same.float(), compared),
        compared=_mean(compared.float(), first.classes > 0),
    )


def _sample(values: Tensor, position: Tensor) -> Tensor:
    """Bilinear: values (N, C, H, H) at positions (N, h, h, 2) in [0, 1] -> (N, C, h, h)."""
    grid = position * 2 - 1
    return functional.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _nearest(classes: Tensor, position: Tensor) -> Tensor:
    """Class maps (N, H, H) at positions (N, h, h, 2) -> (N, h, h)."""
    side = classes.shape[-1]
    index = (position.nan_to_num(0) * side).long().clamp(0, side - 1)
    return classes[torch.arange(len(classes))[:, None, None], index[..., 1], index[..., 0]]


def _mean_colour(image: Tensor, where: Tensor) -> Tensor:
    """(N, 3, 1, 1) of the pixels (N, H, H) that count."""
    weight = where[:, None].to(image)
    return ((image * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1))[..., None, None]


def _mean(values: Tensor, where: Tensor) -> float:
    """nan where there is nothing to take the mean of."""
    return values[where].double().mean().item()
