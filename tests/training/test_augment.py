"""Augmentation: one warp for all that belongs together, second derivatives, the adaptive strength."""

from __future__ import annotations

import pytest
import torch

from training import augment
from training.augment import Augmentation, Strength
from training.config import AugmentConfig

CPU = torch.device("cpu")
IDENTITY_COLOUR = torch.eye(3, 4).expand(1, 3, 4)


def shift(pixels_right: int, side: int) -> Augmentation:
    """Output column i reads input column i + pixels_right."""
    matrix = torch.tensor([[[1.0, 0, 2 * pixels_right / side], [0, 1, 0]]])
    return Augmentation(warp=matrix, colour=IDENTITY_COLOUR)


def test_strength_zero_changes_nothing():
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    drawn = augment.draw(3, 0.0, 4, CPU)
    # the grid's coordinates are rounded to float32
    torch.testing.assert_close(augment.warp(images, drawn), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(augment.recolour(images, drawn), images, atol=1e-6, rtol=0)


def test_strength_one_changes_every_picture():
    drawn = augment.draw(16, 1.0, 32, CPU)
    assert (drawn.warp - torch.eye(2, 3)).flatten(1).norm(dim=1).min() > 1e-4
    assert (drawn.colour - torch.eye(3, 4)).flatten(1).norm(dim=1).min() > 1e-4


def test_share_of_augmented_pictures_follows_the_strength():
    drawn = augment.draw(4000, torch.tensor(0.25), 1024, CPU)
    shifted = (drawn.warp[:, :, 2] != 0).any(1).float().mean()
    assert abs(shifted - 0.25) < 0.04  # six standard deviations of 4000 draws


def test_shift_moves_picture_and_raw_picture_alike():
    raw = torch.rand(1, 2, 4, 4)
    image = raw.repeat_interleave(2, 2).repeat_interleave(2, 3)  # every raw pixel is 2 x 2 pixels
    moved_raw = augment.warp(raw, shift(1, 4))
    moved = augment.warp(image, shift(1, 4))
    torch.testing.assert_close(moved_raw[..., :3], raw[..., 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., ::2, ::2], moved_raw, atol=1e-5, rtol=0)


def test_drawn_shifts_are_whole_raw_pixels():
    drawn = augment.draw(64, 1.0, 16, CPU)
    pixels = drawn.warp[:, :, 2] * 16 / 2
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-5, rtol=0)
    assert pixels.abs().max() <= 2  # an eighth of the side


def test_recolouring_keeps_grey_grey_up_to_contrast_and_brightness():
    drawn = augment.draw(8, 1.0, 16, CPU)
    grey = torch.full((8, 3, 1, 1), 0.4)
    out = augment.recolour(grey, drawn)
    torch.testing.assert_close(out, out.mean(1, keepdim=True).expand_as(out), atol=1e-5, rtol=1e-5)


def test_warp_has_second_derivatives():
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    drawn = augment.draw(2, 1.0, 4, CPU)
    drawn = Augmentation(drawn.warp.double(), drawn.colour.double())
    assert torch.autograd.gradcheck(lambda x: augment.warp(x, drawn), images)
    # squared, because the warp itself is linear
    assert torch.autograd.gradgradcheck(lambda x: augment.warp(x, drawn).square(), images)


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.08), (-1.0, 0.0)])
def test_adaptive_strength_follows_the_discriminator(sign: float, expected: float):
    strength = Strength(AugmentConfig(mode="ada", speed_kimg=0.1, interval=4), CPU)
    for _ in range(4):
        strength.observe(torch.full((2, 1), sign))
        strength.advance(2)
    # 8 images of the 100 in which the strength could go from 0 to 1; it does not go below 0
    assert strength.value.item() == pytest.approx(expected)


def test_strength_between_adjustments_survives_its_state():
    config = AugmentConfig(mode="ada", speed_kimg=0.1, interval=2)
    one, other = Strength(config, CPU), Strength(config, CPU)
    one.observe(torch.ones(2, 1))
    one.advance(2)
    other.load_state_dict(one.state_dict())
    for strength in (one, other):
        strength.observe(torch.ones(2, 1))
        strength.advance(2)
    assert one.value == other.value > 0


def test_a_resumed_run_has_the_fixed_strength_of_its_configuration():
    for before in (AugmentConfig(mode="none"), AugmentConfig(mode="fixed", strength=0.2)):
        strength = Strength(AugmentConfig(mode="fixed", strength=0.8), CPU)
        strength.load_state_dict(Strength(before, CPU).state_dict())
        assert strength.value.item() == pytest.approx(0.8)


def test_fixed_strength_stays():
    strength = Strength(AugmentConfig(mode="fixed", strength=0.3), CPU)
    strength.observe(torch.ones(2, 1))
    strength.advance(2)
    assert strength.enabled
    assert strength.value.item() == pytest.approx(0.3)
