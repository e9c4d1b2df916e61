"""The keep terms on cases that can be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.editing import keep
from training.editing.region import Region
from training.rendering.renderer import RaySamples


def test_mask_cross_entropy_weighs_repainted_pixels_as_much_as_the_rest() -> None:
    mask = torch.full((1, 3, 4, 4), -1.0)
    mask[:, 0] = 1.0  # says class 0 everywhere
    requested = torch.zeros(4, 4, dtype=torch.long)
    requested[0, 0] = 2
    right = torch.log(1 + 2 * torch.exp(torch.tensor(-10.0)))
    found = keep.mask_cross_entropy(mask, requested, requested == 2)
    torch.testing.assert_close(found, 0.5 * (right + (right + 10)))
    assert keep.mask_cross_entropy(mask, torch.zeros_like(requested), requested == 7) == pytest.approx(
        right.item()
    )


def test_masks_of_any_size_are_compared() -> None:
    requested = torch.zeros(8, 8, dtype=torch.long)
    requested[:4] = 1
    assert keep.resize_classes(requested, (4, 4)).tolist() == [[1] * 4] * 2 + [[0] * 4] * 2
    assert keep.resize_classes(requested == 1, (4, 4)).dtype == torch.bool
    keep.mask_cross_entropy(torch.randn(1, 2, 4, 4), requested, requested == 1)


def one_ray(density, part_sdf) -> RaySamples:
    """Four samples a tenth apart, given from back to front: the order must not matter."""
    density, part_sdf = torch.as_tensor(density), torch.as_tensor(part_sdf)
    return RaySamples(
        points=torch.zeros(1, 1, 4, 3),
        depth=torch.tensor([[[2.3, 2.2, 2.1, 2.0]]]),
        sdf=torch.zeros(1, 1, 4, 1),
        density=density.flip(0).view(1, 1, 4, 1),
        colour=torch.zeros(1, 1, 4, 3),
        part_sdf=part_sdf.flip(0).view(1, 1, 4, -1),
        gradient=None,
    )


def likelihood(samples, wanted: int) -> torch.Tensor:
    mask = torch.full((1, 1), wanted)
    return keep.mask_likelihood(samples, mask, mask < 0, "sigma")


def test_likelihood_of_one_ray_by_hand() -> None:
    # intervals of optical thickness 0, 0 and 10: half of the last one's weight on each of its ends
    samples = one_ray([0.0, 0.0, 0.0, 200.0], [[9.0, 9.0, 0.0]] * 3 + [[9.0, 0.0, 9.0]])
    for wanted, share in ((1, 0.5), (2, 0.5)):
        assert likelihood(samples, wanted).item() == pytest.approx(-math.log(share), abs=1e-3)
    assert likelihood(samples, 0) > 9  # neither the background's part nor a way through
    empty = one_ray([0.0] * 4, [[9.0, 0.0, 9.0]] * 4)
    assert likelihood(empty, 0) == pytest.approx(0.0, abs=1e-3)  # through to the background


def test_likelihood_pulls_where_the_rendered_mask_is_flat() -> None:
    # air everywhere, and the wanted class 2 half a box away from each sample
    density = torch.full((4,), 1e-4, requires_grad=True)
    part_sdf = torch.tensor([[0.3, 0.2, 0.5]] * 4, requires_grad=True)
    likelihood(one_ray(density, part_sdf), 2).backward()
    assert (density.grad[:3] < 0).all()  # more density
    assert (part_sdf.grad[:, 2] > 0).all() and part_sdf.grad[:, 2].sum() > 10  # and nearer to class 2
    assert torch.isfinite(part_sdf.grad).all()


def test_image_outside_ignores_the_footprint() -> None:
    source, image = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    footprint = torch.zeros(1, 4, 4, dtype=torch.bool)
    footprint[:, :2] = True
    image[:, :, :2] = 1.0
    assert keep.image_outside(image, source, footprint) == 0
    image[:, :, 2] = 0.5
    assert keep.image_outside(image, source, footprint) == pytest.approx(0.25)
    assert keep.image_outside(image, source, torch.ones_like(footprint)) == 0


@pytest.mark.parametrize("whole", [False, True])
def test_sdf_outside_measures_the_shift_there(frozen_balls, learned_balls, whole) -> None:
    voxels = torch.zeros(2, 2, 2, dtype=torch.bool)
    voxels[:, 1] = True  # y >= 0
    region = Region(voxels, 1.0)
    points = torch.tensor([[0.0, -0.1, 0.0], [0.0, 0.1, 0.0]])
    learned_balls.shift = torch.tensor(0.03, requires_grad=True)
    # the global SDF moves by 0.03, two of the three parts too, the background not
    found = keep.sdf_outside(frozen_balls, learned_balls, region, points, whole=whole)
    assert found.item() == pytest.approx(0.03 + 0.02, abs=1e-6)
    (gradient,) = torch.autograd.grad(found, learned_balls.shift)
    assert gradient.item() == pytest.approx(1 + 2 / 3)
    assert keep.sdf_outside(frozen_balls, learned_balls, region, points[1:], whole=whole) == 0


@pytest.mark.parametrize("whole", [False, True])
def test_eikonal_and_consistency_see_the_inside_only(whole) -> None:
    voxels = torch.zeros(2, 2, 2, dtype=torch.bool)
    voxels[:, 1] = True
    region = Region(voxels, 1.0)
    points = torch.tensor([[0.0, -0.1, 0.0], [0.0, 0.1, 0.0]])[None, None]
    samples = RaySamples(
        points=points,
        depth=torch.zeros(1, 1, 2),
        sdf=torch.tensor([9.0, 0.3]).view(1, 1, 2, 1),
        density=torch.zeros(1, 1, 2, 1),
        colour=torch.zeros(1, 1, 2, 3),
        part_sdf=torch.tensor([[0.0, 0.0], [0.1, 0.5]])[None, None],
        gradient=torch.tensor([[7.0, 0.0, 0.0], [0.0, 3.0, 0.0]])[None, None],
    )
    leaves = samples.gradient.requires_grad_(), samples.sdf.requires_grad_()
    terms = keep.eikonal_inside, keep.consistency_inside
    for term, leaf, value, slope in zip(terms, leaves, (4.0, 0.04), (4.0, 0.4), strict=True):
        found = term(samples, region, whole=whole)
        assert found.item() == pytest.approx(value, abs=1e-6)
        (gradient,) = torch.autograd.grad(found, leaf)
        # 2 (|g| - 1) g / |g| along y, and 2 (0.3 - 0.1): the other sample has none
        assert gradient.flatten()[: gradient.shape[-1]].abs().max() == 0
        assert gradient.sum().item() == pytest.approx(slope, abs=1e-6)
        nothing = Region(torch.zeros_like(voxels), 1.0)
        assert term(samples, nothing, whole=whole) == 0


class _Colours:
    """Embeds a picture by its mean colour, and sentences by the colours they name."""

    def encode_images(self, images):
        return images.mean((2, 3))

    def encode_texts(self, texts):
        return torch.tensor([[float(c in text) for c in ("red", "green", "blue")] for text in texts])


def test_the_directional_loss_is_zero_for_the_wanted_change_and_two_for_its_opposite():
    words = _Colours().encode_texts(["a hat", "a red hat"])
    before = torch.zeros(2, 3, 4, 4)
    step = torch.zeros_like(before)
    step[:, 0] = 1
    # the least change, 0.05 of a change of 1, leaves 0.1 %
    assert keep.clip_direction(_Colours(), before, before + step, words).item() == pytest.approx(0, abs=2e-3)
    assert keep.clip_direction(_Colours(), before, before - step, words).item() == pytest.approx(2, abs=2e-3)
    assert keep.clip_direction(_Colours(), before, before, words).item() == 1


def test_the_directional_loss_has_a_bounded_gradient_where_nothing_has_changed():
    words = _Colours().encode_texts(["a hat", "a red hat"])
    image = torch.zeros(1, 3, 4, 4, requires_grad=True)
    keep.clip_direction(_Colours(), torch.zeros(1, 3, 4, 4), image, words).backward()
    assert (image.grad[0, 0] < 0).all() and image.grad[
        0, 1:
    ].abs().max() == 0  # towards red, 1 / 0.05 at most
    assert image.grad.sum().abs() <= 20.01
