"""Layers: against the published ones, and what equalised learning rate and modulation promise."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch.nn import functional as F

from torch_utils.ops.upfirdn2d import setup_filter
from training.networks.layers import (
    FIR_TAPS,
    Conv2dLayer,
    FullyConnectedLayer,
    OutputLayer,
    SynthesisLayer,
    channels_at,
    modulated_conv2d,
)

FIR = setup_filter(FIR_TAPS)


@pytest.mark.parametrize("up", [1, 2])
def test_modulated_convolution_equals_the_published_one(parity, up):
    fixture = {key: torch.from_numpy(value) for key, value in parity(f"modconv_up{up}").items()}
    names = ("x", "weight", "styles")
    inputs = [fixture[name].requires_grad_() for name in names]
    y = modulated_conv2d(*inputs, up=up, padding=1, resample_filter=FIR)
    torch.testing.assert_close(y, fixture["y"], rtol=0, atol=1e-4)
    for name, grad in zip(names, torch.autograd.grad(y, inputs, fixture["grad_y"]), strict=True):
        torch.testing.assert_close(grad, fixture[f"grad_{name}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_equals_one_convolution_per_sample(demodulate):
    x, weight, styles = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4, 6, 6), (5, 4, 3, 3), (3, 4))
    )
    noise = torch.randn(6, 6, dtype=torch.float64)
    y = modulated_conv2d(x, weight, styles, noise=noise, padding=1, demodulate=demodulate)
    for sample in range(3):
        scaled = weight * styles[sample, :, None, None]
        if demodulate:
            scaled = scaled / (scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = F.conv2d(x[sample : sample + 1], scaled, padding=1)[0] + noise
        torch.testing.assert_close(y[sample], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("demodulate", [True, False])
def test_a_large_picture_alone_equals_the_same_in_a_batch(up, demodulate):
    # alone, its weights are scaled; in a batch, its activations are
    x, weight = torch.randn(2, 2, 64, 64).double(), torch.randn(3, 2, 3, 3).double()
    styles = torch.randn(2, 2).double()
    noise = torch.randn(64 * up, 64 * up).double()
    arguments = dict(
        up=up,
        padding=1,
        demodulate=demodulate,
        flip_weight=up == 1,
        resample_filter=setup_filter((1, 3, 3, 1)),
    )
    cotangent = torch.randn(1, 3, 64 * up, 64 * up).double()
    found = []
    for some in (slice(1), slice(2)):
        leaves = [tensor.clone().requires_grad_() for tensor in (x[some], weight, styles[some])]
        y = modulated_conv2d(*leaves, noise, **arguments)[:1]
        gradients = torch.autograd.grad(y, leaves, cotangent)
        found.append([y, gradients[0][:1], gradients[1], gradients[2][:1]])
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-10)


def test_modulated_convolution_to_second_order():
    shapes = ((2, 2, 3, 3), (2, 2, 3, 3), (2, 2))
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def function(x, weight, styles):
        return modulated_conv2d(x, weight, styles, up=2, padding=1, resample_filter=FIR)

    torch.autograd.gradcheck(function, inputs)
    torch.autograd.gradgradcheck(function, inputs)


def test_demodulation_gives_unit_variance():
    x, weight, styles = torch.randn(4, 64, 16, 16), torch.randn(64, 64, 3, 3), torch.rand(4, 64) * 3
    y = modulated_conv2d(x, weight, styles)
    assert abs(y.std().item() - 1) < 0.05  # 200,000 values


def test_half_precision_does_not_overflow():
    x = torch.randn(2, 8, 4, 4).half() * 100
    styles = torch.randn(2, 8) * 1e4
    weight = torch.randn(8, 8, 3, 3) * 1e3
    y = modulated_conv2d(x, weight, styles, padding=1)
    expected = modulated_conv2d(x.float(), weight, styles, padding=1)
    torch.testing.assert_close(
        y.float(), expected, rtol=2e-2, atol=1.0
    )  # half has 11 bits; values of about 300


def test_other_up_factors_are_refused():
    with pytest.raises(ValueError, match="up 4"):
        modulated_conv2d(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 3, 3), torch.ones(1, 1), up=4, padding=1)


@pytest.mark.parametrize("multiplier", [1.0, 0.01])
def test_fully_connected_starts_with_unit_variance(multiplier):
    layer = FullyConnectedLayer(256, 512, lr_multiplier=multiplier)
    assert abs(layer.weight.std().item() * multiplier - 1) < 0.02
    assert abs(layer(torch.randn(64, 256)).std().item() - 1) < 0.05
    affine = FullyConnectedLayer(4, 3, bias_init=1)
    assert torch.equal(affine(torch.zeros(1, 4)), torch.ones(1, 3))


def test_fully_connected_takes_any_leading_shape():
    layer = FullyConnectedLayer(4, 3, activation="lrelu")
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]))


def test_noise_modes():
    layer = SynthesisLayer(3, 4, 8, resolution=8)
    x, w = torch.randn(2, 3, 8, 8), torch.randn(2, 8)
    assert torch.equal(layer(x, w, "const"), layer(x, w, "none"))  # the strength starts at zero
    with torch.no_grad():
        layer.noise_strength.fill_(0.5)
    assert torch.equal(layer(x, w, "const"), layer(x, w, "const"))
    assert not torch.equal(layer(x, w, "random"), layer(x, w, "random"))
    assert not torch.equal(layer(x, w, "const"), layer(x, w, "none"))
    with pytest.raises(ValueError, match="const"):
        layer(x, w, "constant")


def test_noise_differs_between_samples_only_when_fresh():
    layer = SynthesisLayer(3, 4, 8, resolution=8)
    with torch.no_grad():
        layer.noise_strength.fill_(0.5)
    x, w = torch.randn(1, 3, 8, 8).expand(2, -1, -1, -1), torch.randn(1, 8).expand(2, -1)
    fixed, fresh = layer(x, w, "const"), layer(x, w, "random")
    torch.testing.assert_close(fixed[0], fixed[1])
    assert not torch.allclose(fresh[0], fresh[1])


def test_output_layer_starts_with_unit_variance():
    y = OutputLayer(128, 24, 16)(torch.randn(8, 128, 8, 8), torch.zeros(8, 16))
    assert abs(y.std().item() - 1) < 0.1


def test_down_convolution_of_a_constant():
    layer = Conv2dLayer(1, 1, 1, bias=False, down=2)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    y = layer(torch.ones(1, 1, 8, 8), gain=sqrt(0.5))
    torch.testing.assert_close(y[..., 1:-1, 1:-1], torch.full((1, 1, 2, 2), 2 * sqrt(0.5)))


def test_clamp_grows_with_the_gain():
    layer = Conv2dLayer(1, 1, 1, conv_clamp=2.0)
    with torch.no_grad():
        layer.weight.fill_(100.0)
    assert layer(torch.ones(1, 1, 2, 2)).max() == 2
    assert layer(torch.ones(1, 1, 2, 2), gain=0.5).max() == 1


def test_channels_at_a_resolution():
    assert [channels_at(r, 32768, 512) for r in (4, 64, 128, 256)] == [512, 512, 256, 128]
