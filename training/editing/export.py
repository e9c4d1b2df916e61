"""Everything that an edit leaves in its folder, and the way back from there."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tqdm import tqdm

from datasets.labels import label_set
from dnnlib.errors import UserError
from dnnlib.files import sha256
from torch_utils import checkpoint
from training.editing.latents import read_arrays, save_latent
from training.editing.optimise import EditResult
from training.editing.portrait import EditedPortrait, LearnedCopy
from training.editing.region import Region
from training.generator import Generator, Rendering
from training.mesh import extract_mesh, write_mesh
from training.network_source import open_network
from training.pictures import look, sheet, sweep, to_uint8, write_png, write_turntable, write_view
from training.scene import Scene, device_of, scene_of

_SWEEP = tuple(math.radians(yaw) for yaw in (-40, -27, -13, 0, 13, 27, 40))


def write_pictures(
    folder: Path, before: Scene, after: Scene, camera: torch.Tensor
) -> tuple[Rendering, Rendering]:
    """before.png, after.png, their masks and normals at M's camera, and views.png; returns both views."""
    labels = label_set(before.generator.config.labels)
    views = look(before, camera, normals=True), look(after, camera, normals=True)
    for name, view in zip(("before", "after"), views, strict=True):
        write_png(folder / f"{name}.png", to_uint8(view.image[0]))
        write_view(folder, f"_{name}", view, labels)
    write_png(folder / "views.png", sheet([sweep(scene, _SWEEP) for scene in (before, after)]))
    return views


def write_video(folder: Path, before: Scene, after: Scene, frames: int) -> None:
    """turntable.mp4: before and after side by side."""
    with tqdm(total=frames, desc="turntable", unit="frame", leave=False) as bar:
        write_turntable(folder / "turntable.mp4", (before, after), frames, progress=lambda: bar.update())


def write_meshes(folder: Path, scene: Scene, resolution: int) -> bool:
    """mesh.ply and mesh.glb; False where the scene has no surface."""
    box_warp = scene.generator.config.camera.box_warp
    device = device_of(scene.generator)
    mesh = extract_mesh(scene.field, box_warp, resolution=resolution, device=device)
    files = folder / "mesh.ply", folder / "mesh.glb"
    if mesh is None:
        for stale in files:  # of an earlier edit into the same folder
            stale.unlink(missing_ok=True)
        return False
    write_mesh(mesh, *files)
    return True


def save_edit(folder: Path, result: EditResult, network: Path) -> None:
    """generator.safetensors (the learned half, a generator like any other) and latent.npz.

    The portrait itself is a blend: outside the region it is the network that was edited, which is not stored
    a second time but named in the JSON, with the digest of its file. :func:`load_edit` joins both.
    """
    edited, request = result.after, result.request
    learned = edited.learned.into(edited.source.generator)
    labels = label_set(learned.config.labels)
    edit = {
        "network": str(network),
        "network_sha256": sha256(network),
        "classes": [labels.names[c] for c in request.classes],
        "camera": request.camera[0].tolist(),
        "latent": "latent.npz: ws of the network, ws_edited of this generator, region where this one is seen",
    }
    learned.save(folder / "generator.safetensors", extra={"edit": edit})
    save_latent(
        folder / "latent.npz",
        ws=edited.source.ws[0],
        ws_edited=edited.learned.ws[0],
        camera=request.camera[0],
        region=edited.region.pack(),
        region_side=torch.tensor(edited.region.voxels.shape[0]),
    )


def load_edit(folder: Path | str, network: Path | str | None = None, device: str = "cpu") -> EditedPortrait:
    """The edited portrait that :func:`save_edit` wrote; ``network`` when the edited network has moved."""
    folder = Path(folder)
    edit = checkpoint.load_meta(folder / "generator.safetensors").get("edit")
    if edit is None:
        raise UserError(f"{folder}/generator.safetensors is a generator, but not one that an edit wrote")
    path = Path(network or edit["network"])
    if not path.is_file():
        raise UserError(f"the network that was edited is not at {path}: say where it is with --network")
    if sha256(path) != edit["network_sha256"]:
        raise UserError(f"{path} is not the network that {folder} was made with: its SHA-256 differs")
    frozen = open_network(path, device)
    learned = Generator.load(folder / "generator.safetensors", device)
    arrays = read_arrays(folder / "latent.npz")
    try:
        ws = torch.from_numpy(arrays["ws"]).to(device)[None]
        ws_edited = torch.from_numpy(arrays["ws_edited"]).to(device)[None]
        region = Region.unpack(arrays["region"], int(arrays["region_side"]), frozen.config.camera.box_warp)
    except KeyError as error:
        raise UserError(f"{folder}/latent.npz lacks {error}: it was not written by an edit") from error
    region = Region(region.voxels.to(device), region.box_warp)
    return EditedPortrait(scene_of(frozen, ws), LearnedCopy(learned, ws_edited), region)
