"""One scene of a generator, ready to be looked at: by the edit, by ``generate.py`` and by the exporters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.field import Field, FieldValues
from training.generator import Generator, Rendering, Want
from training.rendering.cameras import frontal_camera, orbit_camera


@dataclass(frozen=True)
class Scene:
    """A field that holds one scene, with the generator whose super-resolution finishes its pictures."""

    generator: Generator
    ws: Tensor  # (1, num_ws, w_dim) of the super-resolution
    field: Field

    def render(
        self, camera: Tensor, want: Want | None = None, *, proposals: Sequence[Field] = (), **options
    ) -> Rendering:
        """Views (N, 25); ``proposals``, fields of one scene too, choose the importance samples instead of the
        scene's own; ``options`` go to :meth:`training.generator.Generator.synthesise`."""
        return self.generator.synthesise(
            self.ws.expand(len(camera), -1, -1),
            camera,
            want=want,
            field=SharedField(self.field),
            proposals=[SharedField(each) for each in proposals],
            **options,
        )


class SharedField:
    """One scene seen by N views: points (N, M, 3) are evaluated as one batch (1, N M, 3)."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.density = field.density

    def sdf(self, points: Tensor) -> Tensor:
        return self._split(self.field.sdf(points.reshape(1, -1, 3)), points)

    def query(self, points: Tensor, *, colour: bool, parts: bool) -> FieldValues:
        values = self.field.query(points.reshape(1, -1, 3), colour=colour, parts=parts)
        split = {item.name: getattr(values, item.name) for item in dataclasses.fields(values)}
        return FieldValues(**{name: self._split(value, points) for name, value in split.items()})

    @staticmethod
    def _split(value: Tensor | None, points: Tensor) -> Tensor | None:
        return None if value is None else value.reshape(*points.shape[:-1], value.shape[-1])


@torch.no_grad()
def scene_of(generator: Generator, ws: Tensor) -> Scene:
    """What a generator makes of ws (1, num_ws, w_dim); its planes are computed here, once."""
    return Scene(generator, ws, generator.field(generator.planes(ws)))


def latent_of_seed(generator: Generator, seed: int) -> Tensor:
    """z (1, z_dim) of a seed: numpy's RandomState, as users of EG3D know it, the same on every device."""
    z = np.random.RandomState(seed).randn(1, generator.config.z_dim)
    return torch.from_numpy(z).float().to(device_of(generator))


@torch.no_grad()
def ws_of_latent(generator: Generator, z: Tensor, truncation: float) -> Tensor:
    """z (N, z_dim) to ws (N, num_ws, w_dim), conditioned on the frontal camera whatever the view will be."""
    return generator.map(z, canonical_camera(generator).expand(len(z), -1), truncation_psi=truncation)


def canonical_camera(generator: Generator) -> Tensor:
    """Label (1, 25) of the frontal view."""
    camera = generator.config.camera
    label = frontal_camera(focal=camera.focal, pivot=camera.pivot, radius=camera.radius)
    return label.to(device_of(generator))


def camera_at(generator: Generator, yaw: float | Tensor, pitch: float | Tensor) -> Tensor:
    """Camera labels (N, 25) on the orbit; radians, 0 is frontal, positive yaw moves to the world's +x."""
    camera = generator.config.camera
    label = orbit_camera(yaw, pitch, focal=camera.focal, pivot=camera.pivot, radius=camera.radius)
    return label.to(device_of(generator))


def device_of(generator: Generator) -> torch.device:
    return next(generator.parameters()).device


def class_map(rendering: Rendering) -> Tensor:
    """(N, H, W) int64 classes of the final mask, or of the raw one where that is all there is."""
    return (rendering.mask if rendering.mask is not None else rendering.mask_raw).argmax(1)


def normal_picture(rendering: Rendering, background: int = 0) -> Tensor:
    """View-space normals (N, 3, r, r) in [-1, 1] as the prior knows them: zero in the background.

    How much of a pixel is background is taken from the mask without gradient: a geometry gradient should turn
    surfaces, not hide them. Without parts nothing says what is background.
    """
    if rendering.mask_raw is None:
        return rendering.normals
    foreground = (1 - rendering.mask_raw[:, background].detach()) / 2
    return rendering.normals * foreground.clamp(0, 1)[:, None]
