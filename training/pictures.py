"""Renderings to picture files: single pictures, sheets of them, videos."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.labels import LabelSet, write_mask
from dnnlib.files import atomic_path
from training.generator import Generator, Rendering, Want
from training.scene import Scene, camera_at, class_map, normal_picture

_SMALLEST_TILE = 128
_LARGEST_TILE = 256
_FRAME = 256  # side of a scene in videos of small models
_FPS = 20
_CHUNK = {"cpu": 1 << 13, "cuda": 1 << 14}  # rays at a time: bounds the memory of large models


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] to (H, W, 3) uint8."""
    scaled = ((image.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.permute(1, 2, 0).to(torch.uint8).cpu().numpy()


def depth_to_uint8(depth: Tensor, near: float, far: float) -> np.ndarray:
    """Ray distances (1, r, r) to (r, r) uint8, near 255 and far 0."""
    share = (far - depth[0].detach().float()) / (far - near)
    return (share * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def write_png(path: Path | str, picture: np.ndarray) -> None:
    """(H, W, 3) or (H, W) uint8, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def tile(picture: np.ndarray, side: int, nearest: bool = False) -> np.ndarray:
    """A square picture (H, H, 3) uint8 at (side, side)."""
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((side, side), how))


def tile_side(resolution: int) -> int:
    """Side of the tiles on sheets: small pictures are enlarged, very large ones reduced."""
    return min(max(_SMALLEST_TILE, resolution), _LARGEST_TILE)


def ray_chunk(device: torch.device) -> int:
    """Rays to evaluate at once without gradients: on a CPU so many that their samples take less memory than
    the super-resolution after them, whose peak it then is; on a GPU enough to be busy with."""
    return _CHUNK["cpu" if device.type == "cpu" else "cuda"]


@torch.no_grad()
def look(scene: Scene, camera: Tensor, *, normals: bool = False, mask: bool = True) -> Rendering:
    """One deterministic view (1, 25)."""
    want = Want(mask=mask, normals=normals)
    return scene.render(camera, want, deterministic=True, chunk=ray_chunk(camera.device))


def write_view(folder: Path, suffix: str, view: Rendering, labels: LabelSet, prefix: str = "") -> None:
    """PREFIXmask_SUFFIX.png and PREFIXnormals_SUFFIX.png of a view with normals."""
    write_mask(folder / f"{prefix}mask{suffix}.png", class_map(view)[0].byte().cpu().numpy(), labels)
    write_png(folder / f"{prefix}normals{suffix}.png", to_uint8(normal_picture(view)[0]))


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of (H, W, 3) pictures of one size to one picture, with a thin white gap."""
    gap = 2
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    page = np.full(shape, 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            page[top : top + height, left : left + width] = picture
    return page


def sweep(scene: Scene, yaws: Sequence[float]) -> list[np.ndarray]:
    """The scene from several yaws (radians), pitch 0, as tiles."""
    side = tile_side(scene.generator.config.resolution)
    cameras = camera_at(scene.generator, torch.tensor(list(yaws)), 0.0).split(1)
    return [tile(to_uint8(look(scene, camera, mask=False).image[0]), side) for camera in cameras]


def turn(generator: Generator, frames: int, yaw: float = 0.6, pitch: float = 0.15) -> Tensor:
    """Cameras (frames, 25) that swing to both sides and nod: a loop within what portraits are seen from."""
    phase = torch.arange(frames) * (2 * math.pi / frames)
    return camera_at(generator, yaw * torch.sin(phase), pitch * torch.sin(2 * phase))


def write_turntable(
    path: Path, scenes: Sequence[Scene], frames: int = 40, progress: Callable[[], None] | None = None
) -> None:
    """An MP4 of scenes side by side, turning; it loops."""
    cameras = turn(scenes[0].generator, frames).split(1)
    side = max(_FRAME, scenes[0].generator.config.resolution)
    with atomic_path(path) as temporary:
        writer = imageio.get_writer(
            os.fspath(temporary), fps=_FPS, codec="libx264", quality=8, macro_block_size=2
        )
        try:
            for camera in cameras:
                shown = [tile(to_uint8(look(scene, camera, mask=False).image[0]), side) for scene in scenes]
                writer.append_data(np.concatenate(shown, axis=1))
                if progress is not None:
                    progress()
        finally:
            writer.close()
