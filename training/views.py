"""What the discriminators look at: pictures and masks, final and raw, blurred and augmented."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from training import augment
from training.augment import Augmentation
from training.generator import Rendering
from training.networks.inputs import one_hot, resize

_BLUR_REACH = 3  # the kernel ends after this many standard deviations


@dataclass(frozen=True)
class Views:
    """N views. Pictures and one-hot masks in [-1, 1]; H the final and r the raw resolution, P classes."""

    image: Tensor  # (N, 3, H, H)
    image_raw: Tensor  # (N, 3, r, r)
    mask: Tensor  # (N, P, H, H)
    mask_raw: Tensor  # (N, P, r, r)

    def detach(self) -> Views:
        return Views(self.image.detach(), self.image_raw.detach(), self.mask.detach(), self.mask_raw.detach())

    def with_mask(self) -> tuple[Tensor, Tensor]:
        """Picture and mask as one stack of channels, final (N, 3 + P, H, H) and raw."""
        return torch.cat([self.image, self.mask], dim=1), torch.cat([self.image_raw, self.mask_raw], dim=1)

    def for_mask_judge(self, *, sharpness: float, colour_blur: float) -> tuple[Tensor, Tensor]:
        """The same stacks without what tells rendered from true whatever the classes are.

        ``sharpness``: of :func:`sharpen_mask`, which makes rendered masks almost one-hot, as true ones are;
        0: none. ``colour_blur``: pictures are blurred by this share of their side, so that their sharpness
        says nothing but colours still say what is hair and what is hat.
        """
        image, image_raw = (blur(x, colour_blur * x.shape[-1]) for x in (self.image, self.image_raw))
        mask, mask_raw = self.mask, self.mask_raw
        if sharpness:
            mask, mask_raw = (sharpen_mask(x, sharpness) for x in (mask, mask_raw))
        return Views(image, image_raw, mask, mask_raw).with_mask()


def real_views(images: Tensor, masks: Tensor, classes: int, raw_resolution: int) -> Views:
    """Views of pictures uint8 (N, 3, H, H) and class maps uint8 (N, H, H); the raw ones are reductions."""
    image = images.float() / 127.5 - 1
    mask = one_hot(masks, classes) * 2 - 1
    return Views(image, resize(image, raw_resolution), mask, resize(mask, raw_resolution))


def fake_views(rendering: Rendering) -> Views:
    """Views of what the generator rendered."""
    return Views(rendering.image, rendering.image_raw, rendering.mask, rendering.mask_raw)


def sharpen_mask(mask: Tensor, sharpness: float) -> Tensor:
    """``2 softmax(sharpness * mask) - 1`` over the channels of (N, P, H, H): one-hot masks in {-1, 1} hardly
    change, soft ones become like them, and gradients stay where classes meet."""
    return (sharpness * mask).softmax(1) * 2 - 1


def prepare(
    views: Views, *, blur_share: float, augmentation: Augmentation | None, mask_noise: float = 0.0
) -> Views:
    """What is shown of the views: masks under noise of the given deviation, all blurred (by the share of the
    side), then warped and recoloured.

    True masks are one-hot, rendered ones are not: without noise (Sonderby et al. 2017) that alone tells them
    apart, and a discriminator has no reason to look at shapes.
    """
    if mask_noise:
        mask, mask_raw = (x + mask_noise * torch.randn_like(x) for x in (views.mask, views.mask_raw))
        views = replace(views, mask=mask, mask_raw=mask_raw)
    if augmentation is None and _reach(blur_share * views.image.shape[-1]) == 0:
        return views
    stacks = [blur(stack, blur_share * stack.shape[-1]) for stack in views.with_mask()]
    if augmentation is not None:
        stacks = [augment.warp(stack, augmentation) for stack in stacks]
    (image, mask), (image_raw, mask_raw) = (stack.split([3, stack.shape[1] - 3], dim=1) for stack in stacks)
    if augmentation is not None:
        image, image_raw = augment.recolour(image, augmentation), augment.recolour(image_raw, augmentation)
    return Views(image, image_raw, mask, mask_raw)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, C, H, W) by ``sigma`` pixels, zeros outside; none if the kernel is one pixel."""
    reach = _reach(sigma)
    if reach == 0:
        return images
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp2(
        -((offsets / sigma) ** 2)
    )  # falls to one half at sigma, as the published schedule has it
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    groups = images.shape[1]
    rows = functional.conv2d(images, kernel.unsqueeze(2), padding=(0, reach), groups=groups)
    return functional.conv2d(rows, kernel.unsqueeze(3), padding=(reach, 0), groups=groups)


def _reach(sigma: float) -> int:
    """Pixels on each side of the kernel's centre."""
    return int(sigma * _BLUR_REACH)
