"""Pictures to latents: the recognition network of a variational autoencoder (Kingma and Welling 2014)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


class Encoder(nn.Module):
    """Square pictures of any power-of-two side to posteriors.

    Each convolution of stride 2 halves the side until 4 remain; group normalisation and SiLU in between.
    """

    def __init__(self, in_channels: int, resolution: int, z_dim: int, width: int, width_max: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        while resolution > _NARROWEST:
            following = min(width, width_max)
            layers += [
                nn.Conv2d(channels, following, 3, stride=2, padding=1),
                nn.GroupNorm(4, following),
                nn.SiLU(),
            ]
            channels, width, resolution = following, width * 2, resolution // 2
        self.features = nn.Sequential(
            *layers, nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU(), nn.Flatten()
        )
        self.head = nn.Linear(channels * resolution**2, 2 * z_dim)

    def forward(self, pictures: Tensor) -> Posterior:
        """pictures (N, in_channels, H, H) -> Posterior of (N, z_dim)."""
        mean, log_variance = self.head(self.features(pictures)).chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(max=_MAX_LOG_VARIANCE))
