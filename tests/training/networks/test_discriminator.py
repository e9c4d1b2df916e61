"""The dual discriminator: logits and R1 against the published ones; the batch deviation by hand."""

from __future__ import annotations

import pytest
import torch

from training.networks.discriminator import DualDiscriminator, append_batch_deviation


def r1(image, image_raw, logits):
    """Sum of squares of the logits' gradient by both pictures, per sample."""
    gradients = torch.autograd.grad(logits.sum(), (image, image_raw), create_graph=True)
    return sum(gradient.square().sum((1, 2, 3)) for gradient in gradients)


@pytest.mark.parametrize(("name", "channels"), [("discriminator_image", 3), ("discriminator_semantic", 9)])
def test_logits_and_r1_equal_the_published_ones(parity, name, channels):
    fixture = {key: torch.from_numpy(value) for key, value in parity(name).items()}
    network = DualDiscriminator(25, 32, channels, channel_base=512, channel_max=32, mbstd_group_size=2)
    network.load_state_dict(
        {k.removeprefix("param/"): v for k, v in fixture.items() if k.startswith("param/")}
    )
    image, image_raw = fixture["image"].requires_grad_(), fixture["image_raw"].requires_grad_()
    logits = network(image, image_raw, fixture["c"])
    torch.testing.assert_close(logits, fixture["logits"], rtol=0, atol=1e-4)
    # R1 is about 1e-3: relative to that, not to one
    torch.testing.assert_close(r1(image, image_raw, logits), fixture["r1"], rtol=1e-4, atol=0)


def test_r1_gradient_by_finite_differences():
    network = DualDiscriminator(3, 8, 1, channel_base=16, channel_max=2, mbstd_group_size=2).double()
    image, image_raw = torch.randn(2, 1, 8, 8).double(), torch.randn(2, 1, 4, 4).double()
    c = torch.randn(2, 3).double()

    def penalty(weight):
        leaves = image.clone().requires_grad_(), image_raw.clone().requires_grad_()
        logits = torch.func.functional_call(network, {"b8.conv1.weight": weight}, (*leaves, c))
        return r1(*leaves, logits)

    torch.autograd.gradcheck(penalty, (network.b8.conv1.weight.detach().requires_grad_(),))


def test_camera_matters_only_when_conditioned():
    image, image_raw = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)
    conditioned = DualDiscriminator(25, 16, 3, channel_base=64, channel_max=8)
    one, other = (conditioned(image, image_raw, torch.randn(2, 25)) for _ in range(2))
    assert one.shape == (2, 1) and not torch.allclose(one, other)
    free = DualDiscriminator(0, 16, 3, channel_base=64, channel_max=8)
    assert torch.equal(free(image, image_raw, None), free(image, image_raw, torch.randn(2, 25)))


def test_both_pictures_reach_the_logit():
    network = DualDiscriminator(25, 16, 3, channel_base=64, channel_max=8)
    image, image_raw = (
        torch.randn(4, 3, 16, 16, requires_grad=True),
        torch.randn(4, 3, 8, 8, requires_grad=True),
    )
    network(image, image_raw, torch.randn(4, 25)).sum().backward()
    assert (image.grad.abs().sum((1, 2, 3)) > 0).all() and (image_raw.grad.abs().sum((1, 2, 3)) > 0).all()


def test_batch_deviation_by_hand():
    x = torch.zeros(4, 1, 2, 2)
    x[0], x[2] = 1.0, -1.0  # groups of two: (0, 2) and (1, 3)
    y = append_batch_deviation(x, group_size=2)
    assert y.shape == (4, 2, 2, 2)
    torch.testing.assert_close(y[:, 1, 0, 0], torch.tensor([1.0, 1e-4, 1.0, 1e-4]))


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (6, 3), (5, 1), (8, 4)])
def test_groups_fit_any_batch(batch, group):
    x = torch.randn(batch, 3, 4, 4)
    assert torch.equal(append_batch_deviation(x, 4), append_batch_deviation(x, group))
    assert append_batch_deviation(x, 4).isfinite().all()


def test_resolution_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="48"):
        DualDiscriminator(25, 48, 3)
