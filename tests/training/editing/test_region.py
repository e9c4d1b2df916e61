"""Edited classes and the region, on masks and fields of a few balls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dnnlib.errors import UserError
from training.editing.region import (
    EditRequest,
    Region,
    RegionBuilder,
    RegionSettings,
    dilate,
    edited_classes,
    sight,
)

BACKGROUND, SKIN, HAIR, HAT = 0, 1, 2, 3
DEPTHS = (0.3, 0.0, -0.3)  # world z
SETTINGS = RegionSettings(voxels=32, dilation=0.0, dilation_pixels=1 / 32)


def head() -> torch.Tensor:
    """32 x 32: skin in the middle, hair above it, background around."""
    mask = torch.zeros(32, 32, dtype=torch.long)
    mask[12:28, 8:24] = SKIN
    mask[6:12, 8:24] = HAIR
    return mask


def test_a_new_hat_is_the_hat_alone() -> None:
    # it covers hair, some forehead and some background; none of these is meant
    rendered, requested = head(), head()
    requested[3:14, 7:25] = HAT
    assert edited_classes(requested, rendered) == (HAT,)


def test_a_hat_that_takes_the_place_of_all_hair_is_not_the_hair() -> None:
    rendered, requested = head(), head()
    requested[6:10][requested[6:10] == HAIR] = HAT
    assert edited_classes(requested, rendered) == (HAT,)


def test_shorter_hair_is_hair() -> None:
    rendered, requested = head(), head()
    rendered[12:28, 4:8] = HAIR
    requested[6:8, 8:24] = BACKGROUND
    requested[11:12, 8:24] = SKIN
    assert edited_classes(requested, rendered) == (HAIR,)


def test_two_edits_are_two_classes_and_specks_are_none() -> None:
    rendered, requested = head(), head()
    requested[0:6, 8:24] = HAT
    requested[12:20, 24:30] = HAIR
    assert edited_classes(requested, rendered) == (HAIR, HAT)
    requested = head()
    requested[2:6, 8:24] = HAT
    requested[27, 8] = BACKGROUND  # one pixel of skin in 65
    assert edited_classes(requested, rendered) == (HAT,)


def test_equal_masks_need_named_classes() -> None:
    with pytest.raises(UserError, match="--classes"):
        edited_classes(head(), head())


def test_dilation_grows_in_every_direction() -> None:
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[3, 3] = True
    assert dilate(mask, 1).sum() == 9
    assert dilate(torch.zeros(5, 5, 5, dtype=torch.bool), 2).sum() == 0
    cube = torch.zeros(5, 5, 5, dtype=torch.bool)
    cube[2, 2, 2] = True
    assert dilate(cube, 1).sum() == 27


def test_the_region_is_looked_up_by_voxel() -> None:
    voxels = torch.zeros(4, 4, 4, dtype=torch.bool)
    voxels[3, 0, 1] = True  # x in [0.25, 0.5), y in [-0.5, -0.25), z in [-0.25, 0)
    region = Region(voxels, box_warp=1.0)
    points = torch.tensor([[0.3, -0.4, -0.1], [0.2, -0.4, -0.1], [0.3, -0.4, 0.1], [0.7, -0.4, -0.1]])
    assert region.contains(points).tolist() == [True, False, False, False]
    assert region.contains(points[None, :2]).shape == (1, 2)
    again = Region.unpack(region.pack(), 4, 1.0)
    assert torch.equal(again.voxels, voxels)


def test_sight_places_points_as_the_camera_does(camera) -> None:
    # up in the world is up in the picture (row 0), +x is to the right for the frontal camera
    seen = sight(torch.tensor([[0.0, 0.1, 0.2], [0.1, 0.0, 0.2], [0.0, 0.0, 5.0]]), camera)
    assert seen.inside.tolist() == [True, True, False]
    assert seen.uv[0, 1] < 0.4 and seen.uv[0, 0] == pytest.approx(0.5, abs=1e-5)
    assert seen.uv[1, 0] > 0.6
    assert seen.distance[0] == pytest.approx((0.1**2 + 2.5**2) ** 0.5, abs=1e-5)


class TestBuilder:
    """A head (class 1) with hair (class 2) above it; hair is edited."""

    @pytest.fixture
    def rendered(self, frozen_balls, camera):
        return self.classes_seen(frozen_balls, camera)[0]

    @staticmethod
    def classes_seen(field, camera):
        from training.rendering.rays import camera_rays
        from training.rendering.renderer import RenderOptions, render

        origins, directions = camera_rays(camera, 32)
        options = RenderOptions(2.25, 3.3, 48, 48, marching="sigma", deterministic=True)
        volume = render(field, origins, directions, options)
        classes = volume.mask[0].argmax(-1)
        classes[volume.weight[0, :, 0] < 0.5] = BACKGROUND  # balls in empty space: there is no wall to see
        return classes.reshape(32, 32), volume.depth[0, :, 0].reshape(32, 32)

    def builder(self, field, camera, requested, settings=SETTINGS):
        rendered, depth = self.classes_seen(field, camera)
        request = EditRequest(requested, rendered, camera, (HAIR,))
        return RegionBuilder(field, request, depth, box_warp=1.0, settings=settings)

    def test_hair_belongs_and_face_and_free_space_do_not(self, frozen_balls, camera, rendered) -> None:
        assert set(rendered.unique().tolist()) == {BACKGROUND, SKIN, HAIR}
        region = self.builder(frozen_balls, camera, rendered).build()
        inside = region.contains(torch.tensor([[0.0, 0.3, 0.0], [0.0, 0.25, -0.09], [0.0, 0.29, 0.09]]))
        assert inside.tolist() == [True, True, True]  # top, back and front of the hair
        outside = region.contains(
            torch.tensor(
                [[0.0, 0.0, 0.19], [0.0, -0.1, 0.15], [0.4, 0.3, 0.0], [0.0, 0.1, 0.4], [0.0, 0.45, -0.45]]
            )
        )
        assert (
            outside.tolist() == [False] * 5
        )  # face, chin, far beside, in front of the forehead, a far corner

    def test_repainted_background_belongs_so_that_hair_can_grow(self, frozen_balls, camera, rendered) -> None:
        requested = rendered.clone()
        requested[8:20, 24:30] = HAIR  # beside the head, where there is nothing
        region = self.builder(frozen_balls, camera, requested).build()
        assert region.contains(torch.tensor([[0.1, 0.02, 0.0]])).tolist() == [False]  # head
        column, row = 27 / 32, 14 / 32
        x, y = (column - 0.5) / 4.2647 * 2.7, (0.5 - row) / 4.2647 * 2.7 + 0.0
        assert region.contains(torch.tensor([[x, y, 0.0]])).tolist() == [True]

    def test_learned_hair_counts_only_where_the_mask_lets_it(
        self, frozen_balls, learned_balls, camera, rendered
    ) -> None:
        builder = self.builder(frozen_balls, camera, rendered)
        # a learned field whose hair has spread over the face and down the back of the head
        learned_balls.centres = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
        learned_balls.radii = torch.tensor([0.1, 0.3])
        region = builder.build(learned_balls)
        assert region.contains(torch.tensor([[0.0, 0.12, -0.12]])).tolist() == [
            True
        ]  # hidden, below the hair
        assert region.contains(torch.tensor([[0.0, 0.0, 0.19]])).tolist() == [False]  # M shows skin here
        assert region.contains(torch.tensor([[0.0, 0.0, 0.28]])).tolist() == [False]  # and looks through this
        assert region.contains(torch.tensor([[0.0, -0.2, -0.19]])).tolist() == [False]  # hidden, but far off

    def test_learned_hair_that_hangs_in_the_air_does_not_count(
        self, frozen_balls, learned_balls, camera, rendered
    ) -> None:
        settings = replace(SETTINGS, reach=0.02)
        builder = self.builder(frozen_balls, camera, rendered, settings)
        behind = torch.tensor([[0.0, 0.25, -0.19]])  # the hair, hidden there, ends at -0.1
        for radius, belongs in ((0.03, False), (0.1, True)):  # apart from what was hair; at one with it
            learned_balls.centres = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.25, -0.2]])
            learned_balls.radii = torch.tensor([0.2, radius])
            assert builder.build(learned_balls).contains(behind).tolist() == [belongs]

    def test_the_region_ends_at_the_wall_and_near_the_old_head(self, frozen_balls, camera, rendered) -> None:
        requested = rendered.clone()
        requested[8:20, 24:30] = HAIR
        region = self.builder(frozen_balls, camera, requested).build()
        beside = [
            ((27 / 32 - 0.5) / 4.2647 * (2.7 - z), (0.5 - 14 / 32) / 4.2647 * (2.7 - z), z) for z in DEPTHS
        ]
        assert region.contains(torch.tensor(beside)).tolist() == [
            False,
            True,
            False,
        ]  # before, beside, behind

    def test_dilation_widens_the_region(self, frozen_balls, camera, rendered) -> None:
        narrow = self.builder(frozen_balls, camera, rendered).build()
        settings = RegionSettings(voxels=32, dilation=0.05, dilation_pixels=1 / 32)
        wide = self.builder(frozen_balls, camera, rendered, settings).build()
        assert wide.share > narrow.share
        assert not (narrow.voxels & ~wide.voxels).any()
