"""The set's cameras and rays against those of training/, which are checked against published numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.portraits.render import CLASSES, FOV_DEGREES, camera_label, pose, view_rays
from datasets.portraits.sampling import sample
from training.rendering.cameras import orbit_camera, split_label
from training.rendering.rays import camera_rays

POSES = [(0.0, 0.0), (0.8, 0.0), (-0.8, 0.5), (0.31, -0.5), (-0.02, 0.2), (0.5, 0.37)]


@pytest.fixture(params=POSES, ids=str)
def posed(request: pytest.FixtureRequest):
    """Attributes with that yaw and pitch."""
    attributes = sample(0, 0)
    attributes.yaw, attributes.pitch = request.param
    return attributes


def test_labels_are_the_orbit_cameras_of_training(posed):
    expected = orbit_camera(posed.yaw, posed.pitch, pivot=CLASSES.pivot)[0]
    np.testing.assert_allclose(camera_label(posed), expected, atol=1e-6)  # float32 of numbers up to 4.26


def test_first_hits_are_found_along_the_rays_of_training(posed):
    origins, directions = camera_rays(torch.from_numpy(camera_label(posed))[None], 12)
    np.testing.assert_allclose(
        view_rays(pose(posed), 12).reshape(-1, 3), directions[0], atol=1e-6
    )  # unit vectors in float32
    np.testing.assert_allclose(origins[0], np.broadcast_to(pose(posed)[:3, 3], (144, 3)), atol=1e-6)


def test_field_of_view_is_the_focal_length():
    focal = split_label(torch.from_numpy(camera_label(sample(0, 0)))[None])[1][0, 0, 0]
    assert np.tan(np.radians(FOV_DEGREES / 2)) * 2 * focal == pytest.approx(1.0)
