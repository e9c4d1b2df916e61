"""The reader: a small network that finds a portrait's mask and attributes, trained on the synthetic set.

A U-Net without its full-resolution level (pixels enter in squares of four channels, and leave so) gives a
class for each pixel; the attributes are read off its features, colours off those of the region that has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets.labels import label_set
from dnnlib import config as config_files
from dnnlib.errors import UserError
from torch_utils import checkpoint
from training.metrics.attributes import ATTRIBUTES

FORMAT = "mate3d-reader-1"
BUNDLED = Path(__file__).resolve().parents[2] / "pretrained" / "reader-64.safetensors"
# regions whose mean colour and features the attributes are read off
_REGIONS = {
    "face": ("skin", "nose"),
    "mouth": ("mouth", "upper lip", "lower lip"),
    "eyes": ("left eye", "right eye", "left brow", "right brow", "glasses"),
    "hair": ("hair",),
    "hat": ("hat",),
    "cloth": ("cloth",),
}
# colours depend on one region alone; hats and clothes have the same colours, so one classifier serves both
_COLOUR_OF = {"hair colour": "hair", "hat colour": "hat", "cloth colour": "cloth"}


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of the network."""

    labels: str = "ffhq-mask"
    resolution: int = 64  # side of the pictures that it sees; others are resized
    widths: tuple[int, ...] = (40, 80, 128)  # channels at a half, a quarter and an eighth of it
    groups: int = 8  # of the group normalisation


@dataclass(frozen=True)
class Reading:
    """What the reader makes of N pictures."""

    classes: Tensor  # (N, P, H, H) logits of the mask
    attributes: dict[str, Tensor]  # (N, values) logits of each of ATTRIBUTES

    def words(self) -> list[dict[str, str]]:
        """The likeliest value of each attribute, picture by picture."""
        best = {name: logits.argmax(1).tolist() for name, logits in self.attributes.items()}
        count = len(next(iter(best.values())))
        return [{name: ATTRIBUTES[name][values[i]] for name, values in best.items()} for i in range(count)]


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


class Encoder(nn.Module):
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


class Reader(nn.Module):
    """Pictures in [-1, 1] of any size to a :class:`Reading` at the reader's own."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.labels = label_set(config.labels)
        widths = config.widths
        self.encoder = Encoder(3, widths, config.groups)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.merge = nn.ModuleList(Block(width, config.groups) for width in widths[:-1])
        self.leave = nn.Conv2d(widths[0], 4 * self.labels.count, 3, padding=1)
        seen = widths[0] + 3
        whole = 2 * widths[-1] + len(_REGIONS) * seen
        self.trunk = nn.Sequential(nn.Linear(whole, 128), nn.SiLU())
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(128, len(values))
                for name, values in ATTRIBUTES.items()
                if name not in _COLOUR_OF
            }
        )
        self.colours = nn.ModuleDict(
            {
                kind: nn.Sequential(nn.Linear(seen, 64), nn.SiLU(), nn.Linear(64, len(ATTRIBUTES[name])))
                for kind, name in (("hair", "hair colour"), ("cloth", "cloth colour"))
            }
        )
        members = torch.zeros(len(_REGIONS), self.labels.count)
        for row, names in zip(members, _REGIONS.values(), strict=True):
            row[[self.labels.index(name) for name in names]] = 1
        self.register_buffer("members", members, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.members.device

    def resize(self, images: Tensor) -> Tensor:
        """Any square pictures to the reader's side, antialiased."""
        side = self.config.resolution
        if images.shape[-1] == side:
            return images
        return functional.interpolate(images, (side, side), mode="bilinear", antialias=True)

    def features(self, images: Tensor) -> list[Tensor]:
        """Features (N, C, h, h) of each level, finest first: what perceptual distances compare."""
        return self.encoder(self.resize(images).clamp(-1, 1))

    def forward(self, images: Tensor) -> Reading:
        """(N, 3, H, H) in [-1, 1]."""
        images = self.resize(images).clamp(-1, 1)
        levels = self.encoder(images)
        x = levels[-1]
        for up, merge, level in zip(list(self.up)[::-1], list(self.merge)[::-1], levels[-2::-1], strict=True):
            x = merge(level + up(functional.interpolate(x, scale_factor=2.0, mode="bilinear")))
        classes = functional.pixel_shuffle(self.leave(x), 2)
        return Reading(classes, self._attributes(images, levels[-1], x, classes))

    def _attributes(self, images: Tensor, coarse: Tensor, fine: Tensor, classes: Tensor) -> dict[str, Tensor]:
        probability = functional.avg_pool2d(classes.detach().softmax(1), 2)  # (N, P, h, h)
        shares = torch.einsum("rp,nphw->nrhw", self.members, probability)
        seen = torch.cat([functional.avg_pool2d(images, 2), fine], dim=1)
        sums = torch.einsum("nrhw,nchw->nrc", shares, seen)
        means = sums / (shares.sum((2, 3))[..., None] + 1.0)  # a region of no pixels has no colour
        by_region = dict(zip(_REGIONS, means.unbind(1), strict=True))
        pooled = torch.cat([coarse.mean((2, 3)), coarse.amax((2, 3)), means.flatten(1)], dim=1)
        trunk = self.trunk(pooled)
        logits = {name: head(trunk) for name, head in self.heads.items()}
        for name, region in _COLOUR_OF.items():
            logits[name] = self.colours["hair" if region == "hair" else "cloth"](by_region[region])
        return {name: logits[name] for name in ATTRIBUTES}

    def masks(self, images: Tensor) -> Tensor:
        """(N, H, H) int64: class maps at the size of the pictures (N, 3, H, H)."""
        logits = self(images).classes
        if logits.shape[-1] != images.shape[-1]:
            logits = functional.interpolate(logits, images.shape[-2:], mode="bilinear")
        return logits.argmax(1)

    def save(self, path: Path | str, extra: dict | None = None) -> None:
        """In half precision."""
        tensors = {name: value.half() for name, value in self.state_dict().items()}
        checkpoint.save(path, tensors, {"format": FORMAT, "config": asdict(self.config), **(extra or {})})

    @classmethod
    def load(cls, path: Path | str = BUNDLED, device: torch.device | str = "cpu") -> Reader:
        """Reads what :meth:`save` wrote, frozen."""
        tensors, meta = checkpoint.load(path, device=device)
        if meta.get("format") != FORMAT:
            raise UserError(f"{path} is no reader: `python -m training.metrics.train_reader` makes one")
        reader = cls(config_files.load(ReaderConfig, meta["config"]))
        reader.load_state_dict({name: value.float() for name, value in tensors.items()})
        return reader.eval().requires_grad_(False).to(device)
