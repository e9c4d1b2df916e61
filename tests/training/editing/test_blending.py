"""Identity outside the region to the last bit, gradients only into the learned field."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from training.editing.blending import BlendedField
from training.editing.region import Region
from training.field import sdf_gradient
from training.rendering.rays import camera_rays
from training.rendering.renderer import RenderOptions, render


@pytest.fixture(params=[False, True], ids=["where it is seen", "everywhere"])
def blended(request):
    """Blends with ``everywhere`` on and off."""
    return partial(BlendedField, everywhere=request.param)


def upper_half() -> Region:
    voxels = torch.zeros(8, 8, 8, dtype=torch.bool)
    voxels[:, 4:] = True
    return Region(voxels, box_warp=1.0)


def test_each_point_has_the_values_of_the_field_that_is_seen_there(
    blended, frozen_balls, learned_balls
) -> None:
    learned_balls.shift = torch.tensor(0.03)
    points = torch.rand(2, 300, 3) - 0.5
    above = points[..., 1] >= 0
    blend = blended(frozen_balls, learned_balls, upper_half())
    found = blend.query(points, colour=True, parts=True)
    for name in ("sdf", "density", "colour", "part_sdf"):
        value = getattr(found, name)
        frozen = getattr(frozen_balls.query(points, colour=True, parts=True), name)
        learned = getattr(learned_balls.query(points, colour=True, parts=True), name)
        assert torch.equal(value[~above], frozen[~above]), name
        assert torch.equal(value[above], learned[above]), name
    assert torch.equal(blend.sdf(points), found.sdf)
    bare = blend.query(points, colour=False, parts=False)
    assert bare.colour is None and bare.part_sdf is None


def test_gradients_reach_the_learned_field_from_inside_only(blended, frozen_balls, learned_balls) -> None:
    points = torch.rand(1, 100, 3) - 0.5
    above = points[..., 1] >= 0
    values = blended(frozen_balls, learned_balls, upper_half()).query(points, colour=True, parts=True)
    (values.sdf.sum() + values.colour.sum()).backward()
    assert learned_balls.shift.grad.item() == above.sum().item()
    assert learned_balls.grey.grad.item() == 3 * above.sum().item()


def test_regions_without_and_with_everything(blended, frozen_balls, learned_balls) -> None:
    points = torch.rand(1, 50, 3) - 0.5
    nothing = Region(torch.zeros(2, 2, 2, dtype=torch.bool), 1.0)
    everything = Region(torch.ones(2, 2, 2, dtype=torch.bool), 1.0)
    for region, field in ((nothing, frozen_balls), (everything, learned_balls)):
        found = blended(frozen_balls, learned_balls, region).query(points, colour=True, parts=False)
        assert torch.equal(found.colour, field.query(points, colour=True, parts=False).colour)


def test_normals_are_those_of_the_field_that_is_seen(blended, frozen_balls, learned_balls) -> None:
    learned_balls.centres = learned_balls.centres + torch.tensor([0.05, 0.0, 0.0])
    points = torch.rand(1, 200, 3) - 0.5
    above = points[..., 1] >= 0
    found = sdf_gradient(blended(frozen_balls, learned_balls, upper_half()), points)
    assert torch.equal(found[~above], sdf_gradient(frozen_balls, points)[~above])
    assert torch.equal(found[above], sdf_gradient(learned_balls, points)[above])


def test_rays_that_miss_the_region_render_the_frozen_picture_bit_by_bit(
    blended, frozen_balls, learned_balls, camera
) -> None:
    learned_balls.shift = torch.tensor(-0.05)  # everything learned is fatter
    origins, directions = camera_rays(camera, 16)
    options = RenderOptions(2.25, 3.3, 12, 12, marching="sigma", deterministic=True, normals=True)
    blend = blended(frozen_balls, learned_balls, upper_half())
    before, after = (render(field, origins, directions, options) for field in (frozen_balls, blend))
    # the frontal camera is at the height of the origin: its lower pictures rows never meet y >= 0
    below = (directions[..., 1] < 0)[0]
    for name in ("features", "mask", "normals", "weight"):
        assert torch.equal(getattr(before, name)[:, below], getattr(after, name)[:, below]), name
    assert not torch.allclose(before.features[:, ~below], after.features[:, ~below])
