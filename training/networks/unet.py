"""A small U-Net that gives each pixel of a picture a class.

It has no full-resolution level: pixels enter in squares of four, as channels, and leave so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Parsed:
    """What a :class:`UNet` makes of N pictures of side H."""

    coarse: Tensor  # (N, C, h, h) features of the coarsest level
    fine: Tensor  # (N, c, H / 2, H / 2) features that the classes are read off
    classes: Tensor  # (N, P, H, H) logits


class Block(nn.Module):
    """Normalise, SiLU, 3 x 3 convolution, twice, beside the identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PictureEncoder(nn.Module):
    """Pictures (N, C, H, H) to features at H / 2, H / 4, ...: one tensor per entry of ``widths``."""

    def __init__(self, in_channels: int, widths: Sequence[int], groups: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4 * in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.blocks = nn.ModuleList(Block(width, groups) for width in widths)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = self.blocks[0](self.enter(functional.pixel_unshuffle(pictures, 2)))
        levels = [x]
        for down, block in zip(self.down, self.blocks[1:], strict=True):
            levels.append(block(down(levels[-1])))
        return levels


class UNet(nn.Module):
    """Pictures (N, 3, H, H) to :class:`Parsed`; H a multiple of ``2 ** len(widths)``."""

    def __init__(self, classes: int, widths: Sequence[int], groups: int) -> None:
        """``widths``: channels at a half, a quarter, ... of the pictures' side, all divided by ``groups``."""
        super().__init__()
        self.encoder = PictureEncoder(3, widths, groups)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.merge = nn.ModuleList(Block(width, groups) for width in widths[:-1])
        self.leave = nn.Conv2d(widths[0], 4 * classes, 3, padding=1)

    def parse(self, pictures: Tensor) -> Parsed:
        levels = self.encoder(pictures)
        x = levels[-1]
        for up, merge, level in zip(list(self.up)[::-1], list(self.merge)[::-1], levels[-2::-1], strict=True):
            x = merge(level + up(functional.interpolate(x, scale_factor=2.0, mode="bilinear")))
        return Parsed(levels[-1], x, functional.pixel_shuffle(self.leave(x), 2))

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, P, H, H) logits of the classes."""
        return self.parse(pictures).classes


def overlap_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """``1 - 2 sum p y / (sum p + sum y)``, the mean over the classes in the batch (Milletari et al. 2016).

    Of logits (N, P, H, W) and one-hot classes of that shape. A lip counts as much as the hair here, as in a
    mean intersection over union.
    """
    found = logits.softmax(1)
    both, sums = ((found * wanted).sum((0, 2, 3)), (found + wanted).sum((0, 2, 3)))
    present = wanted.amax((0, 2, 3)) > 0
    # absent classes have nothing in both, and may have nothing in sums either
    return 1 - (2 * both / sums.clamp_min(torch.finfo(sums.dtype).tiny)).sum() / present.sum()


def parsing_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of the pixels plus :func:`overlap_loss`, of logits and one-hot classes (N, P, H, W)."""
    return functional.cross_entropy(logits, wanted) + overlap_loss(logits, wanted)


def soften(pictures: Tensor, chosen: Tensor) -> Tensor:
    """The pictures (N, C, H, H), those that are ``chosen`` (N,) bool at half their resolution: what is learnt
    then holds for the soft pictures of a young generator too."""
    soft = functional.interpolate(functional.avg_pool2d(pictures, 2), scale_factor=2.0, mode="bilinear")
    return torch.where(chosen[:, None, None, None], soft, pictures)
