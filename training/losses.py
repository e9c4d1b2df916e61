"""The losses of method section 3: pure functions of tensors, each a scalar mean unless it says otherwise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SURFACE_SHARPNESS = 100.0


def generator_adversarial(logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator, ``mean softplus(-D(fake))``; logits (N, 1)."""
    return functional.softplus(-logits).mean()


def discriminator_fake(logits: Tensor) -> Tensor:
    """``mean softplus(D(fake))``; logits (N, 1)."""
    return functional.softplus(logits).mean()


def discriminator_real(logits: Tensor) -> Tensor:
    """``mean softplus(-D(real))``; logits (N, 1)."""
    return functional.softplus(-logits).mean()


def r1_per_image(logits: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """Squared gradient of each image's logit: ``|dD/dx|^2``, summed over all inputs.

    Differentiable. The sum over the batch is differentiated at once, as the published penalty is, so what
    leaks between images of a batch (its standard deviation is a feature) counts too.

    Args:
        logits: (N, 1), made from ``inputs``.
        inputs: tensors (N, ...) that require gradients.

    Returns:
        (N,)
    """
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return sum(gradient.square().flatten(1).sum(1) for gradient in gradients)


def hue_difference(x: Tensor, y: Tensor, cell: int) -> Tensor:
    """Mean L1 between the hues of x and y (N, 3, H, W): colours averaged over cells, less their grey part.

    Plain L1 prefers the median of what it cannot yet predict, and the median of rare colours is grey: without
    this term a small autoencoder learns green hair last, and what is trained on its latents not at all.
    """
    difference = functional.avg_pool2d(x - y, cell)
    return (difference - difference.mean(1, keepdim=True)).abs().mean()


def feature_matching(features: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Mean over layers of the L1 between features of two pictures, as a multiple of the wanted ones' mean
    absolute value, so that no layer counts more for its scale. ``wanted`` is detached."""
    differences = [
        functional.l1_loss(found, goal.detach()) / goal.detach().abs().mean().clamp_min(1e-6)
        for found, goal in zip(features, wanted, strict=True)
    ]
    return torch.stack(differences).mean()


def eikonal(gradient: Tensor) -> Tensor:
    """``mean (|grad s| - 1)^2``; gradient (..., 3) of the signed distance."""
    return (torch.linalg.vector_norm(gradient, dim=-1) - 1).square().mean()


def minimal_surface(sdf: Tensor) -> Tensor:
    """``mean exp(-100 |s|)``: keeps surfaces from appearing where no picture asks for them; any shape."""
    return torch.exp(-_SURFACE_SHARPNESS * sdf.abs()).mean()


def sdf_consistency(sdf: Tensor, part_sdf: Tensor) -> Tensor:
    """``mean (max(s, 0) - min_p max(s_p, 0))^2``: outside, the union of the parts is the whole.

    sdf (..., 1) is detached, part_sdf (..., P) is taught.
    """
    union = part_sdf.amin(dim=-1, keepdim=True).clamp_min(
        0
    )  # = min_p max(s_p, 0), since max(., 0) is monotonic
    return functional.mse_loss(union, sdf.detach().clamp_min(0))


def density_consistency(density: Tensor, part_density: Tensor) -> Tensor:
    """``mean (sigma - sum_p sigma_p)^2``; density (..., 1) is detached, part_density (..., P) is taught."""
    return functional.mse_loss(part_density.sum(dim=-1, keepdim=True), density.detach())


def part_colour(part_images: Tensor, image: Tensor, mask: Tensor, background: float = -1.0) -> Tensor:
    """Each part, rendered alone, against the picture where the mask says that part, and background elsewhere.

    Args:
        part_images: (N, P, 3, H, W) in [-1, 1], background included as a part.
        image: (N, 3, H, W) raw picture in [-1, 1]; detached.
        mask: (N, P, H, W) raw mask, whose argmax over P is the class.
    """
    classes = (
        functional.one_hot(mask.argmax(dim=1), mask.shape[1]).movedim(-1, 1).unsqueeze(2)
    )  # (N, P, 1, H, W)
    wanted = torch.where(classes.bool(), image.detach().unsqueeze(1), background)
    return functional.mse_loss(part_images, wanted)


def density_smoothness(density: Tensor, density_nearby: Tensor) -> Tensor:
    """``mean |sigma(x) - sigma(x + d)|``; see :func:`nearby_points` for x and d. Both (N, M, 1)."""
    return functional.l1_loss(density, density_nearby)


def nearby_points(
    scenes: int,
    count: int,
    *,
    box_warp: float = 1.0,
    distance: float = 0.004,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Points uniform in the box and, for each, one at the given distance (world units) in a random direction.

    Both (scenes, count, 3); evaluate the density at both and hand it to :func:`density_smoothness`.
    """
    points = (torch.rand(scenes, count, 3, device=device, generator=generator) - 0.5) * box_warp
    direction = functional.normalize(
        torch.randn(scenes, count, 3, device=device, generator=generator), dim=-1
    )
    return points, points + direction * distance
