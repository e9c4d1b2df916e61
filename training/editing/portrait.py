"""The portrait before and after an edit, as one thing that can be looked at from any camera."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from training.editing.blending import BlendedField
from training.editing.region import Region
from training.field import Field, TriplaneField
from training.generator import Generator, Planes, Rendering, Want
from training.rendering.cameras import orbit_camera


class Portrait(Protocol):
    """Something with a field and a face."""

    generator: Generator

    @property
    def field(self) -> Field: ...

    def render(self, camera: Tensor, want: Want, **options) -> Rendering: ...


class SourcePortrait:
    """What a generator makes of one latent; planes are computed once.

    Args:
        generator: frozen.
        ws: (1, num_ws, w_dim).
    """

    def __init__(self, generator: Generator, ws: Tensor) -> None:
        self.generator = generator
        self.ws = ws.detach()
        with torch.no_grad():
            self.planes: Planes = generator.planes(self.ws)

    @property
    def field(self) -> TriplaneField:
        return self.generator.field(self.planes)

    def render(self, camera: Tensor, want: Want, **options) -> Rendering:
        """Views (N, 25) of the portrait; ``options`` go to
        :meth:`training.generator.Generator.synthesise`."""
        return _render(self.generator, self.ws, self.field, camera, want, options)


class LearnedCopy(nn.Module):
    """The learnable half of an edit: a copy of backbone, decoder and w.

    Super-resolution stays the frozen generator's, with the frozen w: it sees the whole picture, so a learned
    one could not leave the rest of it alone. A learned beta stays as it is too, since it would change every
    density at once.
    """

    def __init__(self, generator: Generator, ws: Tensor) -> None:
        super().__init__()
        self.synthesis = copy.deepcopy(generator.synthesis).requires_grad_(True)
        self.decoder = copy.deepcopy(generator.decoder).requires_grad_(True)
        self.decoder.sigmoid_beta.requires_grad_(False)
        self.ws = nn.Parameter(ws.detach().clone())
        self.config = generator.config

    def forward(self) -> TriplaneField:
        """The learned field of now, one scene."""
        texture, shape = (
            flat.unflatten(1, (3, self.config.plane_channels))
            for flat in self.synthesis(self.ws, noise_mode="const")
        )
        return TriplaneField(
            texture,
            shape,
            self.decoder,
            projection=self.config.plane_projection,
            box_warp=self.config.camera.box_warp,
        )


@dataclass(frozen=True)
class EditedPortrait:
    """The blend of a source and what was learned, with the region that divides them."""

    source: SourcePortrait
    learned: LearnedCopy
    region: Region

    @property
    def generator(self) -> Generator:
        return self.source.generator

    @property
    def field(self) -> BlendedField:
        return self.blend(self.learned())

    def blend(self, learned: Field) -> BlendedField:
        """The source and a field that :attr:`learned` made before."""
        return BlendedField(self.source.field, learned, self.region)

    def render(self, camera: Tensor, want: Want, *, learned: Field | None = None, **options) -> Rendering:
        """As :meth:`SourcePortrait.render`; differentiable in the learned half."""
        field = self.field if learned is None else self.blend(learned)
        return _render(self.generator, self.source.ws, field, camera, want, options)

    def learned_generator(self) -> Generator:
        """The learned half as a generator of its own: the frozen one with backbone and decoder replaced."""
        whole = copy.deepcopy(self.generator)
        whole.synthesis.load_state_dict(self.learned.synthesis.state_dict())
        whole.decoder.load_state_dict(self.learned.decoder.state_dict())
        return whole.requires_grad_(False)


def camera_at(generator: Generator, yaw: float | Tensor, pitch: float | Tensor) -> Tensor:
    """Camera labels (N, 25) on the generator's orbit; radians, 0 is frontal."""
    config = generator.config.camera
    device = next(generator.parameters()).device
    return orbit_camera(yaw, pitch, focal=config.focal, pivot=config.pivot, radius=config.radius).to(device)


def class_map(rendering: Rendering) -> Tensor:
    """(N, H, W) int64 classes of the final mask, or of the raw one where that is all there is."""
    return (rendering.mask if rendering.mask is not None else rendering.mask_raw).argmax(1)


def normal_picture(rendering: Rendering, background: int = 0) -> Tensor:
    """View-space normals (N, 3, r, r) in [-1, 1] as the prior knows them: zero in the background.

    How much of a pixel is background is taken from the mask without gradient: a geometry gradient should turn
    surfaces, not hide them.
    """
    foreground = (1 - rendering.mask_raw[:, background].detach()) / 2
    return rendering.normals * foreground.clamp(0, 1)[:, None]


def _render(
    generator: Generator, ws: Tensor, field: Field, camera: Tensor, want: Want, options: dict
) -> Rendering:
    views = len(camera)
    field = field if isinstance(field, BlendedField) else _SharedField(field)
    return generator.synthesise(ws.expand(views, -1, -1), camera, want=want, field=field, **options)


class _SharedField:
    """One scene seen by N views: points (N, M, 3) are evaluated as one batch of N M, as BlendedField does."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.density = field.density

    def sdf(self, points: Tensor) -> Tensor:
        return self._split(self.field.sdf(points.reshape(1, -1, 3)), points)

    def query(self, points: Tensor, *, colour: bool, parts: bool):
        values = self.field.query(points.reshape(1, -1, 3), colour=colour, parts=parts)
        split = {item.name: getattr(values, item.name) for item in dataclasses.fields(values)}
        return type(values)(**{name: self._split(value, points) for name, value in split.items()})

    @staticmethod
    def _split(value: Tensor | None, points: Tensor) -> Tensor | None:
        return None if value is None else value.reshape(*points.shape[:-1], value.shape[-1])
