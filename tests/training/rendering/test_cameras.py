import math

import torch

from training.rendering.cameras import (
    camera_label,
    frontal_camera,
    intrinsics,
    look_at,
    orbit_camera,
    project,
    sample_cameras,
    split_label,
    yaw_pitch,
)
from training.rendering.rays import camera_rays


def test_agrees_with_published_cameras_and_rays(parity):
    arrays = {name: torch.as_tensor(value) for name, value in parity("cameras").items()}
    pose = look_at(arrays["yaw"], arrays["pitch"], pivot=arrays["pivot"], radius=float(arrays["radius"]))
    matrix = intrinsics(1 / (1.414 * math.tan(math.radians(18.837) / 2)))  # sqrt(2) as published
    torch.testing.assert_close(pose, arrays["cam2world"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(matrix, arrays["intrinsics"], atol=1e-5, rtol=1e-5)
    origins, directions = camera_rays(camera_label(arrays["cam2world"], arrays["intrinsics"]), 8)
    torch.testing.assert_close(origins, arrays["ray_origins"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(directions, arrays["ray_directions"], atol=1e-5, rtol=1e-5)


def test_frontal_camera_by_hand():
    pose, matrix = split_label(frontal_camera())
    want = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]])
    torch.testing.assert_close(pose[0], want, atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix[0], torch.tensor([[4.2647, 0, 0.5], [0, 4.2647, 0.5], [0, 0, 1]]))


def test_poses_are_rotations_that_look_at_the_pivot():
    yaw, pitch = torch.linspace(-3, 3, 7), torch.linspace(-1.2, 1.2, 7)
    pivot = torch.tensor([0.1, -0.05, 0.2])
    label = orbit_camera(yaw, pitch, pivot=pivot)
    pose, _ = split_label(label)
    rotation = pose[:, :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(1, 2), torch.eye(3).expand(7, 3, 3), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(7))
    torch.testing.assert_close(pose[:, :3, 3].norm(dim=-1), torch.full((7,), 2.7))
    seen, depth = project(label, pivot.expand(7, 1, 3))
    torch.testing.assert_close(
        seen, torch.full((7, 1, 2), 0.5), atol=1e-5, rtol=0
    )  # the pivot is in the middle
    assert (depth > 0).all()
    assert (rotation[:, 1, 1] < 0).all()  # upright: the picture's down is the world's down


def test_signs_of_yaw_and_pitch_and_their_inverse():
    pose, _ = split_label(orbit_camera(torch.tensor([0.3, 0.0]), torch.tensor([0.0, 0.2])))
    assert pose[0, 0, 3] > 0 and pose[1, 1, 3] < 0
    yaw, pitch = torch.tensor([-2.5, -0.4, 0.0, 0.7]), torch.tensor([-1.0, 0.1, 0.0, 0.5])
    got = yaw_pitch(orbit_camera(yaw, pitch))
    torch.testing.assert_close(got[0], yaw, atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], pitch, atol=1e-5, rtol=0)


def test_points_along_a_ray_project_to_its_pixel():
    label = orbit_camera(torch.tensor([0.4, -0.3]), torch.tensor([0.1, -0.2]))
    label[:, 17] = 0.1  # skew
    origins, directions = camera_rays(label, 4)
    uv, _ = project(label, origins + 2.5 * directions)
    centres = (torch.arange(4) + 0.5) / 4
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    want = torch.stack([u, v], dim=-1).reshape(1, 16, 2).expand(2, 16, 2)
    torch.testing.assert_close(uv, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 16))


def test_the_middle_ray_goes_through_the_pivot():
    origins, directions = camera_rays(orbit_camera(0.5, 0.2), 5)
    to_pivot = torch.tensor([0.0, 0.0, 0.2]) - origins[0, 12]
    torch.testing.assert_close(directions[0, 12], to_pivot / to_pivot.norm(), atol=1e-5, rtol=0)


def test_rays_are_differentiable_in_the_camera():
    label = orbit_camera(0.2, 0.1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: camera_rays(c, 2), (label,))


def test_random_cameras():
    label = sample_cameras(2000, yaw_std=0.3, pitch_std=0.15, generator=torch.Generator().manual_seed(1))
    yaw, pitch = yaw_pitch(label)
    # the standard error of a standard deviation of 2000 draws is 1.6 %: four of them
    assert abs(yaw.std() / 0.3 - 1) < 0.065 and abs(pitch.std() / 0.15 - 1) < 0.065
    again = sample_cameras(2000, yaw_std=0.3, pitch_std=0.15, generator=torch.Generator().manual_seed(1))
    assert torch.equal(label, again)
    assert yaw_pitch(sample_cameras(100, yaw_std=9.0, yaw_limit=0.5))[0].abs().max() < 0.5 + 1e-5
