"""What networks are given: pictures at their own side, class maps as channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def resize(images: Tensor, side: int) -> Tensor:
    """Pictures (N, C, H, W) at another side, bilinear with antialiasing; as they are where the side fits."""
    if images.shape[-2:] == torch.Size((side, side)):
        return images
    return functional.interpolate(
        images.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )


def one_hot(masks: Tensor, classes: int) -> Tensor:
    """Class maps (N, H, W) to float (N, P, H, W) of 0 and 1."""
    channels = torch.zeros(masks.shape[0], classes, *masks.shape[1:], device=masks.device)
    return channels.scatter_(1, masks.long().unsqueeze(1), 1.0)
