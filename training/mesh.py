"""The surface of a field as a triangle mesh with vertex colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import trimesh
from skimage.measure import marching_cubes
from torch import Tensor

from dnnlib.files import atomic_path
from training.field import Field

_CHUNK = 1 << 17  # points that are evaluated at once
_SPECK = 0.01  # connected pieces with fewer than this share of all faces are left out


@torch.no_grad()
def extract_mesh(
    field: Field,
    box_warp: float,
    *,
    resolution: int = 128,
    background: int | None = 0,
    device: torch.device | str = "cpu",
) -> trimesh.Trimesh | None:
    """Marching cubes on the zero level of the global SDF, one scene.

    Args:
        resolution: grid points along each side of the box.
        background: class whose surface (the wall behind the head) is left out; None keeps everything, and is
            what a field without parts needs.

    Returns:
        World units, y up, faces counter-clockwise from outside, colours of the texture field as rendered.
        None where the field has no surface in the box.
    """
    axis = torch.linspace(-0.5, 0.5, resolution, device=device) * box_warp
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    sdf = torch.cat([field.sdf(points[None])[0, :, 0] for points in grid.split(_CHUNK)])
    volume = sdf.reshape(resolution, resolution, resolution).float().cpu().numpy()
    if not volume.min() < 0 < volume.max():
        return None
    step = box_warp / (resolution - 1)
    # 'descent' turns the faces outwards here: an SDF is lower inside (the tests measure the volume's sign)
    vertices, faces, _, _ = marching_cubes(volume, 0.0, spacing=(step,) * 3, gradient_direction="descent")
    vertices = vertices.astype(np.float32) - box_warp / 2
    colours, classes = _look_up(field, torch.from_numpy(vertices).to(device), parts=background is not None)
    if classes is not None:
        kept = (classes[faces] != background).any(axis=1)
        faces = faces[kept] if kept.any() else faces
    mesh = trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False)
    return _without_specks(mesh)


def write_mesh(mesh: trimesh.Trimesh, *paths: Path) -> None:
    """PLY, GLB or whatever trimesh knows by the suffix, atomically."""
    for path in paths:
        with atomic_path(path) as temporary:
            mesh.export(temporary)


def _look_up(field: Field, points: Tensor, parts: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (V, 4) uint8 and, of a field with parts, classes (V,) at the vertices."""
    colours, classes = [], []
    for chunk in points.split(_CHUNK):
        values = field.query(chunk[None], colour=True, parts=parts)
        colours.append(values.colour[0, :, :3])
        if parts:
            classes.append(values.part_sdf[0].argmin(-1))
    rgb = (torch.cat(colours).float() * 255).round().clamp(0, 255).byte().cpu().numpy()
    opaque = np.full((len(rgb), 1), 255, dtype=np.uint8)
    return np.concatenate([rgb, opaque], axis=1), torch.cat(classes).cpu().numpy() if parts else None


def _without_specks(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    pieces = trimesh.graph.connected_components(mesh.face_adjacency, nodes=np.arange(len(mesh.faces)))
    large = [piece for piece in pieces if len(piece) >= _SPECK * len(mesh.faces)]
    if large:
        mesh.update_faces(np.sort(np.concatenate(large)))
    mesh.remove_unreferenced_vertices()
    return mesh
