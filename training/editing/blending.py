"""Two fields seen as one: the learned one inside the region, the frozen one everywhere else.

Method section 4.2 blends plane features. Here *values* are blended: a learned decoder would change what
frozen features mean, and the portrait outside the region with it. The selection is hard and per sample, so
outside the region every value is the frozen field's to the last bit, and gradients reach the learned field
from inside only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.editing.region import Region
from training.field import Field, FieldValues


class BlendedField:
    """A :class:`training.field.Field` made of two.

    Both fields hold one scene. Points (N, M, 3) may be those of N views of it: the views are evaluated as one
    batch of N M points, and each field only at those points where it is seen, so a blend costs as much as one
    field.

    Importance samples come from the blend itself. A union of both generators' samples, each on its own, would
    look in two places where the blend cannot have a surface: the learned field outside the region and the
    frozen one inside.

    ``everywhere``: both fields are evaluated at all points, and one of their values is taken. That is twice
    the work, but nothing depends on how many points are inside, as a recorded step needs
    (:mod:`training.graphs`).
    """

    def __init__(self, frozen: Field, learned: Field, region: Region, *, everywhere: bool = False) -> None:
        self.frozen = frozen
        self.learned = learned
        self.region = region
        self.everywhere = everywhere

    def sdf(self, points: Tensor) -> Tensor:
        return self._select(points, lambda field, flat: (field.sdf(flat),))[0]

    def density(self, sdf: Tensor) -> Tensor:
        """Density of a signed distance. Both decoders share beta, a buffer that the edit does not learn."""
        return self.frozen.density(sdf)

    def query(self, points: Tensor, *, colour: bool, parts: bool) -> FieldValues:
        def values(field: Field, flat: Tensor) -> tuple[Tensor, ...]:
            found = field.query(flat, colour=colour, parts=parts)
            return found.sdf, *((found.colour,) if colour else ()), *((found.part_sdf,) if parts else ())

        sdf, *others = self._select(points, values)
        part_sdf = others[-1] if parts else None
        return FieldValues(
            sdf=sdf,
            density=self.density(sdf),
            colour=others[0] if colour else None,
            part_sdf=part_sdf,
        )

    def _select(
        self, points: Tensor, values: Callable[[Field, Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Each of ``values(field, points)`` from the field that is seen there, (N, M, K)."""
        flat = points.reshape(1, -1, 3)
        inside = self.region.contains(flat[0])  # (N M,)
        if self.everywhere:
            pairs = zip(values(self.learned, flat), values(self.frozen, flat), strict=True)
            blended = tuple(torch.where(inside[:, None], *pair) for pair in pairs)
        elif not inside.any():
            blended = values(self.frozen, flat)
        elif inside.all():
            blended = values(self.learned, flat)
        else:
            here, there = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
            order = torch.empty_like(inside, dtype=torch.long)
            order[torch.cat([here, there])] = torch.arange(len(order), device=order.device)
            pairs = zip(values(self.learned, flat[:, here]), values(self.frozen, flat[:, there]), strict=True)
            blended = tuple(torch.cat(pair, dim=1)[:, order] for pair in pairs)
        return tuple(value.reshape(*points.shape[:-1], value.shape[-1]) for value in blended)
