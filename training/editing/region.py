"""Where an edit may change the portrait: the edited classes, and their region in space.

**Edited classes E.** Every pixel whose class differs between the requested mask and the portrait's own is a
pair (old, new). E is the smallest set of classes, background excluded, that explains these pairs: every
changed pixel has its old or its new class in E. A hat painted over hair, forehead and background gives E =
{hat}; hair cut short gives E = {hair}. Taking *all* classes that occur in changed pixels instead would put
the skin into E as soon as a hat covers a bit of the forehead, and with it the whole face, which nobody asked
to change. ``--classes`` names E by hand.

**Region.** Three conditions, evaluated on a grid of voxels (a lookup per sample then, and what is saved with
the edit):

1. *Class*: the class of a point in either generator, the arg-min of its part SDFs, is in E; only near a
   surface (``reach``), because far from every surface the arg-min means nothing. Dilated by ``dilation``. The
   learned field's classes count up to ``growth`` from where the region began, and where they hang together
   with it: one learned SDF that drifts down everywhere would otherwise take the whole box, or leave specks
   in the air before the wall.
2. *Line of sight*: M's camera must not contradict it. A point may change when it projects onto a pixel that
   is in E in the old or the new mask, or was repainted (dilated by ``dilation_pixels``: the edit's
   footprint), or when it is hidden from that camera, behind the old surface by ``hidden_margin`` or out of
   the picture. So free space in front of the face stays as it is even where its nearest part happens to be
   hair; but the back of the hair, which M cannot show, belongs to the edit.
3. *Repainted pixels*: points that project onto repainted pixels (dilated) belong to the region whatever their
   class, as far as they are near the old portrait: along each repainted ray, where it comes closest to the
   old foreground, and up to ``growth`` further from it. This is how new hair wins over former background:
   that space has the class background in both generators until hair has grown into it, so condition 1 alone
   would never let it start. Without the bound on the distance a hat would be free to fill the whole frustum
   of its pixels, from the camera to the wall.

Background as such is never in E: its class fills most of the box, wall and free space, and would make
everything behind the head part of the edit. Its solid part, the wall, never belongs to the region, so that
what appears when hair is cut short is the wall that was always there.

Outside the footprint, then, a ray of M's camera meets changed points only behind the old surface.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor
from torch.nn import functional

from dnnlib.config import check_least
from dnnlib.errors import UserError
from training.field import Field
from training.rendering.cameras import project, split_label

_CHUNK = 1 << 16  # grid points that are evaluated at once


@dataclass(frozen=True)
class RegionSettings:
    """Sizes of the region; lengths are shares of the box's side, so they fit any box."""

    voxels: int = 64  # voxels along each side of the box
    dilation: float = 0.02  # around points whose class is in E
    reach: float = 0.15  # distance from a surface up to which the class of a point counts
    hidden_margin: float = 0.1  # this far behind the old surface a point is hidden from M's camera
    growth: float = 0.08  # how much further from the old foreground than it must, something new may grow
    wall: float = 0.03  # the background is solid where its surface is at most this far away
    dilation_pixels: float = 1 / 32  # of the footprint in the mask, as a share of the mask's side

    def __post_init__(self) -> None:
        check_least(self, 2, "region.voxels")
        check_least(self, 0, *(f"region.{each.name}" for each in fields(self)))


@dataclass(frozen=True)
class EditRequest:
    """What the user asks for: a mask at a camera."""

    requested: Tensor  # (H, W) int64 class map M
    rendered: Tensor  # (H, W) int64 class map of the portrait before the edit, same camera
    camera: Tensor  # (1, 25)
    classes: tuple[int, ...]  # E

    @property
    def changed(self) -> Tensor:
        """(H, W) bool: repainted pixels."""
        return self.requested != self.rendered

    @property
    def footprint(self) -> Tensor:
        """(H, W) bool: repainted pixels and those that are in E before or after. Not dilated."""
        return (
            self.changed | in_classes(self.requested, self.classes) | in_classes(self.rendered, self.classes)
        )


@dataclass(frozen=True)
class Region:
    """A set of voxels of the box: where the learned field is seen."""

    voxels: Tensor  # (D, D, D) bool, indexed x, y, z
    box_warp: float

    def contains(self, points: Tensor) -> Tensor:
        """points (..., 3) in world units -> (...) bool; points outside the box are outside the region."""
        side = self.voxels.shape[0]
        index = torch.floor((points.detach() / self.box_warp + 0.5) * side).long()
        in_box = ((index >= 0) & (index < side)).all(-1)
        x, y, z = index.clamp(0, side - 1).unbind(-1)
        return self.voxels.reshape(-1)[(x * side + y) * side + z] & in_box

    @functools.cached_property
    def share(self) -> float:
        """Share of the box that may change."""
        return self.voxels.float().mean().item()

    def pack(self) -> np.ndarray:
        """The voxels as uint8, eight to a byte, for :meth:`unpack`."""
        return np.packbits(self.voxels.cpu().numpy().reshape(-1))

    @classmethod
    def unpack(cls, packed: np.ndarray, side: int, box_warp: float) -> Region:
        bits = np.unpackbits(packed, count=side**3).astype(bool)
        return cls(torch.from_numpy(bits).reshape(side, side, side), box_warp)


def in_classes(class_map: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Bool of class_map's shape: the class is one of ``classes``."""
    shown = torch.zeros_like(class_map, dtype=torch.bool)
    for c in classes:  # few; a list of them would have to be copied to the device
        shown |= class_map == c
    return shown


def edited_classes(
    requested: Tensor, rendered: Tensor, background: int = 0, noise: float = 0.02
) -> tuple[int, ...]:
    """E: a small set of classes such that all but a share ``noise`` of the changed pixels have one of them.

    Greedy: the class in most unexplained changed pixels first; of several equally good ones, the one that
    changed most in proportion to its own size (a hat that replaces hair, rather than the hair).

    Raises:
        UserError: the masks are equal.
    """
    changed = requested != rendered
    total = int(changed.sum())
    if total == 0:
        raise UserError(
            "the mask equals the portrait's own: repaint some of it, or name what to edit with --classes"
        )
    left, chosen = changed.clone(), []
    candidates = [
        int(c) for c in torch.cat([requested[changed], rendered[changed]]).unique() if c != background
    ]
    while int(left.sum()) > noise * total:
        chosen.append(
            max(
                (c for c in candidates if c not in chosen), key=lambda c: _merit(c, left, requested, rendered)
            )
        )
        left &= (requested != chosen[-1]) & (rendered != chosen[-1])
    return tuple(sorted(chosen))


def _merit(c: int, left: Tensor, requested: Tensor, rendered: Tensor) -> tuple[int, float]:
    own = (requested == c) | (rendered == c)
    explained = int((own & left).sum())
    return explained, explained / int(own.sum())


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Bool mask (H, W) or (D, D, D), grown by ``radius`` in every direction (a box, not a ball)."""
    if radius < 1:
        return mask
    pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[mask.dim()]
    return pool(mask[None, None].float(), 2 * radius + 1, stride=1, padding=radius)[0, 0] > 0


def footprint_dilation(settings: RegionSettings, side: int) -> int:
    """Dilation of the footprint in pixels of a mask of that side; at least one."""
    return max(1, round(settings.dilation_pixels * side))


class RegionBuilder:
    """Builds the region, again and again as the learned field changes; what depends on the frozen one is
    kept.

    Args:
        frozen: the source's field, one scene.
        request: mask, camera and classes.
        depth: (r, r) ray distance of the frozen portrait at the request's camera.
        box_warp: side of the box.
    """

    def __init__(
        self,
        frozen: Field,
        request: EditRequest,
        depth: Tensor,
        *,
        box_warp: float,
        background: int = 0,
        settings: RegionSettings | None = None,
    ) -> None:
        self.settings = settings or RegionSettings()
        self.box_warp = box_warp
        self.classes = request.classes
        self.points = _grid(self.settings.voxels, box_warp, request.camera)
        self.side = self.settings.voxels
        self.cube = (self.side, self.side, self.side)
        pixels = footprint_dilation(self.settings, request.changed.shape[0])
        seen = sight(self.points, request.camera)
        repainted = seen.sample(dilate(request.changed, pixels), outside=False)
        footprint = seen.sample(dilate(request.footprint, pixels), outside=False)
        solid = seen.sample(request.rendered != background, outside=True)
        surface = seen.sample(depth, outside=float("-inf")) + self.settings.hidden_margin * box_warp
        hidden = (solid & (seen.distance > surface)) | ~seen.inside
        old = self._look(frozen)
        wall = (old.classes == background) & (old.sdf < self.settings.wall * box_warp)
        possible = (footprint | hidden) & ~wall  # condition 2
        self.always = (self._edited(old) & possible) | (repainted & self._near(old, seen, background) & ~wall)
        growth = round(self.settings.growth * self.side)
        self.reachable = dilate(self.always.reshape(self.cube), growth).reshape(-1) & possible

    def build(self, learned: Field | None = None) -> Region:
        """The region now; without ``learned``, that of the beginning, when both fields are equal."""
        inside = self.always
        if learned is not None:
            inside = inside | (self._edited(self._look(learned)) & self.reachable)
            inside = _connected(inside.reshape(self.cube), self.always.reshape(self.cube))
        return Region(inside.reshape(self.cube), self.box_warp)

    @torch.no_grad()
    def _look(self, field: Field) -> _Voxels:
        sdf, classes = [], []
        for points in self.points.split(_CHUNK):
            values = field.query(points[None], colour=False, parts=True)
            sdf.append(values.sdf[0, :, 0])
            classes.append(values.part_sdf[0].argmin(-1))
        return _Voxels(torch.cat(sdf), torch.cat(classes))

    def _edited(self, voxels: _Voxels) -> Tensor:
        """Condition 1, (D^3,) bool."""
        near = voxels.sdf < self.settings.reach * self.box_warp
        cube = (near & in_classes(voxels.classes, self.classes)).reshape(self.cube)
        return dilate(cube, round(self.settings.dilation * self.side)).reshape(-1)

    def _near(self, old: _Voxels, seen: Sight, background: int) -> Tensor:
        """The bound of condition 3, (D^3,) bool."""
        solid = (old.classes != background) & (old.sdf < 0)
        cube = solid.reshape(self.cube).cpu().numpy()
        if not cube.any():
            return torch.ones_like(solid)  # nothing to be near to
        distance = distance_transform_edt(~cube, sampling=self.box_warp / self.side)
        distance = torch.from_numpy(distance).to(old.sdf).reshape(-1)
        pixels = self.side  # a ray per voxel width is fine enough
        pixel = (seen.uv * pixels).long().clamp(0, pixels - 1)
        ray = pixel[:, 1] * pixels + pixel[:, 0]
        closest = distance.new_full((pixels * pixels,), float("inf"))
        closest.scatter_reduce_(0, ray[seen.inside], distance[seen.inside], "amin")
        return distance <= closest[ray] + self.settings.growth * self.box_warp


def _connected(voxels: Tensor, seed: Tensor) -> Tensor:
    """Those of ``voxels`` (D, D, D) that faces of voxels connect with one of ``seed``, a part of them."""
    labels, _ = label(voxels.cpu().numpy())
    kept = np.unique(labels[seed.cpu().numpy()])
    return torch.from_numpy(np.isin(labels, kept[kept > 0])).to(voxels.device)


@dataclass(frozen=True)
class _Voxels:
    """A field at the voxels' centres."""

    sdf: Tensor  # (D^3,)
    classes: Tensor  # (D^3,)


@dataclass(frozen=True)
class Sight:
    """K points as a camera sees them."""

    uv: Tensor  # (K, 2) picture coordinates in [0, 1], x to the right, y down
    distance: Tensor  # (K,) from the camera
    inside: Tensor  # (K,) bool: in front of the camera and in its picture

    def sample(self, picture: Tensor, outside: float | bool) -> Tensor:
        """Value of picture (H, W) at the pixel of each point, (K,); ``outside`` for points that are not in
        it."""
        height, width = picture.shape
        column = (self.uv[:, 0] * width).long().clamp(0, width - 1)
        row = (self.uv[:, 1] * height).long().clamp(0, height - 1)
        return torch.where(self.inside, picture[row, column], torch.as_tensor(outside, device=picture.device))


def sight(points: Tensor, camera: Tensor) -> Sight:
    """Points (K, 3) in world units through the camera label (1, 25)."""
    uv, ahead = (found[0] for found in project(camera, points[None]))
    inside = (ahead > 0) & ((uv >= 0) & (uv < 1)).all(-1)
    distance = (points - split_label(camera)[0][0, :3, 3]).norm(dim=-1)
    return Sight(uv=torch.where(inside[:, None], uv, torch.zeros_like(uv)), distance=distance, inside=inside)


def _grid(side: int, box_warp: float, like: Tensor) -> Tensor:
    """Voxel centres (side^3, 3), x slowest and z fastest, as :class:`Region` is indexed."""
    axis = ((torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side - 0.5) * box_warp
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
