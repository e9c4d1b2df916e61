"""What ``generate.py`` does, apart from its command line: portraits of seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.labels import label_set, write_mask
from dnnlib.errors import UserError
from training.acceleration import Acceleration, open_accelerated
from training.mesh import extract_mesh, write_mesh
from training.pictures import (
    depth_to_uint8,
    look,
    sheet,
    tile,
    tile_side,
    to_uint8,
    write_png,
    write_turntable,
)
from training.scene import (
    Scene,
    camera_at,
    class_map,
    device_of,
    latent_of_seed,
    normal_picture,
    scene_of,
    ws_of_latent,
)

_MOST_SEEDS = 10_000  # '0-99999999' is a slip of the hand
_LONGEST_ROW = 12  # seeds from which on a grid is hard to look at


def parse_seeds(text: str) -> list[int]:
    """'0-3,7' to [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not found:
            raise UserError(f"--seeds '{text}': '{part.strip()}' is no seed; write 0-7 or 1,5,9")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < 2**32 or last - first >= _MOST_SEEDS:
            raise UserError(f"--seeds '{text}': the range {part.strip()} is empty, or too long")
        seeds += range(first, last + 1)
    return seeds


def generate(
    network: Path | str,
    seeds: list[int],
    outdir: Path,
    *,
    truncation: float = 0.7,
    yaw: float = 0.0,
    pitch: float = 0.0,
    video: bool = False,
    mesh: bool = False,
    device: str = "cpu",
    acceleration: Acceleration | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """seedNNNN.png with its mask, normals and depth per seed, and grid.png; on request .mp4, .ply, .glb.

    Of many seeds portraits.png shows the pictures alone, in a square.
    """
    generator = open_accelerated(network, device, acceleration or Acceleration())
    if not generator.parts:
        say("this generator has no parts (a plain EG3D model): pictures, normals and depth, but no masks")
    camera = camera_at(generator, yaw, pitch)
    tiles: list[list[np.ndarray]] = []
    for seed in tqdm(seeds, desc="generate", unit="portrait"):
        ws = ws_of_latent(generator, latent_of_seed(generator, seed), truncation)
        scene, name = scene_of(generator, ws), f"seed{seed:04d}"
        tiles.append(_write_pictures(outdir, name, scene, camera))
        if video:
            write_turntable(outdir / f"{name}.mp4", [scene])
        if mesh:
            surface = extract_mesh(
                scene.field,
                generator.config.camera.box_warp,
                background=0 if generator.parts else None,
                device=device_of(generator),
            )
            if surface is None:
                say(f"seed {seed} has no surface in its box: no mesh is written")
            else:
                write_mesh(surface, outdir / f"{name}.ply", outdir / f"{name}.glb")
    write_png(outdir / "grid.png", sheet(list(zip(*tiles, strict=True))))
    if len(tiles) > _LONGEST_ROW:
        write_png(outdir / "portraits.png", square([column[0] for column in tiles]))


def square(pictures: list[np.ndarray]) -> np.ndarray:
    """Equal pictures (H, W, 3) as a sheet of about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(pictures)))
    return sheet([pictures[start : start + columns] for start in range(0, len(pictures), columns)])


def _write_pictures(folder: Path, name: str, scene: Scene, camera) -> list[np.ndarray]:
    """The pictures of a seed (its mask only where the generator has parts), also as tiles of the grid."""
    config = scene.generator.config
    view = look(scene, camera, normals=True)
    image = to_uint8(view.image[0])
    depth = depth_to_uint8(view.depth[0], config.camera.near, config.camera.far)
    normals = to_uint8(normal_picture(view)[0])
    write_png(folder / f"{name}.png", image)
    write_png(folder / f"{name}_normals.png", normals)
    write_png(folder / f"{name}_depth.png", depth)
    side = tile_side(config.resolution)
    tiles = [tile(picture, side) for picture in (image, normals, np.repeat(depth[..., None], 3, axis=2))]
    if scene.generator.parts:
        labels, classes = label_set(config.labels), class_map(view)[0].cpu().numpy()
        write_mask(folder / f"{name}_mask.png", classes.astype(np.uint8), labels)
        tiles.insert(1, tile(labels.colourise(classes), side, nearest=True))
    return tiles
