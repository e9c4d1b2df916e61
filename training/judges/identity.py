"""Who is it? Embeddings of faces that a small network was taught to keep apart, from whatever side.

Only the face is looked at (skin, eyes, brows, nose, mouth, lips, glasses): everything else is blanked, so
that another hat, other hair or clothes do not make another person.
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
from training.judges.reader import Reader
from training.networks.unet import PictureEncoder

FORMAT = "mate3d-identity-1"
BUNDLED = Path(__file__).resolve().parents[2] / "pretrained" / "identity-64.safetensors"
_FACE = (
    ("skin", "nose", "glasses", "left eye", "right eye", "left brow", "right brow")
    + ("mouth", "upper lip", "lower lip")
)  # fmt: skip


@dataclass(frozen=True)
class IdentityConfig:
    """Sizes of the network."""

    labels: str = "ffhq-mask"
    resolution: int = 64
    widths: tuple[int, ...] = (32, 64, 96)  # channels at a half, a quarter and an eighth of the resolution
    groups: int = 8
    dim: int = 48  # numbers in an embedding


class IdentityNet(nn.Module):
    """Pictures (N, 3, H, H) in [-1, 1] with class maps (N, H, H) to unit vectors (N, dim)."""

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__()
        self.config = config
        self.labels = label_set(config.labels)
        self.encoder = PictureEncoder(3, config.widths, config.groups)
        self.leave = nn.Linear(4 * 4 * config.widths[-1], config.dim)
        face = torch.tensor([name in _FACE for name in self.labels.names])
        self.register_buffer("face", face, persistent=False)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        side = self.config.resolution
        face = self.face[classes][:, None].to(images)
        face_only = images.clamp(-1, 1) * face  # grey elsewhere
        if images.shape[-1] != side:
            face_only = functional.interpolate(face_only, (side, side), mode="bilinear", antialias=True)
        coarse = self.encoder(face_only)[-1]
        return functional.normalize(self.leave(functional.adaptive_avg_pool2d(coarse, 4).flatten(1)), dim=1)

    def save(self, path: Path | str, extra: dict | None = None) -> None:
        """In half precision."""
        tensors = {name: value.half() for name, value in self.state_dict().items()}
        checkpoint.save(path, tensors, {"format": FORMAT, "config": asdict(self.config), **(extra or {})})

    @classmethod
    def load(cls, path: Path | str = BUNDLED, device: torch.device | str = "cpu") -> IdentityNet:
        """Reads what :meth:`save` wrote, frozen."""
        tensors, meta = checkpoint.load(path, device=device)
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{path} is no identity network: `python -m training.metrics.train_identity` makes one"
            )
        network = cls(config_files.load(IdentityConfig, meta["config"]))
        network.load_state_dict({name: value.float() for name, value in tensors.items()})
        return network.eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class Identifier:
    """Embeds pictures whose masks are not known: the reader finds the face."""

    reader: Reader
    network: IdentityNet

    @classmethod
    def load(cls, device: torch.device | str = "cpu") -> Identifier:
        """The bundled networks."""
        return cls(Reader.load(device=device), IdentityNet.load(device=device))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, H) in [-1, 1] to unit vectors (N, dim), on the device of the pictures."""
        parts = [part.to(self.reader.device) for part in images.split(64)]
        found = torch.cat([self.network(part, self.reader.masks(part)) for part in parts])
        return found.to(images.device)

    @torch.no_grad()
    def shared(self, images: Tensor) -> Tensor:
        """Of pictures (N, 3, H, H) from one camera, unit vectors (N, dim) of the pixels that are face in all.

        So what covers a part of one face does not make another person of it. Zeros where no pixel is left.
        """
        pictures = images.to(self.reader.device)
        masks = self.reader.masks(pictures)
        shared = self.network.face[masks].all(0)
        return (self.network(pictures, masks * shared) * shared.any()).to(images.device)
