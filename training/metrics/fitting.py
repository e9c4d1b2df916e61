"""Latents of true portraits: what surface does the generator give a picture whose surface is known?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.editing.inversion import InversionSettings, Target, fit
from training.generator import Generator, Want
from training.metrics.geometry import SurfaceError, surface_error
from training.metrics.portrait_set import PortraitSet, to_float
from training.metrics.warping import Sight
from training.scene import device_of

_BATCH = 4  # portraits that are fitted together; each has gradients of its own, so the result is the same


@dataclass(frozen=True)
class Fit:
    """How latents are fitted."""

    steps: int = 100
    lr: float = 0.03


def fit_latents(generator: Generator, pictures: PortraitSet, settings: Fit | None = None) -> Tensor:
    """ws (n, num_ws, w_dim) whose renderings look like the pictures, from the pictures' cameras, as
    :func:`training.editing.inversion.fit` finds them. Depth and normals are not looked at."""
    chosen = settings or Fit()
    settings = InversionSettings(fit_steps=chosen.steps, lr=chosen.lr)
    device = device_of(generator)
    found = []
    for start in range(0, len(pictures), _BATCH):
        some = pictures.take(slice(start, start + _BATCH))
        target = Target(to_float(some.images).to(device), some.masks.to(device))
        found.append(fit(generator, target, camera=some.cameras.to(device), settings=settings))
        if found[-1].interrupted:
            raise KeyboardInterrupt
    return torch.cat([each.ws for each in found])


def inversion_error(
    generator: Generator,
    pictures: PortraitSet,
    settings: Fit | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> SurfaceError:
    """Fits latents to the pictures (with depth and normals), and compares the surfaces."""
    say(f"fitting latents to {len(pictures)} held-out portraits")
    return rendered_error(generator, fit_latents(generator, pictures, settings), pictures)


def unfitted_error(generator: Generator, pictures: PortraitSet) -> SurfaceError:
    """What :func:`inversion_error` gives without any fit: the mean head in the place of all of them."""
    ws = generator.mapping.w_avg.expand(len(pictures), generator.synthesis.num_ws, -1)
    return rendered_error(generator, ws, pictures)


@torch.no_grad()
def rendered_error(generator: Generator, ws: Tensor, pictures: PortraitSet) -> SurfaceError:
    """Surfaces of ws (n, num_ws, w_dim) against the true ones, seen from the pictures' cameras."""
    side = pictures.images.shape[-1]
    device = device_of(generator)
    images, classes, depths, normals = [], [], [], []
    for w, camera in zip(ws.split(1), pictures.cameras.to(device).split(1), strict=True):
        view = generator.synthesise(w, camera, deterministic=True)
        want = Want(image=False, mask=False, normals=True)
        surface = generator.synthesise(w, camera, want=want, deterministic=True, raw_resolution=side)
        images.append(view.image.clamp(-1, 1).cpu())
        classes.append(view.mask.argmax(1).cpu())
        depths.append(surface.depth.cpu())
        normals.append(surface.normals.cpu())
    found = Sight(pictures.cameras, torch.cat(images), torch.cat(classes), torch.cat(depths))
    true = Sight(pictures.cameras, to_float(pictures.images), pictures.masks.long(), pictures.depth)
    return surface_error(found, torch.cat(normals), true, pictures.normals)
