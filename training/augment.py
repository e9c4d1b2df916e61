"""Adaptive discriminator augmentation: random warps and colour changes of all that the discriminators see.

The same transform moves the picture, its raw rendering and their masks, so that what the discriminators
compare stays aligned. No mirroring and no large rotation: the discriminators know the camera, which those
would contradict. Every transform is differentiable to second order in the pixels, as R1 needs. Equations:
Karras et al., "Training generative adversarial networks with limited data", 2020, appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils import distributed
from training.config import AugmentConfig

_TRANSLATION = 0.125  # largest shift, as a share of the side
_SCALE = 0.2  # standard deviation of log2 of the zoom
_ROTATION = 10.0  # standard deviation of the rotation, degrees: a tilt of the head, not another camera
_BRIGHTNESS = 0.2  # standard deviation of what is added
_CONTRAST = 0.5  # standard deviation of log2 of the contrast
_SATURATION = 1.0  # standard deviation of log2 of the saturation
_BILINEAR, _REFLECTION = 0, 2  # aten's numbers for the modes of grid_sample


@dataclass(frozen=True)
class Augmentation:
    """Transforms drawn for N pictures."""

    warp: Tensor  # (N, 2, 3): output coordinates to input coordinates, both in [-1, 1] over the picture
    colour: Tensor  # (N, 3, 4): RGB to RGB, affine, on values in [-1, 1]


def draw(count: int, strength: Tensor | float, raw_resolution: int, device: torch.device) -> Augmentation:
    """Draws transforms for ``count`` pictures, each kind of transform with probability ``strength``.

    Shifts are whole pixels of the raw rendering, hence also of the picture when its side is a multiple.
    """
    return Augmentation(
        warp=_draw_warp(count, strength, raw_resolution, device), colour=_draw_colour(count, strength, device)
    )


def warp(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Moves (N, C, H, W) pictures, bilinearly; what comes in from outside is the picture's reflection."""
    grid = functional.affine_grid(augmentation.warp, list(images.shape), align_corners=False)
    return _Warp.apply(images, grid)


def recolour(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Changes the colours of (N, 3, H, W) pictures in [-1, 1]; the result may leave that range."""
    matrix, offset = augmentation.colour[:, :, :3], augmentation.colour[:, :, 3:]
    return torch.baddbmm(offset, matrix, images.flatten(2)).unflatten(2, images.shape[2:])


class Strength:
    """How often pictures are augmented; 'ada' follows how sure the discriminator is of real pictures.

    The strength moves up when the mean of sign(D(real)) exceeds the target, else down, by so much that it
    could go from 0 to 1 in ``speed_kimg``.
    """

    def __init__(self, config: AugmentConfig, device: torch.device) -> None:
        self.config = config
        self.enabled = config.mode != "none"
        start = config.strength if config.mode == "fixed" else 0.0
        self.value = torch.tensor(start, device=device)  # () in [0, 1]
        self._signs = torch.zeros(2, device=device)  # sum of the signs and their number
        self._images = 0
        self._steps = 0

    def observe(self, logits_real: Tensor) -> None:
        """Takes logits of real pictures."""
        if self.config.mode == "ada":
            signs = logits_real.detach().sign().sum().float()
            self._signs += torch.stack([signs, torch.full_like(signs, logits_real.numel())])

    def advance(self, images: int) -> None:
        """Ends a step of ``images`` images over all processes; now and then the strength is adjusted."""
        if self.config.mode != "ada":
            return
        self._images += images
        self._steps += 1
        if self._steps % self.config.interval == 0:
            self._adjust()

    def _adjust(self) -> None:
        signs = distributed.all_reduce_mean(self._signs)
        direction = torch.sign(signs[0] / signs[1] - self.config.target)
        moved = self.value + direction * self._images / (self.config.speed_kimg * 1000)
        self.value.copy_(moved.clamp(0, 1))  # in place, for recorded steps
        self._signs.zero_()
        self._images = 0

    def state_dict(self) -> dict:
        return {
            "value": self.value.clone(),
            "signs": self._signs.clone(),
            "images": self._images,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict) -> None:
        """What 'ada' has found; a fixed strength stays the configuration's, which may have changed."""
        if self.config.mode == "ada":
            self.value.copy_(state["value"])
        self._signs.copy_(state["signs"])
        self._images, self._steps = state["images"], state["steps"]


def _draw_warp(count: int, strength: Tensor | float, raw_resolution: int, device: torch.device) -> Tensor:
    """Zoom and rotation about the centre, then a shift: the inverse map of Augmentation.warp, (N, 2, 3)."""

    def sometimes(value: Tensor) -> Tensor:
        return torch.where(torch.rand(count, device=device) < strength, value, 0.0)

    zoom = torch.exp2(
        -sometimes(torch.randn(count, device=device) * _SCALE)
    )  # inverse: a larger head reads less
    angle = torch.deg2rad(sometimes(torch.randn(count, device=device) * _ROTATION))
    shares = (torch.rand(2, count, device=device) * 2 - 1) * _TRANSLATION
    pixels = (shares * raw_resolution).round()
    use = torch.rand(count, device=device) < strength
    shift = torch.where(use, pixels * (2 / raw_resolution), 0.0)  # (2, N), in [-1, 1] units
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # (N, 2, 2)
    return torch.cat([linear, shift.t().unsqueeze(2)], dim=2)


def _draw_colour(count: int, strength: Tensor | float, device: torch.device) -> Tensor:
    """Brightness, contrast, hue and saturation as one affine map of RGB, (N, 3, 4)."""

    def sometimes(value: Tensor, otherwise: float) -> Tensor:
        return torch.where(torch.rand(count, device=device) < strength, value, otherwise)

    brightness = sometimes(torch.randn(count, device=device) * _BRIGHTNESS, 0.0)
    contrast = sometimes(torch.exp2(torch.randn(count, device=device) * _CONTRAST), 1.0)
    hue = sometimes((torch.rand(count, device=device) * 2 - 1) * torch.pi, 0.0)
    saturation = sometimes(torch.exp2(torch.randn(count, device=device) * _SATURATION), 1.0)

    def each(value: Tensor) -> Tensor:
        return value[:, None, None]

    identity = torch.eye(3, device=device)
    axis = torch.full((3, 3), 1 / 3, device=device)  # projection on the grey axis (1, 1, 1) / sqrt 3
    cross = (identity.roll(-1, 1) - identity.roll(1, 1)) / 3**0.5  # of that axis with a colour
    # Rodrigues: rotation of colours about the grey axis by the hue angle
    rotation = axis + each(torch.cos(hue)) * (identity - axis) + each(torch.sin(hue)) * cross
    saturate = axis + each(saturation) * (identity - axis)
    linear = saturate @ rotation * each(contrast)
    # brightness comes before the contrast; the grey axis is untouched by rotation and saturation
    offset = (brightness * contrast)[:, None, None].expand(count, 3, 1)
    return torch.cat([linear, offset], dim=2)


class _Warp(torch.autograd.Function):
    """grid_sample as the linear map of the pixels that it is. aten's own has no second derivative."""

    @staticmethod
    def forward(ctx, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape
        return functional.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _WarpAdjoint.apply(gradient, grid, ctx.size), None


class _WarpAdjoint(torch.autograd.Function):
    """The transpose of :class:`_Warp`; its own transpose is the warp again."""

    @staticmethod
    def forward(ctx, gradient: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        pixels = gradient.new_zeros(
            size
        )  # aten wants the pixels, although the gradient does not depend on them
        return torch.ops.aten.grid_sampler_2d_backward(
            gradient.contiguous(), pixels, grid, _BILINEAR, _REFLECTION, False, (True, False)
        )[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Warp.apply(gradient, grid), None, None
