"""Pictures and class maps as networks are given them."""

from __future__ import annotations

import torch

from training.networks.inputs import one_hot, resize


def test_one_hot_has_a_one_at_the_class():
    masks = torch.randint(0, 5, (2, 4, 6))
    channels = one_hot(masks, 5)
    assert channels.shape == (2, 5, 4, 6) and channels.sum(1).eq(1).all()
    assert torch.equal(channels.argmax(1), masks)


def test_a_smaller_side_keeps_straight_lines_and_what_is_finer_than_it_goes():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    # pixels are means around (2 i + 0.5); the filter is cut off at the border
    torch.testing.assert_close(resize(ramp, 8)[0, 0, 3, 1:-1], 2 * torch.arange(1.0, 7.0) + 0.5)
    stripes = (torch.arange(16) % 2).float().expand(1, 1, 16, 16)
    # (1, 3, 3, 1) / 8 of 0 and 1 in turn; without antialiasing it would be one of them
    torch.testing.assert_close(resize(stripes, 8)[..., 1:-1], torch.full((1, 1, 8, 6), 0.5))


def test_a_side_that_fits_is_left_alone():
    image = torch.rand(1, 3, 8, 8)
    assert resize(image, 8) is image
    assert resize(torch.rand(1, 3, 8, 6), 8).shape == (1, 3, 8, 8)
