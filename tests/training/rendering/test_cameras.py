import math

import pytest
import torch

from dnnlib.errors import UserError
from training.rendering.cameras import (
    camera_label,
    focal_length,
    frontal_camera,
    intrinsics,
    look_at,
    mirrored_camera,
    orbit_camera,
    parse_camera,
    project,
    sample_cameras,
    split_label,
    yaw_pitch,
)
from training.rendering.rays import camera_rays


def test_agrees_with_published_cameras_and_rays(parity):
    arrays = {name: torch.as_tensor(value) for name, value in parity("cameras").items()}
    pose = look_at(arrays["yaw"], arrays["pitch"], pivot=arrays["pivot"], radius=float(arrays["radius"]))
    matrix = intrinsics(focal_length(18.837))
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


def test_a_mirrored_point_appears_mirrored():
    label = orbit_camera(torch.tensor([0.4, -0.7]), torch.tensor([0.1, -0.2]), pivot=(0.1, 0.0, 0.2))
    label[:, 17], label[:, 18], label[:, 21] = 0.05, 0.45, 0.55  # skew and an off-centre picture
    points = torch.rand(2, 6, 3) - 0.5
    uv, depth = project(label, points)
    mirrored, mirrored_depth = project(mirrored_camera(label), points * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(mirrored[..., 0], 1 - uv[..., 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored[..., 1], uv[..., 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored_depth, depth)
    torch.testing.assert_close(mirrored_camera(mirrored_camera(label)), label)


def test_mirroring_negates_the_yaw():
    torch.testing.assert_close(
        mirrored_camera(orbit_camera(0.4, 0.1)), orbit_camera(-0.4, 0.1), atol=1e-6, rtol=0
    )


def test_random_cameras():
    label = sample_cameras(2000, yaw_std=0.3, pitch_std=0.15, generator=torch.Generator().manual_seed(1))
    yaw, pitch = yaw_pitch(label)
    # the standard error of a standard deviation of 2000 draws is 1.6 %: four of them
    assert abs(yaw.std() / 0.3 - 1) < 0.065 and abs(pitch.std() / 0.15 - 1) < 0.065
    again = sample_cameras(2000, yaw_std=0.3, pitch_std=0.15, generator=torch.Generator().manual_seed(1))
    assert torch.equal(label, again)
    assert yaw_pitch(sample_cameras(100, yaw_std=9.0, yaw_limit=0.5))[0].abs().max() < 0.5 + 1e-5


def test_parse_camera_reads_lists_and_text():
    label = orbit_camera(0.3, -0.1)
    torch.testing.assert_close(parse_camera(label[0].tolist()), label)
    torch.testing.assert_close(parse_camera(", ".join(str(x) for x in label[0].tolist())), label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:24], "has 24 numbers"),
        (lambda c: [*c[:3], "x", *c[4:]], "a camera is 25 numbers"),
        (lambda c: [math.nan, *c[1:]], "nan"),
        (lambda c: [2 * c[0], *c[1:]], "rotation"),
        (lambda c: [*c[:16], 2000.0, 0.0, 256.0, *c[19:]], "divide"),
    ],
)
def test_parse_camera_says_what_is_wrong(change, message):
    """The other problems are those of datasets.cameras, and tested there."""
    with pytest.raises(UserError, match=message) as caught:
        parse_camera(change(frontal_camera()[0].tolist()), "my.json")
    assert str(caught.value).startswith("my.json: ") and "\n" not in str(caught.value)


def test_field_of_view():
    # at 90 degrees the corner, sqrt(2) / 2 from the middle, is seen at 45; published constants have three
    # decimals
    assert focal_length(90) == pytest.approx(math.sqrt(0.5), abs=2e-4)
