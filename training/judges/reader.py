"""The reader: a small network that finds a portrait's mask and attributes, trained on the synthetic set.

A U-Net gives a class for each pixel; the attributes are read off its features, colours off those of the
region that has them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets.labels import label_set
from dnnlib import config as config_files
from dnnlib.errors import UserError
from torch_utils import checkpoint
from training.judges.attributes import ATTRIBUTES
from training.networks.unet import Parsed, UNet

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


class Reader(UNet):
    """Pictures in [-1, 1] of any size to a :class:`Reading` at the reader's own."""

    def __init__(self, config: ReaderConfig) -> None:
        labels, widths = label_set(config.labels), config.widths
        super().__init__(labels.count, widths, config.groups)
        self.config = config
        self.labels = labels
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
        parsed = self.parse(images)
        return Reading(parsed.classes, self._attributes(images, parsed))

    def _attributes(self, images: Tensor, parsed: Parsed) -> dict[str, Tensor]:
        probability = functional.avg_pool2d(parsed.classes.detach().softmax(1), 2)  # (N, P, h, h)
        shares = torch.einsum("rp,nphw->nrhw", self.members, probability)
        seen = torch.cat([functional.avg_pool2d(images, 2), parsed.fine], dim=1)
        sums = torch.einsum("nrhw,nchw->nrc", shares, seen)
        means = sums / (shares.sum((2, 3))[..., None] + 1.0)  # a region of no pixels has no colour
        by_region = dict(zip(_REGIONS, means.unbind(1), strict=True))
        pooled = torch.cat([parsed.coarse.mean((2, 3)), parsed.coarse.amax((2, 3)), means.flatten(1)], dim=1)
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
