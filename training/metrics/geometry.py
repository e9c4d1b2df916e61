"""Is it one head from all sides, and is its signed distance one?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath

import torch
from torch import Tensor
from torch.nn import functional

from dnnlib.errors import UserError
from training import losses
from training.generator import Generator, Want
from training.metrics.portrait_set import PortraitSet, to_float
from training.metrics.warping import Agreement, Sight, agreement
from training.networks.inputs import resize
from training.rendering.cameras import yaw_pitch
from training.scene import Scene, camera_at, latent_of_seed, scene_of, ws_of_latent

YAWS = (-40.0, -27.0, -13.0, 0.0, 13.0, 27.0, 40.0)  # degrees, pitch 0
_NEAR = math.radians(31)  # identity is quoted within +-30 degrees
_MISSED = (0.1, 90.0)  # errors of depth (world units) and normals (degrees) where no head is shown
_SIDE = 64  # largest side at which views are compared: warping larger ones says no more


@dataclass(frozen=True)
class Consistency:
    """Means over heads of how their views agree with the frontal one, and it with them."""

    heads: int
    depth_warp: float  # world units, 0 is best
    colour_warp: float  # difference of colours as a multiple of their contrast, 0 is best
    mask_agreement: float  # share of the compared pixels with the same class, 1 is best
    compared: float  # share of the foreground that both views show
    identity: float | None  # cosine of the embeddings with the frontal view's, within +-30 degrees
    identity_all: float | None  # the same from all sides
    identity_others: float | None  # cosine of the frontal views of different heads: what no identity gives
    recognised: float | None  # share of views whose nearest from the mirrored side is of the same head


Embed = Callable[[Tensor], Tensor]  # pictures (N, 3, H, H) in [-1, 1] to unit vectors


@torch.no_grad()
def sights_of_scene(scene: Scene, yaws: Sequence[float] = YAWS) -> Sight:
    """The views of one scene from ``yaws`` (degrees). Depth is rendered at the size of the comparison."""
    generator = scene.generator
    side = min(_SIDE, generator.config.resolution)
    yaw = torch.tensor(yaws) * math.pi / 180
    cameras = camera_at(generator, yaw, torch.zeros_like(yaw))
    images, classes, depths = [], [], []
    for camera in cameras.split(1):
        view = scene.render(camera, Want(), deterministic=True)
        surface = scene.render(camera, Want(image=False, mask=False), deterministic=True, raw_resolution=side)
        images.append(resize(view.image.clamp(-1, 1), side))
        classes.append(resize(view.mask, side).argmax(1))
        depths.append(surface.depth)
    return Sight(cameras, torch.cat(images), torch.cat(classes), torch.cat(depths))


def sights_of_seeds(
    generator: Generator, seeds: Sequence[int], *, truncation: float = 1.0, yaws: Sequence[float] = YAWS
) -> list[Sight]:
    """The same of latents."""
    ws = [ws_of_latent(generator, latent_of_seed(generator, seed), truncation) for seed in seeds]
    return [sights_of_scene(scene_of(generator, each), yaws) for each in ws]


def true_sights(pictures: PortraitSet) -> list[Sight]:
    """The heads of a set of views, see datasets/portraits/views.py; needs its depth.

    Raises UserError where the pictures are no views: a folder of single portraits is not one head.
    """
    heads: dict[str, list[int]] = {}
    for number, name in enumerate(pictures.names):
        head, _, view = name.rpartition("/")
        if not head or not PurePosixPath(view).stem.startswith("view"):
            raise UserError(
                f"{name} is a portrait and no view of a head (HEAD/view0.png and so on): "
                "`python -m datasets.portraits.views` renders heads from several sides"
            )
        heads.setdefault(head, []).append(number)
    if single := [head for head, views in heads.items() if len(views) < 2]:
        raise UserError(f"{single[0]} has one view only: views of a head are compared with each other")
    whole = Sight(pictures.cameras, to_float(pictures.images), pictures.masks.long(), pictures.depth)
    return [whole[views] for views in heads.values()]


def exchanged(sights: list[Sight]) -> list[Sight]:
    """Views of different heads passed off as one: what the measures must notice."""
    count = len(sights)
    mixed = []
    for first in range(count):
        chosen = [sights[(first + view) % count][[view]] for view in range(len(sights[first]))]
        values = {f.name: torch.cat([getattr(each, f.name) for each in chosen]) for f in fields(Sight)}
        mixed.append(Sight(**values))
    return mixed


@torch.no_grad()
def score_consistency(sights: list[Sight], embed: Embed | None) -> Consistency:
    """``embed`` None: identity is not scored."""
    scores: list[Agreement] = []
    embeddings, yaws, frontals, near, everywhere = [], [], [], [], []
    for sight in sights:
        sight = _to_cpu(sight)
        yaw, _ = yaw_pitch(sight.camera)
        front = int(yaw.abs().argmin())
        others = [view for view in range(len(sight)) if view != front]
        pair = sight[[front] * len(others)], sight[others]
        scores += [agreement(*pair), agreement(*pair[::-1])]
        if embed is not None:
            found = embed(sight.image)
            cosines = found[others] @ found[front]
            near.append(cosines[yaw[others].abs() < _NEAR].mean())
            everywhere.append(cosines.mean())
            frontals.append(found[front])
            embeddings.append(found)
            yaws.append(yaw)
    return Consistency(
        heads=len(sights),
        depth_warp=_mean([score.depth for score in scores]),
        colour_warp=_mean([score.colour for score in scores]),
        mask_agreement=_mean([score.classes for score in scores]),
        compared=_mean([score.compared for score in scores]),
        identity=_mean(near) if near else None,
        identity_all=_mean(everywhere) if near else None,
        identity_others=_others(torch.stack(frontals)) if len(frontals) > 1 else None,
        recognised=recognised(embeddings, yaws) if len(frontals) > 1 else None,
    )


def recognised(embeddings: Sequence[Tensor], yaws: Sequence[Tensor]) -> float:
    """Share of the side views that are nearest to their own head among all heads as seen from the mirrored
    side; guessing among n heads gives 1/n.

    A mean cosine does not say whether heads can be told apart: blobs without a face have embeddings too, and
    those of neighbouring views are alike. Per head, ``embeddings`` (V, D) unit vectors, ``yaws`` (V,).
    """
    right = []
    for head, (found, yaw) in enumerate(zip(embeddings, yaws, strict=True)):
        front = int(yaw.abs().argmin())
        for view in range(len(yaw)):
            if view == front:
                continue
            mirrored = [int((others + yaw[view]).abs().argmin()) for others in yaws]
            heads = torch.stack([each[side] for each, side in zip(embeddings, mirrored, strict=True)])
            right.append(int((heads @ found[view]).argmax()) == head)
    return _mean(right)


def eikonal_residual(generator: Generator, seeds: Sequence[int], *, truncation: float = 1.0) -> float:
    """``mean (|grad s| - 1)^2`` over the ray samples of frontal views, as the training loss has it."""
    values = []
    for seed in seeds:
        ws = ws_of_latent(generator, latent_of_seed(generator, seed), truncation)
        want = Want(image=False, mask=False, normals=True, samples=True)
        with torch.no_grad():
            view = scene_of(generator, ws).render(camera_at(generator, 0.0, 0.0), want, deterministic=True)
            values.append(losses.eikonal(view.samples.gradient).item())
    return _mean(values)


@dataclass(frozen=True)
class SurfaceError:
    """Means over the true foreground: the same pixels, whatever is compared with it."""

    depth: float  # world units, absolute, at most 0.1, which a pixel without foreground counts too
    normals: float  # degrees; a pixel without foreground counts 90
    depth_shared: float  # over the pixels where both have a foreground, which differ with what is compared
    depth_centred: float  # the same after each portrait's median difference was taken away
    normals_shared: float  # degrees, over the same pixels as depth_shared
    image: float  # mean absolute difference of the pictures in [0, 1], everywhere
    foreground: float  # intersection over union of the foregrounds


@torch.no_grad()
def surface_error(found: Sight, normals: Tensor, true: Sight, true_normals: Tensor) -> SurfaceError:
    """Between N rendered and true views from the same cameras; normals (N, 3, H, H) in view space."""
    head = (true.classes > 0) & (true.depth[:, 0] > 0)
    both = head & (found.classes > 0)
    either = (found.classes > 0) | (true.classes > 0)
    difference = found.depth[:, 0] - true.depth[:, 0]
    centred = torch.stack(
        [d - d[b].median() if b.any() else d for d, b in zip(difference, both, strict=True)]
    )
    angle = functional.cosine_similarity(normals, true_normals, dim=1).clamp(-1, 1).acos().rad2deg()
    far, turned = _MISSED
    return SurfaceError(
        depth=torch.where(both, difference.abs().clamp(max=far), far)[head].mean().item(),
        normals=torch.where(both, angle, turned)[head].mean().item(),
        depth_shared=difference.abs()[both].mean().item(),
        depth_centred=centred.abs()[both].mean().item(),
        normals_shared=angle[both].mean().item(),
        image=(found.image - true.image).abs().mean().item() / 2,
        foreground=(both.sum() / either.sum().clamp_min(1)).item(),
    )


def _others(frontals: Tensor) -> float:
    """Mean cosine of all pairs of unit vectors (n, D) but with themselves."""
    cosines = frontals @ frontals.T
    count = len(frontals)
    return ((cosines.sum() - cosines.trace()) / (count * (count - 1))).item()


def _to_cpu(sight: Sight) -> Sight:
    return Sight(**{f.name: getattr(sight, f.name).cpu() for f in fields(Sight)})


def _mean(values: Sequence) -> float:
    """Of those that are numbers: a head without foreground has nothing to compare."""
    return torch.tensor([float(value) for value in values], dtype=torch.float64).nanmean().item()
