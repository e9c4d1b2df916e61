"""What ``invert.py`` does, apart from its command line."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from datasets.labels import decode_image, label_set, write_mask
from dnnlib import config as config_files
from dnnlib.errors import UserError
from dnnlib.files import make_folder, write_json
from training.editing.inversion import Inversion, InversionSettings, Target, invert
from training.editing.latents import save_latent
from training.editing.report import INVERSION, psnr, versions
from training.editing.session import any_size, read_square_mask, refuse_without_parts
from training.generator import Generator
from training.network_source import encoder_of, find_network, open_network
from training.networks.encoder import Encoder
from training.pictures import look, sheet, sweep, tile, tile_side, to_uint8, write_png
from training.scene import camera_at, class_map, scene_of

LATENT = "latent.npz"
GENERATOR = "generator.safetensors"
_YAWS = (-0.5, -0.25, 0.0, 0.25, 0.5)  # of views.png
_READ_LABELS = "ffhq-mask"  # classes that the bundled reader knows


@dataclass(frozen=True)
class PhotoOptions:
    """Which picture, and where its scene goes."""

    network: Path | str
    image: Path
    mask: Path | None  # None: read off the picture by the bundled reader
    outdir: Path
    pose: tuple[float, float] | None  # yaw and pitch in radians; None: sought
    encoder: Path | None = None  # reads the first latent off the picture; None: the network's that ships, or
    # else the first is the mean
    settings: InversionSettings = InversionSettings()
    device: str = "cpu"
    command: str = ""


@dataclass(frozen=True)
class PhotoReport:
    """How near the scene comes."""

    yaw: float  # radians
    pitch: float
    psnr: float  # dB, of the picture from the scene as it is written
    psnr_latent: float  # dB, before the generator was tuned
    mask_agreement: float  # share of the pixels with the class of the given mask
    seconds: float
    edit: str  # the command to go on with


def run_inversion(options: PhotoOptions, say: Callable[[str], None]) -> PhotoReport:
    """Inverts a picture and writes everything into ``options.outdir``."""
    started = time.monotonic()
    network = find_network(options.network)
    generator = open_network(network, options.device)
    refuse_without_parts(generator, options.network)
    encoder = open_encoder(generator, options)
    target = read_target(generator, options, say)
    camera = None if options.pose is None else camera_at(generator, *options.pose)
    make_folder(options.outdir)
    settings = options.settings
    stages = {"fit": settings.fit_steps, "tune": settings.tune_steps}
    if camera is None:
        stages["start"] = settings.start_steps * len(settings.starts)
    with tqdm(total=sum(stages.values()), desc="invert", unit="step") as bar:

        def show(stage: str, loss: float) -> None:
            bar.set_postfix(stage=stage, loss=f"{loss:.3f}", refresh=False)
            bar.update()

        found = invert(generator, target, camera, settings, show, encoder)
    if found.interrupted:
        say("stopped early: writing what there is")
    return _write(generator, found, target, options, network, time.monotonic() - started)


def open_encoder(generator: Generator, options: PhotoOptions) -> Encoder | None:
    """The encoder that was asked for, or that ships for the network. Raises UserError where it does not
    belong to such a generator."""
    path = options.encoder or encoder_of(options.network)
    if path is None:
        return None
    encoder = Encoder.load(path, options.device).eval().requires_grad_(False)
    channels, sizes = 3 + generator.parts, generator.config
    if (encoder.config.in_channels, encoder.config.z_dim) != (channels, sizes.z_dim):
        raise UserError(
            f"--encoder: {path} reads {encoder.config.in_channels} channels to {encoder.config.z_dim} "
            f"numbers, the network wants {channels} to {sizes.z_dim}"
        )
    if encoder.config.resolution > sizes.resolution:
        raise UserError(
            f"--encoder: {path} wants pictures of {encoder.config.resolution} pixels, the network's have "
            f"{sizes.resolution}"
        )
    return encoder


def read_target(generator: Generator, options: PhotoOptions, say: Callable[[str], None]) -> Target:
    """The picture and its mask at the generator's resolution."""
    side = generator.config.resolution
    labels = label_set(generator.config.labels)
    image = _read_image(options.image, side).to(options.device)
    if options.mask is None:
        if labels.name != _READ_LABELS:
            raise UserError(f"--mask is missing: nothing bundled reads {labels.name} masks off a picture")
        say("no --mask: the bundled reader makes one, which knows rendered portraits only")
        return Target(image, _read_off(image))
    mask = read_square_mask(options.mask, labels, side, say, enlarge=True)
    return Target(image, mask[None].to(options.device))


def _read_image(path: Path, side: int) -> Tensor:
    """(1, 3, side, side) in [-1, 1]."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error.strerror or error}") from error
    with any_size(path):
        picture = ImageOps.exif_transpose(decode_image(data, str(path)))
    if picture.mode.startswith(("I", "F")):
        raise UserError(f"{path} has 16 bits a pixel or more: save it with 8")
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        raise UserError(f"{path} is transparent in places: put it on a background")
    picture = picture.convert("RGB")
    if picture.width != picture.height:
        raise UserError(
            f"{path} is {picture.width}x{picture.height}: crop it to a square, framed like the pictures "
            "that the network was trained on"
        )
    small = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))
    return torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def _read_off(image: Tensor) -> Tensor:
    """(1, H, H) classes by the bundled reader. Its package takes a while to import, and few runs want it."""
    from training.judges.reader import Reader

    return Reader.load(device=image.device).masks(image)


def _write(
    generator: Generator,
    found: Inversion,
    target: Target,
    options: PhotoOptions,
    network: Path,
    seconds: float,
) -> PhotoReport:
    folder, labels = options.outdir, label_set(generator.config.labels)
    untuned, scene = scene_of(generator, found.ws), scene_of(found.generator, found.ws)
    first, last = (look(each, found.camera) for each in (untuned, scene))
    everywhere = torch.ones_like(target.classes[0], dtype=torch.bool)
    pose = options.pose or found.pose
    save_latent(folder / LATENT, ws=found.ws, camera=found.camera)
    tuned = found.generator is not generator
    for stale in (folder / GENERATOR, (folder / GENERATOR).with_suffix(".json")):
        stale.unlink(missing_ok=True)  # an earlier inversion's does not belong to this latent
    if tuned:
        found.generator.save(folder / GENERATOR, {"tuned_from": network.name})
    write_mask(folder / "mask.png", class_map(last)[0].byte().cpu().numpy(), labels)
    write_mask(folder / "mask_given.png", target.classes[0].byte().cpu().numpy(), labels)
    pictures = [to_uint8(x[0]) for x in (target.image, first.image, last.image)]
    write_png(folder / "portrait.png", pictures[-1])
    side = tile_side(generator.config.resolution)
    row = [tile(picture, side) for picture in pictures]
    write_png(folder / "views.png", sheet([row, sweep(untuned, _YAWS), sweep(scene, _YAWS)]))
    report = PhotoReport(
        yaw=round(pose[0], 4),
        pitch=round(pose[1], 4),
        psnr=round(psnr(target.image[0], last.image[0].clamp(-1, 1), everywhere), 2),
        psnr_latent=round(psnr(target.image[0], first.image[0].clamp(-1, 1), everywhere), 2),
        mask_agreement=round((class_map(last) == target.classes).float().mean().item(), 4),
        seconds=round(seconds, 1),
        edit=_edit_command(folder / GENERATOR if tuned else network, folder / LATENT, pose),
    )
    details = {
        "command": options.command,
        "network": str(options.network),
        "settings": config_files.to_dict(options.settings),
        "versions": versions(),
    }
    write_json(folder / INVERSION, {**vars(report), **details})
    return report


def _edit_command(network: Path, latent: Path, pose: tuple[float, float]) -> str:
    words = ["python", "edit.py", "--network", network, "--latent", latent]
    words += [f"--yaw={pose[0]:.4f}", f"--pitch={pose[1]:.4f}"]
    return shlex.join(str(word) for word in words)
