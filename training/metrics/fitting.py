"""Latents of true portraits: what surface does the generator give a picture whose surface is known?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.generator import Generator, Want
from training.metrics.geometry import SurfaceError, surface_error
from training.metrics.portrait_set import PortraitSet, to_float
from training.metrics.warping import Sight
from training.reconstruction import image_terms, mask_loss
from training.scene import device_of
from training.schedules import warm_up_share
from training.views import one_hot

_BATCH = 4  # portraits that are fitted together; each has gradients of its own, so the result is the same
_PULL = 0.01  # weight of the squared distance from the mean w: keeps the fit among plausible heads


@dataclass(frozen=True)
class Fit:
    """How latents are fitted."""

    steps: int = 100
    lr: float = 0.03
    mask_weight: float = 0.5


def fit_latents(generator: Generator, pictures: PortraitSet, settings: Fit | None = None) -> Tensor:
    """ws (n, num_ws, w_dim) whose renderings look like the pictures, from the pictures' cameras.

    Adam on one w per layer, from the mean w, by the losses of the warm start on picture and mask. Depth and
    normals are not looked at.
    """
    settings = settings or Fit()
    device = device_of(generator)
    return torch.cat(
        [
            _fit_some(generator, pictures.take(slice(start, start + _BATCH)), settings, device)
            for start in range(0, len(pictures), _BATCH)
        ]
    )


def _fit_some(generator: Generator, pictures: PortraitSet, settings: Fit, device: torch.device) -> Tensor:
    image = to_float(pictures.images).to(device)
    classes = one_hot(pictures.masks.to(device), generator.parts)
    camera = pictures.cameras.to(device)
    mean = generator.mapping.w_avg.detach()
    ws = mean.expand(len(pictures), generator.synthesis.num_ws, -1).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([ws], lr=settings.lr, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.lr, settings.steps, pct_start=warm_up_share(0.1, settings.steps)
    )
    for _ in range(settings.steps):
        rendering = generator.synthesise(ws, camera, deterministic=True)
        terms = image_terms(1.0, 1.0, rendering, image)
        loss = sum(term.weight * term.value for term in terms)
        loss = loss + settings.mask_weight * mask_loss(rendering, classes)
        loss = loss + _PULL * (ws - mean).square().mean()
        optimiser.zero_grad(set_to_none=True)
        (loss * len(pictures)).backward()
        optimiser.step()
        rate.step()
    return ws.detach()


def inversion_error(
    generator: Generator,
    pictures: PortraitSet,
    settings: Fit | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> SurfaceError:
    """Fits latents to the pictures (with depth and normals), and compares the surfaces."""
    say(f"fitting latents to {len(pictures)} held-out portraits")
    return rendered_error(generator, fit_latents(generator, pictures, settings), pictures)


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
