"""What the discriminators are shown."""

from __future__ import annotations

import math

import pytest
import torch

from training import augment
from training.networks.inputs import one_hot, resize
from training.views import Views, blur, prepare, real_views, sharpen_mask


def test_real_views_have_the_range_and_classes_of_generated_ones():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    masks = torch.tensor([0, 2], dtype=torch.uint8).view(2, 1, 1).expand(2, 8, 8)
    views = real_views(images, masks, classes=3, raw_resolution=4)
    assert views.image.unique().tolist() == [-1, 1]
    assert views.mask[:, :, 0, 0].tolist() == [[1, -1, -1], [-1, -1, 1]]
    assert views.image_raw.shape == (2, 3, 4, 4)
    torch.testing.assert_close(views.mask_raw, views.mask[..., ::2, ::2])


def test_blur_falls_to_one_half_at_sigma():
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1
    out = blur(point, 4.0)
    assert math.isclose(out.sum(), 1, abs_tol=1e-5)
    assert math.isclose(out[0, 0, 15, 19] / out[0, 0, 15, 15], 0.5, abs_tol=1e-5)
    torch.testing.assert_close(out, out.transpose(2, 3))


def test_blur_below_a_pixel_is_none():
    image = torch.rand(1, 3, 8, 8)
    assert blur(image, 0.3) is image


def test_prepare_recolours_pictures_but_not_masks():
    views = Views(*(torch.rand(2, c, s, s) for c, s in ((3, 8), (3, 4), (5, 8), (5, 4))))
    drawn = augment.draw(2, 1.0, 4, torch.device("cpu"))
    still = augment.Augmentation(torch.eye(2, 3).expand(2, 2, 3), drawn.colour)
    shown = prepare(views, blur_share=0.0, augmentation=still)
    torch.testing.assert_close(shown.mask, views.mask, atol=1e-5, rtol=0)
    torch.testing.assert_close(shown.mask_raw, views.mask_raw, atol=1e-5, rtol=0)
    assert (shown.image - views.image).abs().max() > 0.01


def test_noise_falls_on_masks_alone_and_anew_each_time():
    views = Views(*(torch.zeros(2, c, s, s) for c, s in ((3, 32), (3, 16), (5, 32), (5, 16))))
    shown = prepare(views, blur_share=0.0, augmentation=None, mask_noise=0.5)
    assert shown.image is views.image and shown.image_raw is views.image_raw
    # 10,240 and 2,560 samples: four standard errors of their deviation, 0.5 / sqrt(2 n)
    assert math.isclose(shown.mask.std(), 0.5, abs_tol=0.014)
    assert math.isclose(shown.mask_raw.std(), 0.5, abs_tol=0.028)
    again = prepare(views, blur_share=0.0, augmentation=None, mask_noise=0.5)
    assert not torch.equal(shown.mask, again.mask)


def test_sharpened_masks_are_almost_one_hot():
    true = one_hot(torch.randint(0, 3, (2, 4, 4)), 3) * 2 - 1
    sure = true * 0.8
    torch.testing.assert_close(sharpen_mask(true, 5.0), true, atol=4e-4, rtol=0)  # 4 exp(-10)
    torch.testing.assert_close(sharpen_mask(sure, 5.0), true, atol=3e-3, rtol=0)  # 4 exp(-8), and the sum
    assert sharpen_mask(torch.zeros(1, 3, 1, 1), 5.0).flatten().tolist() == pytest.approx([-1 / 3] * 3)


def test_the_mask_discriminator_sees_no_more_than_it_may():
    torch.manual_seed(0)
    image, mask = torch.randn(1, 3, 32, 32), torch.randn(1, 4, 32, 32)
    views = Views(image, resize(image, 16), mask, resize(mask, 16))
    plain, raw = views.for_mask_judge(sharpness=0.0, colour_blur=0.0)
    torch.testing.assert_close(plain, torch.cat([image, mask], 1))
    final, raw = views.for_mask_judge(sharpness=5.0, colour_blur=0.05)
    torch.testing.assert_close(final[:, :3], blur(image, 0.05 * 32))
    torch.testing.assert_close(raw[:, :3], blur(views.image_raw, 0.05 * 16))  # the same blur of the scene
    torch.testing.assert_close(final[:, 3:], sharpen_mask(mask, 5.0))
    torch.testing.assert_close(raw[:, 3:], sharpen_mask(views.mask_raw, 5.0))
