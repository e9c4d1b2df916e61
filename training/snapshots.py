"""What a run leaves behind: grids to look at, generators to use, and states to go on from."""

from __future__ import annotations

import itertools
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.labels import label_set
from dnnlib.errors import UserError
from dnnlib.files import atomic_path
from torch_utils import checkpoint, distributed
from training import generator as generators
from training.generator import Generator, Rendering, Want
from training.rendering.cameras import frontal_camera, orbit_camera

COLUMNS = 8  # latents in a grid, and yaws in its rows of turning heads
_TURNED = 3  # latents that are shown from all yaws
_YAW = 0.7  # furthest yaw of these, radians
_TILE = 128  # smaller pictures are enlarged to about this side
STATE_FORMAT = "mate3d-training-1"
_STATE_NAME = "training-state-{:012d}.safetensors"
_STATES_KEPT = 2
_OF_KIMG = re.compile(r"(?:network-snapshot|grid)-(\d+)\.(?:safetensors|png)")


@dataclass(frozen=True)
class FixedScenes:
    """The scenes of all grids of a run."""

    z: Tensor  # (COLUMNS, z_dim)
    camera: Tensor  # (COLUMNS, 25)


def fixed_scenes(z_dim: int, cameras: np.ndarray, seed: int, device: torch.device) -> FixedScenes:
    """Latents of a seed of their own, seen by cameras (n, 25) that are spread over the data set."""
    source = torch.Generator().manual_seed(seed)
    chosen = np.linspace(0, len(cameras) - 1, COLUMNS).round().astype(int)
    z = torch.randn(COLUMNS, z_dim, generator=source)
    return FixedScenes(z.to(device), torch.from_numpy(cameras[chosen]).to(device))


@torch.no_grad()
def write_grid(path: Path, generator: Generator, scenes: FixedScenes) -> None:
    """Rows of image, mask, normals and depth of all latents; then the first latents from left to right."""
    camera = generator.config.camera
    device = scenes.z.device
    frontal = frontal_camera(focal=camera.focal, pivot=camera.pivot, radius=camera.radius).to(device)
    ws = generator.map(scenes.z, frontal.expand(len(scenes.z), -1))
    rows = _kinds(_render(generator, ws, scenes.camera), generator)
    yaws = torch.linspace(-_YAW, _YAW, COLUMNS, device=device)
    turning = orbit_camera(
        yaws, torch.zeros_like(yaws), focal=camera.focal, pivot=camera.pivot, radius=camera.radius
    )
    for latent in range(_TURNED):
        views = _render(generator, ws[latent : latent + 1].expand(COLUMNS, -1, -1), turning)
        rows += _kinds(views, generator)[: 1 if latent else 3]  # the first with mask and normals too
    side = generator.config.resolution
    sheet = np.concatenate(
        [np.concatenate([_fit(tile, side) for tile in row], axis=1) for row in rows], axis=0
    )
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary)


def _render(generator: Generator, ws: Tensor, camera: Tensor) -> list[Rendering]:
    """One picture at a time: the published sizes would not fit eight."""
    want = Want(normals=True)
    pairs = zip(ws.split(1), camera.split(1), strict=True)
    return [generator.synthesise(w, c, want=want, deterministic=True) for w, c in pairs]


def _kinds(views: list[Rendering], generator: Generator) -> list[list[np.ndarray]]:
    """Rows of (h, w, 3) uint8 tiles: image, mask, normals, depth."""
    labels = label_set(generator.config.labels)
    camera = generator.config.camera

    def colours(image: Tensor) -> np.ndarray:  # (1, 3, h, w) in [-1, 1]
        return ((image[0].movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()

    def distance(depth: Tensor) -> Tensor:  # near is white, far is black
        return (1 - 2 * (depth - camera.near) / (camera.far - camera.near)).expand(-1, 3, -1, -1)

    return [
        [colours(view.image) for view in views],
        [labels.colourise(view.mask[0].argmax(0).cpu().numpy()) for view in views],
        [colours(view.normals) for view in views],
        [colours(distance(view.depth)) for view in views],
    ]


def _fit(tile: np.ndarray, side: int) -> np.ndarray:
    """Pixels repeated to the common size of a grid's tiles."""
    wanted = side * max(1, math.ceil(_TILE / side))
    return np.array(Image.fromarray(tile).resize((wanted, wanted), Image.Resampling.NEAREST))


def snapshot_path(outdir: Path, images: int) -> Path:
    """Where the generator goes after so many images."""
    return Path(outdir) / f"network-snapshot-{images // 1000:06d}.safetensors"


def save_state(outdir: Path, images: int, state: dict) -> Path:
    """Writes everything that the run needs to go on, then removes all but the last two states."""
    tensors, structure = checkpoint.flatten(state)
    path = Path(outdir) / _STATE_NAME.format(images)
    checkpoint.save(path, tensors, {"format": STATE_FORMAT, "images": images, "structure": structure})
    for old in find_states(outdir)[:-_STATES_KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(".json").unlink(missing_ok=True)
    return path


def is_generator(path: Path) -> bool:
    """Whether a file holds a generator alone, and not the state of a run."""
    return path.is_file() and checkpoint.load_meta(path).get("format") == generators.FORMAT


def set_aside(outdir: Path, images: int) -> Path | None:
    """Moves what a run wrote after so many images, when it goes on from there, to a folder of its own, which
    is returned; None if there is nothing.

    States and generators are found by their numbers: those of a branch that was left would be taken for the
    newest.
    """
    later = [path for path in find_states(outdir) if int(path.stem.rsplit("-", 1)[1]) > images]
    for path in Path(outdir).iterdir():
        match = _OF_KIMG.fullmatch(path.name)
        if match and int(match[1]) > images // 1000:
            later.append(path)
    if not later:
        return None
    folder = next(f for f in (Path(outdir) / f"set-aside-{n}" for n in itertools.count(1)) if not f.exists())
    folder.mkdir()
    for path in later:
        for each in {path, path.with_suffix(".json")}:
            if each.exists():
                each.rename(folder / each.name)
    return folder


def find_states(outdir: Path) -> list[Path]:
    """States in a folder, oldest first."""
    pattern = re.compile(re.escape(_STATE_NAME).replace(re.escape("{:012d}"), r"\d{12}"))
    return sorted(path for path in Path(outdir).iterdir() if pattern.fullmatch(path.name))


def load_state(source: Path, device: torch.device) -> tuple[dict[str, Any], Path]:
    """The newest state that can be read in a folder, or that of a file, and its path."""
    source = Path(source)
    if source.is_dir():
        candidates = find_states(source)[::-1]
        if not candidates:
            raise UserError(
                f"--resume {source}: no training-state-*.safetensors there; give the --outdir of a run"
            )
    else:
        candidates = [source]
    for path in candidates:
        try:
            tensors, meta = checkpoint.load(path, device=device)
        except UserError:
            if path == candidates[-1]:
                raise
            continue  # the newest was cut short, by a full disk for example: the one before is whole
        if meta.get("format") != STATE_FORMAT or "structure" not in meta:
            raise UserError(f"--resume {path}: not a training state (format {meta.get('format')!r})")
        return checkpoint.unflatten(tensors, meta["structure"]), path
    raise AssertionError("unreachable")


def random_state() -> dict[str, Any]:
    """States of the random generators of this process, of torch on every device, numpy and Python."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (kind, keys.tobytes(), *rest),
        "python": random.getstate(),
    }


def random_states(device: torch.device) -> list[dict]:
    """Random states of all processes, by rank. numpy's and Python's are those of this process everywhere."""
    state = random_state()
    if distributed.world_size() == 1:
        return [state]
    gathered = {}
    for name in ("torch", "cuda"):
        mine = state[name]
        gathered[name] = [mine] * distributed.world_size()
        if mine is not None:
            on_device = mine.to(device)
            gathered[name] = [torch.empty_like(on_device) for _ in range(distributed.world_size())]
            torch.distributed.all_gather(gathered[name], on_device)
    pairs = zip(gathered["torch"], gathered["cuda"], strict=True)
    return [{**state, "torch": of_torch, "cuda": of_cuda} for of_torch, of_cuda in pairs]


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of :func:`random_state`."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
