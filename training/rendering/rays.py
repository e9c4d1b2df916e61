"""Rays through the pixel centres of a camera."""

from __future__ import annotations

import torch
from torch import Tensor

from training.rendering.cameras import split_label


def camera_rays(camera: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """One ray per pixel of a square picture, row by row from the top left.

    Pixel (row i, column j) is seen through u = (j + 0.5) / resolution, v = (i + 0.5) / resolution; with
    ``v_camera = K^-1 (u, v, 1)`` (x right, y down, z forward) the direction is ``normalise(R v_camera)``.

    Args:
        camera: (N, 25) labels.
        resolution: R, side of the picture in pixels.

    Returns:
        Origins and unit directions in world space, each (N, R * R, 3); differentiable in the camera.
    """
    cam2world, intrinsics = split_label(camera)
    centres = (torch.arange(resolution, device=camera.device, dtype=camera.dtype) + 0.5) / resolution
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    u, v = u.reshape(1, -1), v.reshape(1, -1)  # (1, R * R), columns run fastest
    focal_x, skew, centre_x = intrinsics[:, 0, :].unsqueeze(-1).unbind(1)  # (N, 1) each
    focal_y, centre_y = intrinsics[:, 1, 1:].unsqueeze(-1).unbind(1)
    y = (v - centre_y) / focal_y
    x = (u - centre_x - skew * y) / focal_x
    in_camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (N, R * R, 3)
    directions = torch.nn.functional.normalize(in_camera @ cam2world[:, :3, :3].transpose(1, 2), dim=-1)
    origins = cam2world[:, None, :3, 3].expand_as(directions)
    return origins, directions
