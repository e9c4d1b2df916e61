"""The encoder: shapes, the divergence's value, and gradients through a sample."""

from __future__ import annotations

import pytest
import torch

from training.networks.encoder import Encoder, Posterior


def test_divergence_is_that_of_torch_distributions():
    posterior = Posterior(torch.randn(3, 5), torch.randn(3, 5))
    normal = torch.distributions.Normal(posterior.mean, (posterior.log_variance / 2).exp())
    wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(posterior.divergence(), wanted)


def test_samples_have_the_posterior_s_moments():
    posterior = Posterior(
        torch.tensor([[2.0, -1.0]]).expand(20000, 2), torch.tensor([[0.0, -2.0]]).expand(20000, 2)
    )
    samples = posterior.sample()
    # standard errors are 0.007 and 0.005: five of them
    torch.testing.assert_close(samples.mean(0), torch.tensor([2.0, -1.0]), atol=0.036, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([1.0, 0.3679]), atol=0.025, rtol=0)


@pytest.mark.parametrize("resolution", [4, 16, 64])
def test_encoder_takes_any_side_and_passes_gradients(resolution):
    encoder = Encoder(5, resolution, z_dim=6, width=8, width_max=16)
    pictures = torch.randn(2, 5, resolution, resolution, requires_grad=True)
    posterior = encoder(pictures)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, 6)
    posterior.sample().sum().backward()
    assert pictures.grad.abs().sum() > 0
    assert all(p.grad is not None for p in encoder.parameters())
