import copy

import torch

from training.prior.autoencoder import (
    AutoencoderStage,
    gradient_difference,
    hue_difference,
    kl_divergence,
)
from training.prior.data import read_data
from training.prior.models import build_parts, words_of


def test_gradient_difference_of_a_ramp():
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    # horizontal steps of 1, vertical ones of 0; halved once, the steps are 2
    assert torch.isclose(gradient_difference(x, torch.zeros_like(x), 1), torch.tensor(1.0))
    assert torch.isclose(gradient_difference(x, torch.zeros_like(x), 2), torch.tensor(1.5))
    assert gradient_difference(x, x + 5, 2) == 0


def test_kl_divergence():
    assert kl_divergence(torch.zeros(3), torch.zeros(3)) == 0
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.tensor(0.5), torch.tensor(2.0)), torch.distributions.Normal(0.0, 1.0)
    )
    logvar = torch.tensor(4.0).log()
    assert torch.isclose(kl_divergence(torch.tensor(0.5), logvar), expected)


def test_losses_reach_every_weight_and_depend_on_the_generator_alone(tiny_config):
    data = read_data(tiny_config)
    vae = build_parts(tiny_config, words_of(list(data.captions))).vae
    stage = AutoencoderStage(tiny_config.autoencoder, data)

    def losses():
        return stage.losses(torch.nn.ModuleDict({"vae": vae}), torch.Generator().manual_seed(3))

    first = losses()
    first["loss"].backward()
    assert all(p.grad is not None for p in vae.parameters())
    ends = [vae.encoder.conv_in, vae.encoder.conv_out, vae.decoder.conv_in, vae.decoder.conv_out]
    assert all(end.weight.grad.abs().sum() > 0 for end in ends)  # blocks in between start as identities
    assert torch.equal(first["loss"], losses()["loss"])


def test_nothing_of_a_step_stays_behind_on_the_cpu(tiny_config):
    """'meta' stands for any other device: mixing devices, and reading values, are errors there too."""
    data = read_data(tiny_config)
    vae = copy.deepcopy(build_parts(tiny_config, words_of(list(data.captions))).vae).to("meta")
    stage = AutoencoderStage(tiny_config.autoencoder, data.to("meta"))
    losses = stage.losses(torch.nn.ModuleDict({"vae": vae}), torch.Generator().manual_seed(3))
    assert {value.device.type for value in losses.values()} == {"meta"}
    losses["loss"].backward()


def test_hue_difference_ignores_brightness_and_texture_within_a_cell():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    stripes = torch.tensor([1.0, -1.0]).repeat(4)[None, None, None, :]
    assert torch.isclose(hue_difference(x + 0.4, x, cell=4), torch.tensor(0.0), atol=1e-6)
    assert torch.isclose(hue_difference(x + stripes, x, cell=4), torch.tensor(0.0), atol=1e-6)
    redder = x + torch.tensor([0.3, 0.0, 0.0])[:, None, None]
    # the channels are off their mean by 0.2, -0.1 and -0.1
    assert torch.isclose(hue_difference(redder, x, cell=4), torch.tensor(0.4 / 3), atol=1e-6)
