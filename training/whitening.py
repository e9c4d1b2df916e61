"""Brings encoded latents to the standard normal that the generator is sampled with.

The divergence of a variational autoencoder asks of each posterior to be near the standard normal, which the
mixture of all posteriors, the *aggregate*, may still be far from: directions that matter most are stretched
(the brightness of a background, say, to a deviation of five), others shrink. Latents from the standard normal
then show medium pictures only. The second moments can be put right at once, without training: a linear map
makes them those of the standard normal, and the two layers that write and read latents take it up. What else
was learned has to get used to it, so that a loss that keeps the moments there is the gentler way.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_utils import distributed
from training.networks.encoder import Encoder, Posterior
from training.networks.mapping import MappingNetwork

_MEMORY = 2000  # latents over which the moments are averaged, exponentially
_SMALLEST = 1e-3  # variance below which a direction counts as unused
_YOUNGEST = 1e-6  # weight of moments: far below that of a single posterior
_LEAST_NOISE = 1e-6  # variance of a posterior: its logarithm must stay finite


class Moments:
    """Running moments of the aggregate of all posteriors."""

    def __init__(self, z_dim: int, device: torch.device | str = "cpu") -> None:
        self.weight = torch.zeros((), device=device)  # of what was seen: less than 1 at the start
        self.mean = torch.zeros(z_dim, device=device)  # of the posteriors' means
        self.second = torch.zeros(z_dim, z_dim, device=device)  # of their outer products
        self.noise = torch.zeros(z_dim, device=device)  # of the posteriors' variances

    @torch.no_grad()
    def observe(self, posterior: Posterior) -> None:
        """Adds N posteriors."""
        mean, variance = posterior.mean, posterior.log_variance.exp()
        share = min(1.0, len(mean) * distributed.world_size() / _MEMORY)
        for kept, new in (
            (self.weight, torch.ones_like(self.weight)),
            (self.mean, mean.mean(0)),
            (self.second, mean.t() @ mean / len(mean)),
            (self.noise, variance.mean(0)),
        ):
            kept.lerp_(distributed.all_reduce_mean(new), share)

    def aggregate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (Z,) and covariance (Z, Z) of a latent of any picture, and the mean variance (Z,) of one
        picture's."""
        weight = self.weight.clamp_min(_YOUNGEST)  # before the first posterior all moments are zero
        mean, second, noise = (x / weight for x in (self.mean, self.second, self.noise))
        return mean, second - mean.outer(mean) + noise.diag(), noise

    def state_dict(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)


def aggregate_distance(moments: Moments, posterior: Posterior) -> Tensor:
    """``|m|^2 + |C - I|_F^2`` of the aggregate's mean m and covariance C, a scalar, as a loss.

    The value is that of the running moments; the gradient is the part that these N posteriors have in it
    (Kumar et al. 2018, DIP-VAE, takes the moments of one batch, for which a batch must be large):
    2 m for a mean mu, 4 (C - I) (mu - m) more for it, and 2 diag(C - I) for a variance. Less in proportion
    while the moments are young.
    """
    mean, covariance, _ = moments.aggregate()
    excess = covariance - torch.eye(len(mean), device=mean.device)
    centred = posterior.mean - mean
    pull = 2 * posterior.mean @ mean + 2 * ((centred @ excess) * centred).sum(1)
    pull = (pull + 2 * posterior.log_variance.exp() @ excess.diag()).mean()
    value = mean.square().sum() + excess.square().sum()
    return moments.weight * (value + pull - pull.detach())


@torch.no_grad()
def whiten(moments: Moments, encoder: Encoder, mappings: Iterable[MappingNetwork]) -> None:
    """Replaces latents z by y = T (z - m): m is z's mean, T makes diagonal both of its covariances.

    C is the covariance of all latents, N the mean variance (a diagonal) of one picture's. T C T' = I and
    T N T' is diagonal: C^(-1/2) makes C the identity, and the eigenvectors of what becomes of N turn the
    axes. Eigenvectors of C alone would mix a direction that tells pictures apart (its variance is that of the
    means) with one that tells nothing (its variance is noise) wherever the sums of the two are alike, and
    bury the first in noise.

    The encoder's last layer writes y, and the mappings' first layers read it: a picture's w stays what it was
    but for the mapping's normalisation, which now divides by y's length and used to divide by z's. The
    posteriors' variances begin anew, at the mean of what they are along the new axes.
    """
    mean, covariance, noise = moments.aggregate()
    eigenvalues, axes = torch.linalg.eigh(covariance)
    scale = eigenvalues.clamp_min(_SMALLEST).sqrt()
    to_white, from_white = axes.t() / scale[:, None], axes * scale  # (Z, Z)
    new_noise, turned = torch.linalg.eigh((to_white * noise) @ to_white.t())
    new_noise = new_noise.clamp_min(_LEAST_NOISE)
    to_new, to_old = turned.t() @ to_white, from_white @ turned
    head, z_dim = encoder.head, len(mean)
    head.weight[:z_dim] = to_new @ head.weight[:z_dim]
    head.bias[:z_dim] = to_new @ (head.bias[:z_dim] - mean)
    head.weight[z_dim:] = 0
    head.bias[z_dim:] = new_noise.log()
    length = (mean.square().sum() + eigenvalues.sum()).div(z_dim).sqrt()  # root mean square of z's numbers
    for mapping in mappings:
        layer = mapping.fc0
        weight = layer.weight[:, :z_dim].clone()
        layer.weight[:, :z_dim] = weight @ to_old / length
        layer.bias += weight @ mean / length * (layer.weight_gain / layer.bias_gain)
    moments.mean.zero_()
    moments.noise.copy_(moments.weight * new_noise)
    moments.second.copy_((moments.weight - moments.noise).diag())
