"""The U-Net that gives pixels classes, and what it is trained with."""

from __future__ import annotations

import torch
from torch.nn import functional

from training.networks.unet import UNet, overlap_loss, parsing_loss, soften


def test_every_pixel_gets_a_class_from_its_surroundings():
    torch.manual_seed(0)
    network = UNet(5, (8, 16), groups=4)
    pictures = torch.randn(2, 3, 16, 16, requires_grad=True)
    parsed = network.parse(pictures)
    assert parsed.classes.shape == (2, 5, 16, 16)
    assert parsed.fine.shape == (2, 8, 8, 8) and parsed.coarse.shape == (2, 16, 4, 4)
    torch.testing.assert_close(network(pictures), parsed.classes)
    parsed.classes[0, 0, 0, 0].backward()
    assert pictures.grad[0].abs().sum((0, 2)).ge(0).all() and pictures.grad[0, :, 12, 12].abs().sum() > 0
    assert pictures.grad[1].abs().sum() == 0  # nothing crosses from one picture to another


def test_overlap_of_sure_answers_is_the_dice_coefficient_of_each_class():
    wanted = functional.one_hot(torch.tensor([[0, 0, 0, 1]]), 3).movedim(-1, 1).float()[..., None]
    found = functional.one_hot(torch.tensor([[0, 0, 1, 1]]), 3).movedim(-1, 1).float()[..., None]
    # class 0: 2 * 2 / (3 + 2), class 1: 2 * 1 / (1 + 2); class 2 is nowhere and does not count
    expected = 1 - (4 / 5 + 2 / 3) / 2
    torch.testing.assert_close(overlap_loss(found * 100, wanted), torch.tensor(expected))
    assert overlap_loss(wanted * 100, wanted).item() < 1e-6
    # of class 2 not even the smallest probability is left
    torch.testing.assert_close(
        overlap_loss(found * 100 + wanted * 300, wanted), overlap_loss(wanted * 100, wanted)
    )
    entropy = functional.cross_entropy(found, wanted)
    torch.testing.assert_close(parsing_loss(found, wanted), entropy + overlap_loss(found, wanted))


def test_softened_pictures_are_means_of_two_by_two():
    pictures = torch.rand(2, 3, 8, 8)
    found = soften(pictures, torch.tensor([True, False]))
    assert torch.equal(found[1], pictures[1])
    torch.testing.assert_close(found[0].mean(), pictures[0].mean(), atol=0.05, rtol=0)
    assert found[0].diff(dim=-1).abs().mean() < pictures[0].diff(dim=-1).abs().mean() / 2
