"""The encoder: shapes, the divergence's value, and gradients through a sample."""

from __future__ import annotations

import pytest
import torch

from dnnlib.errors import UserError
from training.network_source import BUNDLED
from training.networks.encoder import Encoder, EncoderConfig, Posterior


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
    encoder = Encoder(EncoderConfig(5, resolution, z_dim=6, width=8, width_max=16))
    pictures = torch.randn(2, 5, resolution, resolution, requires_grad=True)
    posterior = encoder(pictures)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, 6)
    posterior.sample().sum().backward()
    assert pictures.grad.abs().sum() > 0
    assert all(p.grad is not None for p in encoder.parameters())


def test_larger_pictures_are_reduced():
    encoder = Encoder(EncoderConfig(5, 16, z_dim=6, width=8, width_max=16))
    small = torch.randn(2, 5, 16, 16)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    large = large.requires_grad_(True)
    reduced = torch.nn.functional.interpolate(large, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(encoder(large).mean, encoder(reduced).mean)
    encoder(large).mean.sum().backward()
    assert large.grad.abs().sum() > 0


def test_saved_encoder_is_read_whole_and_other_files_are_refused(tmp_path):
    encoder = Encoder(EncoderConfig(5, 16, z_dim=6, width=8, width_max=16))
    encoder.save(tmp_path / "encoder.safetensors", {"images": 3})
    again = Encoder.load(tmp_path / "encoder.safetensors")
    assert again.config == encoder.config
    pictures = torch.randn(2, 5, 16, 16)
    assert torch.equal(again(pictures).mean, encoder(pictures).mean)
    with pytest.raises(UserError, match="is no encoder"):
        Encoder.load(BUNDLED)
