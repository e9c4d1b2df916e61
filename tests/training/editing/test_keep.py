"""The keep terms on cases that can be computed by hand."""

from __future__ import annotations

import pytest
import torch

from training.editing import keep
from training.editing.region import Region
from training.rendering.rays import camera_rays
from training.rendering.renderer import RaySamples, RenderOptions, render


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


def test_the_dense_mask_is_the_renderers_but_reaches_the_density(learned_balls, camera) -> None:
    origins, directions = camera_rays(camera, 8)
    options = RenderOptions(2.25, 3.3, 12, 12, marching="sigma", deterministic=True, samples=True)
    volume = render(learned_balls, origins, directions, options)
    dense = keep.dense_mask(volume.samples, "sigma")
    torch.testing.assert_close(dense, volume.mask)
    sdf_gradient = torch.autograd.grad(dense.square().sum(), volume.samples.density, retain_graph=True)[0]
    assert sdf_gradient.abs().sum() > 0
    assert torch.autograd.grad(volume.mask.sum(), volume.samples.density, allow_unused=True)[0] is None


def test_image_outside_ignores_the_footprint() -> None:
    source, image = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    footprint = torch.zeros(1, 4, 4, dtype=torch.bool)
    footprint[:, :2] = True
    image[:, :, :2] = 1.0
    assert keep.image_outside(image, source, footprint) == 0
    image[:, :, 2] = 0.5
    assert keep.image_outside(image, source, footprint) == pytest.approx(0.25)
    assert keep.image_outside(image, source, torch.ones_like(footprint)) == 0


def test_sdf_outside_measures_the_shift_there(frozen_balls, learned_balls) -> None:
    voxels = torch.zeros(2, 2, 2, dtype=torch.bool)
    voxels[:, 1] = True  # y >= 0
    region = Region(voxels, 1.0)
    points = torch.tensor([[0.0, -0.1, 0.0], [0.0, 0.1, 0.0]])
    learned_balls.shift = torch.tensor(0.03, requires_grad=True)
    # the global SDF moves by 0.03, two of the three parts too, the background not
    assert keep.sdf_outside(frozen_balls, learned_balls, region, points).item() == pytest.approx(
        0.03 + 0.02, abs=1e-6
    )
    assert keep.sdf_outside(frozen_balls, learned_balls, region, points[1:]) == 0


def test_eikonal_and_consistency_see_the_inside_only() -> None:
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
        part_density=None,
        gradient=torch.tensor([[7.0, 0.0, 0.0], [0.0, 3.0, 0.0]])[None, None],
    )
    assert keep.eikonal_inside(samples, region) == pytest.approx(4.0)
    assert keep.consistency_inside(samples, region) == pytest.approx(0.04)
