"""Pictures to latents: the recognition network of a variational autoencoder (Kingma and Welling 2014)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dnnlib import config as config_files
from dnnlib.errors import UserError
from torch_utils import checkpoint
from training.networks.inputs import one_hot, resize

FORMAT = "mate3d-encoder-1"
ENCODER_FILE = "encoder.safetensors"  # where training leaves it, beside its generators
_NARROWEST = 4  # side at which the convolutions end
_MAX_LOG_VARIANCE = 4.0  # bounds the noise that an untrained encoder can add


@dataclass(frozen=True)
class Posterior:
    """Diagonal normal distributions of N latents; both tensors (N, z_dim)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self) -> Tensor:
        """One latent each (N, z_dim), differentiable by the distribution's parameters."""
        return self.mean + torch.randn_like(self.mean) * (self.log_variance / 2).exp()

    def divergence(self) -> Tensor:
        """Kullback-Leibler divergence from the standard normal, in nats per picture (N,):
        1/2 sum (mean^2 + variance - log variance - 1)."""
        return (self.mean.square() + self.log_variance.exp() - self.log_variance - 1).sum(1) / 2


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the network."""

    in_channels: int
    resolution: int  # a power of two; larger pictures are reduced to this side
    z_dim: int
    width: int  # channels of the first convolution; each doubles them ...
    width_max: int  # ... up to these


class Encoder(nn.Module):
    """Square pictures to posteriors.

    Each convolution of stride 2 halves the side until 4 remain; group normalisation and SiLU in between.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels, resolution, width = config.in_channels, config.resolution, config.width
        while resolution > _NARROWEST:
            following = min(width, config.width_max)
            layers += [
                nn.Conv2d(channels, following, 3, stride=2, padding=1),
                nn.GroupNorm(4, following),
                nn.SiLU(),
            ]
            channels, width, resolution = following, width * 2, resolution // 2
        self.features = nn.Sequential(
            *layers, nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU(), nn.Flatten()
        )
        self.head = nn.Linear(channels * resolution**2, 2 * config.z_dim)

    def forward(self, pictures: Tensor) -> Posterior:
        """pictures (N, in_channels, H, H), H at least the configured side -> Posterior of (N, z_dim)."""
        pictures = resize(pictures, self.config.resolution)
        mean, log_variance = self.head(self.features(pictures)).chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(max=_MAX_LOG_VARIANCE))

    def read(self, images: Tensor, classes: Tensor) -> Posterior:
        """Posterior of N images (N, 3, H, H) in [-1, 1] with their masks (N, H, H) of classes: the channels
        that a generator's encoder takes."""
        masks = one_hot(classes, self.config.in_channels - images.shape[1])
        return self(torch.cat([images, masks * 2 - 1], dim=1))

    def save(self, path: Path | str, extra: dict | None = None) -> None:
        """Writes weights and sizes to a .safetensors file."""
        meta = {"format": FORMAT, "config": asdict(self.config), **(extra or {})}
        checkpoint.save(path, self.state_dict(), meta)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Encoder:
        """Reads what :meth:`save` wrote. A file of another kind is a UserError."""
        tensors, meta = checkpoint.load(path, device=device)
        if meta.get("format") != FORMAT:
            raise UserError(f"{path} is no encoder: training with a warm start leaves an encoder.safetensors")
        encoder = cls(config_files.load(EncoderConfig, meta["config"]))
        encoder.load_state_dict(tensors)
        return encoder.to(device)
