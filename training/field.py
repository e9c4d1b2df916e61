"""Fields: what a renderer marches through. Points in, signed distance, density, colour and parts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torch_utils.ops.triplane_sample import channels_last, triplane_sample_sets
from training.networks.decoder import TriplaneDecoder


@dataclass(frozen=True)
class FieldValues:
    """Values of a field at M points of each of N scenes."""

    sdf: Tensor  # (N, M, 1) global signed distance, negative inside
    density: Tensor  # (N, M, 1) of the global signed distance
    colour: Tensor | None = None  # (N, M, F) in about [0, 1]; the first three are RGB
    part_sdf: Tensor | None = None  # (N, M, P)


class Field(Protocol):
    """Anything that can be rendered. Points are (N, M, 3) in world units."""

    def sdf(self, points: Tensor) -> Tensor:
        """Global signed distance alone, (N, M, 1): what the coarse pass and the normals need."""

    def density(self, sdf: Tensor) -> Tensor:
        """Density of signed distances, of the same shape."""

    def query(self, points: Tensor, *, colour: bool, parts: bool) -> FieldValues:
        """Signed distance and density, and on request colours and parts."""


class TriplaneField:
    """Three texture planes and three shape planes, read by a decoder.

    Args:
        planes_texture, planes_shape: (N, 3, C, H, W).
        projection: 'published' (xy, xz, zx) or 'orthogonal' (xy, xz, yz).
        box_warp: side of the cube, centred at the origin, that the planes cover; features are zero outside.
    """

    def __init__(
        self,
        planes_texture: Tensor,
        planes_shape: Tensor,
        decoder: TriplaneDecoder,
        projection: str = "orthogonal",
        box_warp: float = 1.0,
    ) -> None:
        self.planes_texture = channels_last(planes_texture)  # once, instead of whenever points are read
        self.planes_shape = channels_last(planes_shape)
        self.decoder = decoder
        self.projection = projection
        self.box_warp = box_warp

    def texture_features(self, points: Tensor) -> Tensor:
        """Mean texture features of the three planes, (N, M, C)."""
        return self._features(points, self.planes_texture)[0]

    def shape_features(self, points: Tensor) -> Tensor:
        """Mean shape features of the three planes, (N, M, C)."""
        return self._features(points, self.planes_shape)[0]

    def _features(self, points: Tensor, *sets: Tensor) -> list[Tensor]:
        return triplane_sample_sets(sets, points, projection=self.projection, box_warp=self.box_warp)

    def sdf(self, points: Tensor) -> Tensor:
        return self.decoder.sdf(self.shape_features(points))

    def density(self, sdf: Tensor) -> Tensor:
        return self.decoder.density(sdf)

    def query(self, points: Tensor, *, colour: bool, parts: bool) -> FieldValues:
        sets = (self.planes_shape, self.planes_texture) if colour else (self.planes_shape,)
        shape_features, *texture_features = self._features(points, *sets)
        sdf = self.decoder.sdf(shape_features)
        return FieldValues(
            sdf=sdf,
            density=self.density(sdf),
            colour=self.decoder.colour(*texture_features) if colour else None,
            part_sdf=self.decoder.part_sdf(shape_features) if parts else None,
        )


def sdf_gradient(field: Field, points: Tensor, create_graph: bool | None = None) -> Tensor:
    """Gradient of the global signed distance with respect to position, (N, M, 3) -> (N, M, 3), without unit.

    Works under ``torch.no_grad`` too. With ``create_graph`` (default: whether gradients are on) the result
    can be differentiated with respect to whatever the field is made of: it must be right to second order.
    """
    if create_graph is None:
        create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (create_graph and points.requires_grad):  # else: points stay in the caller's graph
            points = points.detach().requires_grad_()
        sdf = field.sdf(points)
        (gradient,) = torch.autograd.grad(sdf.sum(), points, create_graph=create_graph)
    return gradient
