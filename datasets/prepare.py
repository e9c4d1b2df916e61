"""Checks a user's pictures, masks and cameras, and converts them to the set that training reads.

::

    python -m datasets.prepare --images photos --masks masks --cameras cameras.json \\
        --labels ffhq-mask --size 512 --out my-set

Every problem is reported, not only the first. OUT is a folder or an uncompressed zip with images/, masks/ and
dataset.json (see :mod:`datasets.masked_images`); it is written only when it will be complete.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from PIL import Image, ImageOps

from datasets.cameras import FOCAL, RADIUS, Cameras, Orbit, camera_problems, read_cameras
from datasets.labels import LABEL_SETS, LabelSet, decode_image, decode_mask, encode_mask, label_set
from datasets.masked_images import MaskedImages
from datasets.storage import Store, stem
from dnnlib.errors import UserError, user_errors
from dnnlib.files import atomic_path, parse_json, read_json
from dnnlib.options import Finite

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Picture:
    """One picture with what belongs to it; its content may still be wrong."""

    stem: str
    image: str  # name in the images' store
    mask: str | None  # name in the masks' store
    camera: np.ndarray | None  # (25,) float32
    caption: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a user's pictures and masks are, and what they become."""

    images: Store
    masks: Store
    labels: LabelSet
    size: int

    def read_image(self, picture: Picture) -> Image.Image:
        """The picture as it is, turned as its EXIF data say."""
        name = self.images.locate(picture.image)
        return ImageOps.exif_transpose(decode_image(self.images.read(picture.image), name))

    def read_mask(self, picture: Picture) -> np.ndarray:
        """Classes (H, W) uint8, not yet resized."""
        return decode_mask(self.masks.read(picture.mask), self.masks.locate(picture.mask), self.labels)


def match(source: Source, cameras: Cameras, captions: dict[str, str], problems: list[str]) -> list[Picture]:
    """All pictures, with their masks and cameras; everything that is missing goes to ``problems``."""
    images, masks = (_unique_stems(store, problems) for store in (source.images, source.masks))
    cameras = {stem(name): camera for name, camera in cameras.items()}
    captions = {stem(name): caption for name, caption in captions.items()}
    pictures = []
    for key, name in images.items():
        if key not in masks:
            problems.append(f"{source.images.locate(name)}: there is no mask {source.masks.locate(key)}.*")
        if key not in cameras:
            problems.append(f"{source.images.locate(name)}: there is no camera of that name")
        pictures.append(Picture(key, name, masks.get(key), cameras.get(key), captions.get(key)))
    for key in sorted(masks.keys() - images.keys()):
        problems.append(
            f"{source.masks.locate(masks[key])}: there is no picture {source.images.locate(key)}.*"
        )
    for key in sorted(cameras.keys() - images.keys()):
        problems.append(f"camera {key}: there is no picture {source.images.locate(key)}.*")
    return pictures


def check(source: Source, picture: Picture) -> list[str]:
    """Every problem of one picture, a line each."""
    image_name = source.images.locate(picture.image)
    wrong = [] if picture.camera is None else camera_problems(picture.camera)
    problems = [f"{image_name}: {problem}" for problem in wrong]
    try:
        problems += [f"{image_name}: {problem}" for problem in _image_problems(source.read_image(picture))]
    except UserError as error:
        problems.append(str(error))
    if picture.mask is None:
        return problems
    try:
        mask = source.read_mask(picture)
        mask_name = source.masks.locate(picture.mask)
        if mask.shape[0] != mask.shape[1]:
            size = f"{mask.shape[1]}x{mask.shape[0]}"
            problems.append(f"{mask_name}: is {size}, not square: crop it together with its picture")
        if not mask.any():
            problems.append(f"{mask_name}: is background all over")
    except UserError as error:
        problems.append(str(error))
    return problems


def convert(source: Source, picture: Picture) -> tuple[bytes, bytes]:
    """PNG files of the picture and of its mask at the wanted size."""
    size = (source.size, source.size)
    image = source.read_image(picture).convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    mask = source.read_mask(picture)
    if mask.shape != size:  # nearest: a class between two classes means nothing
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue(), encode_mask(mask, source.labels)


def write_set(source: Source, pictures: Sequence[Picture], out: Path, workers: int) -> None:
    """Write images/, masks/ and dataset.json to the folder or zip ``out``, which appears when complete."""
    description: dict[str, Any] = {
        "labels": [[f"{p.stem}.png", [float(v) for v in p.camera]] for p in pictures],
        "captions": {f"{p.stem}.png": p.caption for p in pictures if p.caption},
    }
    with _sink(out) as write:
        converted = _in_parallel(
            lambda picture: (picture, convert(source, picture)), pictures, workers, "writing"
        )
        for picture, (image, mask) in converted:
            write(f"images/{picture.stem}.png", image)
            write(f"masks/{picture.stem}.png", mask)
        write("dataset.json", json.dumps(description).encode())


def prepare(
    source: Source, cameras: Path | None, orbit: Orbit, out: Path | None, skip_bad: bool, workers: int
) -> None:
    """Check everything, print every problem, and write ``out`` if there is none or bad pictures may go.

    ``cameras`` None stands for the dataset.json among the pictures.
    """
    problems: list[str] = []
    content, where = _camera_file(source.images, cameras)
    found, captions = read_cameras(content, where, orbit, problems)
    pictures = match(source, found, captions, problems)
    good = []
    for picture, wrong in _in_parallel(lambda p: (p, check(source, p)), pictures, workers, "checking"):
        problems += wrong
        if not wrong and picture.mask is not None and picture.camera is not None:
            good.append(picture)
    for problem in problems:
        click.echo(problem)
    click.echo(f"{len(good)} pictures are ready to use, {_plural(len(problems), 'problem')} found")
    if not good:
        raise UserError(f"no usable picture in {source.images.path}: see the problems above")
    if problems and not skip_bad:
        raise UserError("nothing was written: correct the above, or leave those pictures out with --skip-bad")
    if out is None:
        return
    write_set(source, good, out, workers)
    MaskedImages(out, None, source.labels, source.size)  # reads it as training will
    click.echo(f"wrote {out}; train on it with `--data {out}`")


@click.command()
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder or zip of pictures.")
@click.option(
    "--masks", required=True, type=click.Path(path_type=Path), help="The same of masks, same stems."
)
@click.option(
    "--cameras", type=click.Path(path_type=Path), help="JSON file [default: dataset.json in --images]."
)
@click.option("--labels", default="ffhq-mask", show_default=True, help=f"Label set: {', '.join(LABEL_SETS)}.")
@click.option("--size", default=512, show_default=True, type=click.IntRange(8, 4096), help="Side in pixels.")
@click.option("--out", type=click.Path(path_type=Path), help="New folder or .zip; without it, only checks.")
@click.option("--skip-bad", is_flag=True, help="Leave out the pictures that have problems.")
@click.option("--degrees", is_flag=True, help="Yaw and pitch are in degrees [default: radians].")
@click.option("--pivot", nargs=3, type=Finite(), help="Where yaw/pitch cameras look [default: by label set].")
@click.option(
    "--radius", default=RADIUS, type=Finite(), show_default=True, help="Distance of yaw/pitch cameras."
)
@click.option(
    "--focal",
    default=FOCAL,
    type=Finite(),
    show_default=True,
    help="Their focal length divided by the image size.",
)
@click.option("--workers", default=os.cpu_count() or 1, show_default="one per core", type=click.IntRange(1))
@user_errors
def main(
    images: Path,
    masks: Path,
    cameras: Path | None,
    labels: str,
    size: int,
    out: Path | None,
    skip_bad: bool,
    degrees: bool,
    pivot: tuple[float, float, float] | None,
    radius: float,
    focal: float,
    workers: int,
) -> None:
    """Check pictures, masks and cameras, and convert them to a set for training.

    The cameras' file is a dataset.json, {"labels": [["name.png", [25 floats]], ...]}, or a JSON object
    {"name.png": {"yaw": 0.1, "pitch": 0}, ...}. Yaw and pitch are offsets from the frontal view: positive yaw
    moves the camera to the viewer's right, positive pitch moves it down.
    """
    chosen = label_set(labels)
    if out is not None:
        _check_out(out)
    source = Source(Store(images), Store(masks), chosen, size)
    orbit = Orbit(pivot or chosen.pivot, radius, focal, degrees)
    prepare(source, cameras, orbit, out, skip_bad, workers)


def _unique_stems(store: Store, problems: list[str]) -> dict[str, str]:
    names = store.images()
    if not names:
        raise UserError(f"{store.path} holds no pictures (png, jpg, webp, bmp): check the path")
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(stem(name), name)
        if other != name:
            problems.append(f"{store.locate(name)}: has the same stem as {other}; rename one of them")
    return found


def _image_problems(image: Image.Image) -> Iterator[str]:
    if image.width != image.height:
        yield f"is {image.width}x{image.height}, not square: crop it, its mask and its camera's intrinsics"
    if image.mode not in ("RGB", "RGBA", "L", "P", "LA", "1", "CMYK", "YCbCr"):
        yield f"has colour mode {image.mode}: save it with 8 bits per channel"
    elif image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        yield "has transparent pixels: flatten it onto a background"


def _camera_file(images: Store, cameras: Path | None) -> tuple[Any, str]:
    """The JSON content that holds the cameras, and what error messages call it."""
    if cameras is not None:
        return read_json(cameras), str(cameras)
    where = images.locate("dataset.json")
    if not images.has("dataset.json"):
        raise UserError(f"there is no {where}: give the cameras by --cameras FILE")
    return parse_json(images.read("dataset.json"), where), where


def _in_parallel(function: Callable[[T], R], items: Sequence[T], workers: int, verb: str) -> Iterator[R]:
    """``function`` of each item in order, on threads: decoding and encoding pictures release the lock."""
    chunk = 32 * workers  # what may wait in memory to be consumed
    with (
        ThreadPoolExecutor(workers) as pool,
        click.progressbar(length=len(items), label=verb, file=sys.stderr) as bar,
    ):
        for start in range(0, len(items), chunk):
            for result in pool.map(function, items[start : start + chunk]):
                yield result
                bar.update(1)


def _check_out(out: Path) -> None:
    """UserError where ``out`` exists or could not be written, before anything is read; leaves nothing behind.

    It tries: permissions alone do not say what /proc or a file instead of a folder will do.
    """
    if out.name in ("", ".."):
        raise UserError(f"--out {out}: give the name of a new folder or .zip")
    probe = _beside(out)
    made: list[Path] = []
    try:
        if out.exists() and (out.suffix == ".zip" or not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists already: remove it or choose another --out")
        made = [probe, *(folder for folder in out.parents if not folder.exists())]
        probe.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    finally:
        for folder in made:
            with suppress(OSError):  # what could not be made
                folder.rmdir()


def _beside(out: Path) -> Path:
    """A temporary folder on the same file system as ``out``."""
    return out.with_name(f".{out.name}.{os.getpid()}")


@contextmanager
def _sink(out: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that writes a named file into the folder or zip ``out``, which appears after the block."""
    try:
        with _zip_sink(out) if out.suffix == ".zip" else _folder_sink(out) as write:
            yield write
    except OSError as error:  # its file is a temporary one, which says nothing to the user
        reason = error.strerror or error
        raise UserError(f"cannot write {out}: {reason}; make room, or choose another --out") from error


@contextmanager
def _zip_sink(out: Path) -> Iterator[Callable[[str, bytes], None]]:
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        yield lambda name, data: archive.writestr(name, data)


@contextmanager
def _folder_sink(out: Path) -> Iterator[Callable[[str, bytes], None]]:
    temporary = _beside(out)

    def write(name: str, data: bytes) -> None:
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    try:
        yield write
        if out.is_dir():
            out.rmdir()  # empty: checked at the start
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


if __name__ == "__main__":
    main()
