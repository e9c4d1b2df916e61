"""Cameras: poses on an orbit around the head, intrinsics, and the 25 numbers that label a picture.

A label is a 4x4 OpenCV camera-to-world matrix, row by row (camera x right, y down, z forward; world y up),
then the 3x3 intrinsics, row by row, for a picture of size 1 x 1 whose origin is the top left corner. The
frontal camera is on the world's positive z axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_POLE = 1e-5  # a camera straight above or below has no upright direction: keep this far from the poles (rad)


def look_at(
    yaw: Tensor | float,
    pitch: Tensor | float,
    *,
    pivot: Sequence[float] | Tensor = (0.0, 0.0, 0.2),
    radius: float | Tensor = 2.7,
) -> Tensor:
    """Poses of cameras on a sphere around the origin that look at ``pivot``, upright.

    The position is ``radius (sin(polar) sin(yaw), cos(polar), sin(polar) cos(yaw))`` with
    ``cos(polar) = -2 pitch / pi``: the height is linear in the pitch, so that a uniform pitch is uniform on
    the sphere. Positive yaw moves the camera to the world's +x, positive pitch moves it down; (0, 0) is the
    frontal view.

    Args:
        yaw, pitch: (N,) or scalars, radians; pitch in [-pi/2, pi/2].
        pivot: (3,) or (N, 3), world units.
        radius: distance from the origin (not from the pivot).

    Returns:
        (N, 4, 4) camera-to-world matrices.
    """
    device = next((x.device for x in (yaw, pitch, pivot, radius) if isinstance(x, Tensor)), None)
    yaw, pitch, radius, pivot = (
        torch.as_tensor(x, dtype=torch.float32, device=device) for x in (yaw, pitch, radius, pivot)
    )
    yaw, pitch, radius = torch.broadcast_tensors(torch.atleast_1d(yaw), torch.atleast_1d(pitch), radius)
    share = (pitch + math.pi / 2).clamp(_POLE, math.pi - _POLE) / math.pi  # 0 at the top, 1 at the bottom
    height = 1 - 2 * share
    horizontal = torch.sqrt(1 - height.square())
    unit = torch.stack([horizontal * torch.sin(yaw), height, horizontal * torch.cos(yaw)], dim=-1)
    origin = radius.unsqueeze(-1) * unit  # (N, 3)
    forward = _unit(pivot - origin)
    up = torch.tensor([0.0, 1.0, 0.0], device=device).expand_as(forward)
    right = _unit(torch.linalg.cross(forward, up))
    down = torch.linalg.cross(forward, right)
    top = torch.stack([right, down, forward, origin], dim=-1)  # (N, 3, 4): columns are the camera's axes
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], device=device).expand(len(top), 1, 4)
    return torch.cat([top, bottom], dim=1)


def intrinsics(focal: float = 4.2647, *, device: torch.device | str | None = None) -> Tensor:
    """(3, 3) intrinsics for a focal length given in picture sizes, centred."""
    return torch.tensor([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]], device=device)


def camera_label(cam2world: Tensor, matrix: Tensor) -> Tensor:
    """Poses (N, 4, 4) and intrinsics (3, 3) or (N, 3, 3) to labels (N, 25)."""
    matrix = matrix.expand(len(cam2world), 3, 3)
    return torch.cat([cam2world.flatten(1), matrix.flatten(1).to(cam2world)], dim=1)


def split_label(label: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (N, 25) to poses (N, 4, 4) and intrinsics (N, 3, 3)."""
    return label[:, :16].unflatten(1, (4, 4)), label[:, 16:25].unflatten(1, (3, 3))


def orbit_camera(
    yaw: Tensor | float,
    pitch: Tensor | float,
    *,
    focal: float = 4.2647,
    pivot: Sequence[float] | Tensor = (0.0, 0.0, 0.2),
    radius: float = 2.7,
) -> Tensor:
    """Labels (N, 25) of cameras on the orbit; see :func:`look_at` and :func:`intrinsics`."""
    pose = look_at(yaw, pitch, pivot=pivot, radius=radius)
    return camera_label(pose, intrinsics(focal, device=pose.device))


def frontal_camera(
    *, focal: float = 4.2647, pivot: Sequence[float] = (0.0, 0.0, 0.2), radius: float = 2.7
) -> Tensor:
    """Label (1, 25) of the frontal view, the canonical condition of the mapping network."""
    return orbit_camera(0.0, 0.0, focal=focal, pivot=pivot, radius=radius)


def sample_cameras(
    count: int,
    *,
    yaw_std: float = 0.3,
    pitch_std: float = 0.155,
    yaw_limit: float = math.pi / 2,
    pitch_limit: float = math.pi / 4,
    focal: float = 4.2647,
    pivot: Sequence[float] = (0.0, 0.0, 0.2),
    radius: float = 2.7,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Labels (count, 25) of random views: Gaussian yaw and pitch (rad) around the frontal view, clamped."""
    yaw, pitch = torch.randn(2, count, generator=generator)
    yaw = (yaw * yaw_std).clamp(-yaw_limit, yaw_limit)
    pitch = (pitch * pitch_std).clamp(-pitch_limit, pitch_limit)
    return orbit_camera(yaw, pitch, focal=focal, pivot=pivot, radius=radius)


def yaw_pitch(label: Tensor) -> tuple[Tensor, Tensor]:
    """Yaw and pitch (N,), in radians, of cameras (N, 25) on the orbit: undoes :func:`orbit_camera`."""
    position = split_label(label)[0][:, :3, 3]
    height = position[:, 1] / position.norm(dim=-1)
    return torch.atan2(position[:, 0], position[:, 2]), -height * (math.pi / 2)


def project(label: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where world points appear in the pictures.

    Args:
        label: (N, 25); points: (N, M, 3).

    Returns:
        (N, M, 2) positions (u, v), [0, 1] inside the picture, u to the right and v down; and (N, M) distances
        from the plane of the camera, negative behind it (where the positions mean nothing).
    """
    cam2world, matrix = split_label(label)
    in_camera = (points - cam2world[:, None, :3, 3]) @ cam2world[:, :3, :3]  # R^T (p - t), row vectors
    image = in_camera @ matrix.transpose(1, 2)
    return image[..., :2] / image[..., 2:], in_camera[..., 2]


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)
