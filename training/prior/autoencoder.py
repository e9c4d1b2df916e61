"""Training objective of the autoencoder: pictures and normal maps to latents and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from training.losses import hue_difference
from training.prior.config import AutoencoderConfig
from training.prior.data import PriorData, sent


def gradient_difference(x: Tensor, y: Tensor, scales: int) -> Tensor:
    """Mean L1 between the finite differences of x and y (N, C, H, W), over ``scales`` halvings.

    Plain L1 is content with the median of what it cannot predict; differences ask for edges and texture.
    """
    total = x.new_zeros(())
    difference = x - y  # finite differences are linear: those of the difference are the differences of those
    for scale in range(scales):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return total / scales


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), averaged over all latent numbers."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class AutoencoderStage:
    """What the training loop needs to know of this stage."""

    def __init__(self, config: AutoencoderConfig, data: PriorData) -> None:
        self.config = config
        self.data = data

    def losses(self, module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch drawn with ``generator``; 'loss' is what is minimised."""
        vae: AutoencoderKL = module["vae"]
        count = self.config.optimiser.batch
        index = self.data.draw(count, generator)
        is_normal = torch.rand(count, generator=generator) < self.config.normals_share
        x = self.data.pictures(index, is_normal).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        # drawn on the CPU, as everything random in a step: the same on every device
        (noise,) = sent(x.device, torch.randn(posterior.mean.shape, generator=generator))
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        l1 = (x - y).abs().mean()
        gradient = gradient_difference(x, y, self.config.scales)
        hue = hue_difference(x, y, cell=2 ** (len(self.config.channels) - 1))
        kl = kl_divergence(posterior.mean, posterior.logvar)
        loss = l1 + self.config.gradient * gradient + self.config.hue * hue + self.config.kl * kl
        return {"loss": loss, "l1": l1, "gradient": gradient, "hue": hue, "kl": kl}
