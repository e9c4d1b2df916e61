"""Views that agree, and views that do not."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from training.metrics.warping import TOLERANCE, Sight, agreement, warp
from training.rendering.cameras import orbit_camera
from training.rendering.rays import camera_rays

SIDE = 32


def camera(yaw: float) -> Tensor:
    return orbit_camera(yaw, 0.0, pivot=(0.0, 0.0, 0.0))


def plane(yaw: float, z: float = 0.1) -> Sight:
    """The plane at height z, exactly; its class and colour are those of x."""
    origins, directions = camera_rays(camera(yaw), SIDE)
    depth = (z - origins[..., 2]) / directions[..., 2]
    return _sight(yaw, origins + directions * depth[..., None], depth)


def ball(yaw: float, radius: float = 0.25) -> Sight:
    """A ball round the origin on a background of class 0."""
    origins, directions = camera_rays(camera(yaw), SIDE)
    along = (origins * directions).sum(-1)
    root = along.square() - origins.square().sum(-1) + radius**2
    depth = torch.where(root > 0, -along - root.clamp_min(0).sqrt(), 5.0)
    return _sight(yaw, origins + directions * depth[..., None], depth)


def _sight(yaw: float, points: Tensor, depth: Tensor) -> Sight:
    classes = torch.where(points[..., 0] > 0, 2, 1) * (depth < 4.9)
    image = (points * 3).clamp(-1, 1).transpose(1, 2)
    shape = (1, -1, SIDE, SIDE)
    return Sight(camera(yaw), image.reshape(shape), classes.reshape(1, SIDE, SIDE), depth.reshape(shape))


def test_warping_onto_itself_is_the_pixel_grid() -> None:
    sight = plane(0.3)
    position, distance = warp(sight.depth, sight.camera, sight.camera)
    centres = (torch.arange(SIDE) + 0.5) / SIDE
    torch.testing.assert_close(position[0, 3, :, 0], centres, atol=1e-5, rtol=0)
    torch.testing.assert_close(position[0, :, 3, 1], centres, atol=1e-5, rtol=0)
    torch.testing.assert_close(distance[:, None], sight.depth)


def test_a_known_plane_agrees_with_itself() -> None:
    found = agreement(plane(-0.4), plane(0.3))
    # distances along a plane are not quite linear between pixels: 1e-5 of 2.7
    assert found.depth < 1e-4
    assert found.colour < 0.01  # bilinear colours at the border of the picture
    assert found.classes > 0.97  # the edge between the classes is one pixel wide
    assert 0.7 < found.compared < 1  # the rest is outside the picture


def test_a_ball_agrees_except_where_it_hides_itself() -> None:
    found, far = agreement(ball(-0.2), ball(0.2)), agreement(ball(-0.6), ball(0.6))
    # a pixel is 0.02 wide, and near its outline the ball is as steep as it is wide
    assert found.depth < 0.01 < far.depth < 0.02
    assert (
        found.classes > 0.85 and found.colour < 0.2
    )  # the edge of the classes is a pixel wide, and so is the outline
    assert far.compared < found.compared < 1


def test_a_nearer_plane_is_an_error_of_that_size_and_a_far_one_of_the_tolerance() -> None:
    near = agreement(plane(0.2, 0.1), plane(0.2, 0.12))
    assert near.depth == pytest.approx(0.02 / math.cos(0.2), rel=0.02)  # along rays that meet it obliquely
    assert agreement(plane(0.2, 0.3), plane(0.2, 0.0)).depth == pytest.approx(TOLERANCE)


def test_what_lies_behind_the_other_surface_is_hidden_and_not_compared() -> None:
    found = agreement(plane(0.0, 0.0), plane(0.0, 0.3))
    assert found.compared == 0 and math.isnan(found.depth)


def test_what_meets_the_background_is_an_error() -> None:
    empty = ball(0.0)
    empty = dataclasses.replace(empty, classes=torch.zeros_like(empty.classes))
    found = agreement(ball(0.0), empty)
    assert found.depth == pytest.approx(TOLERANCE) and found.classes == 0


def test_another_picture_differs_by_about_its_contrast() -> None:
    first = plane(0.0)
    noise = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = dataclasses.replace(first, image=noise)
    other = dataclasses.replace(first, image=noise.flip(-1))
    # independent uniform values differ by 2/3 on average, from their mean by 1/2
    assert agreement(first, other).colour == pytest.approx(4 / 3, rel=0.1)
    assert agreement(first, first).colour == pytest.approx(0, abs=1e-5)
