"""Pictures with their masks and cameras, from a folder or a zip.

Two layouts are read::

    IMAGES/dataset.json             {"labels": [["00000/img0.png", [25 floats]], ...]}
    IMAGES/00000/img0.png           and MASKS/00000/img0.png, the same stem

    SET/dataset.json                the same, also {"captions": {name: text}}
    SET/images/... SET/masks/...    and, when asked for as extras, SET/normals/... SET/depth/...

Each of IMAGES, MASKS and SET is a folder or a zip.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.cameras import SIZE, as_label, camera_problems, mirror_camera, misshapen, read_captions
from datasets.labels import LabelSet, decode_image, decode_mask, label_set
from datasets.storage import Store, by_stem, is_file_name, stem
from dnnlib.errors import UserError
from dnnlib.files import parse_json

EXTRAS = ("normals", "depth", "caption")


@dataclass(frozen=True)
class Sample:
    """One picture. A mirrored picture has its own index, ``len(pictures)`` above the original's."""

    image: np.ndarray  # (3, H, W) uint8, RGB
    mask: np.ndarray  # (H, W) uint8, classes
    camera: np.ndarray  # (25,) float32, method section 1
    index: int
    normals: np.ndarray | None = (
        None  # (3, H, W) float32, view space: x right, y up, z to the viewer; 0 outside
    )
    depth: np.ndarray | None = None  # (1, H, W) float32, distance along the ray in world units; 0 outside
    caption: str | None = None


@dataclass(frozen=True)
class Batch:
    """N samples as tensors."""

    image: Tensor  # (N, 3, H, W) uint8
    mask: Tensor  # (N, H, W) uint8
    camera: Tensor  # (N, 25) float32
    index: Tensor  # (N,) int64
    normals: Tensor | None = None  # (N, 3, H, W) float32
    depth: Tensor | None = None  # (N, 1, H, W) float32
    caption: tuple[str, ...] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """This batch on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """This batch in page-locked memory; the DataLoader calls it when it is made with pin_memory=True."""
        return self._map(Tensor.pin_memory)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> Batch:
        """Some of its samples."""
        some = self._map(lambda tensor: tensor[part])
        return some if self.caption is None else replace(some, caption=self.caption[part])

    def _map(self, function: Any) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class _Stored:
    """The decoded files of one picture, small enough to keep."""

    image: np.ndarray  # (3, H, W) uint8
    mask: np.ndarray  # (H, W) uint8
    normals: np.ndarray | None  # (3, H, W) uint8
    depth: np.ndarray | None  # (H, W) uint16


class MaskedImages(torch.utils.data.Dataset[Sample]):
    """Samples in the order of their names.

    ``images``: folder or zip, of either layout above; ``masks`` may be None for the second. ``labels``: a
    label set or its name. ``mirror`` adds the mirror image of every picture behind the pictures: classes,
    camera and normals change with it. ``cache`` keeps decoded files in memory (per worker process: call
    :meth:`preload` first, or use no workers). ``extras``: any of 'normals', 'depth', 'caption'.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        masks: str | os.PathLike[str] | None,
        labels: LabelSet | str,
        resolution: int,
        mirror: bool = False,
        cache: bool = False,
        extras: Sequence[str] = (),
    ) -> None:
        self.labels = label_set(labels) if isinstance(labels, str) else labels
        self.resolution = resolution
        self.mirror = mirror
        unknown = set(extras) - set(EXTRAS)
        if unknown:
            raise ValueError(f"unknown extras {sorted(unknown)}, known are {EXTRAS}")
        self.extras = tuple(extras)

        root = Store(images)
        description = _read_description(root)
        is_set = root.has("images/")
        if masks is None and not (is_set and root.has("masks/")):
            raise UserError(
                f"{root.path} has no images/ and masks/ beside its dataset.json: "
                "give the masks' folder or zip too (--masks)"
            )
        self._stores = {
            "image": root.within("images") if is_set else root,
            "mask": root.within("masks") if masks is None else Store(masks),
            **{kind: root.within(kind) for kind in self.extras if kind != "caption"},
        }
        self._names, self._cameras = self._match(_labels(description, root), quiet=is_set)
        captions = read_captions(description, root.locate("dataset.json"))
        captions = {stem(name): text for name, text in captions.items()}
        self._captions = [captions.get(stem(name), "") for name in self._names["image"]]
        self._permutation = self.labels.mirror_permutation()
        self._cache: list[_Stored | None] | None = [None] * self.count if cache else None
        self._stored(0)  # the likeliest mistakes, a wrong size or label set, show at once

    @property
    def count(self) -> int:
        """Number of pictures on disk, without mirror images."""
        return len(self._names["image"])

    @property
    def names(self) -> list[str]:
        """File names of the pictures on disk, in order."""
        return list(self._names["image"])

    def cameras(self) -> np.ndarray:
        """(len(self), 25) float32: the cameras of all samples, read without the pictures."""
        if self.mirror:
            return np.concatenate([self._cameras, mirror_camera(self._cameras)])
        return self._cameras.copy()

    def preload(self) -> None:
        """Read everything into the cache now, so that worker processes inherit it."""
        if self._cache is None:
            raise ValueError("preload() needs cache=True")
        for index in range(self.count):
            self._stored(index)

    def __len__(self) -> int:
        return self.count * (2 if self.mirror else 1)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        picture = index % self.count
        stored = self._stored(picture)
        sample = Sample(
            image=stored.image,
            mask=stored.mask,
            camera=self._cameras[picture],
            index=index,
            normals=None if stored.normals is None else _unit_normals(stored.normals, stored.mask),
            depth=None if stored.depth is None else _metric_depth(stored.depth),
            caption=self._captions[picture] if "caption" in self.extras else None,
        )
        return sample if index < self.count else mirror_sample(sample, self._permutation)

    def _match(self, labels: dict[str, np.ndarray], quiet: bool) -> tuple[dict[str, list[str]], np.ndarray]:
        """File names per store, in parallel order, and the cameras (n, 25) float32."""
        available = {kind: by_stem(store.images()) for kind, store in self._stores.items()}
        stems = sorted(stem(name) for name in labels)
        for kind, store in self._stores.items():
            missing = [s for s in stems if s not in available[kind]]
            if missing:
                raise UserError(
                    f"{store.locate('')} lacks {len(missing)} of the {len(stems)} files that dataset.json "
                    f"names, first {missing[0]}.*: {_who_knows(kind)}"
                )
        unlabelled = len(available["image"]) - len(stems)
        if unlabelled and not quiet:  # a set that is still being rendered has pictures before their labels
            warnings.warn(
                f"{unlabelled} pictures without a camera in dataset.json are left out", stacklevel=3
            )
        cameras = {stem(name): camera for name, camera in labels.items()}
        names = {kind: [available[kind][s] for s in stems] for kind in self._stores}
        return names, np.stack([cameras[s] for s in stems])

    def _stored(self, picture: int) -> _Stored:
        cached = self._cache[picture] if self._cache is not None else None
        if cached is not None:
            return cached
        data = {}
        for kind, store in self._stores.items():
            name = self._names[kind][picture]
            data[kind] = (store.read(name), store.locate(name))
        stored = _Stored(
            image=self._rgb(*data["image"]),
            mask=decode_mask(*data["mask"], self.labels, self.resolution),
            normals=self._rgb(*data["normals"]) if "normals" in data else None,
            depth=self._grey(*data["depth"]) if "depth" in data else None,
        )
        if self._cache is not None:
            self._cache[picture] = stored
        return stored

    def _rgb(self, data: bytes, name: str) -> np.ndarray:
        image = decode_image(data, name)
        self._check_size(image.width, image.height, name)
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))

    def _grey(self, data: bytes, name: str) -> np.ndarray:
        image = decode_image(data, name)
        self._check_size(image.width, image.height, name)
        if image.mode not in ("I;16", "I;16B", "I;16L", "I"):  # Pillow's names of 16 bits and more
            raise UserError(
                f"{name} has colour mode {image.mode}: depth is a PNG of one channel of 16 bits, "
                f"{DEPTH_SCALE:g} world units per step"
            )
        return np.asarray(image).astype(np.uint16)

    def _check_size(self, width: int, height: int, name: str) -> None:
        if (width, height) != (self.resolution, self.resolution):
            raise UserError(
                f"{name} is {width}x{height}, expected {self.resolution}x{self.resolution}: "
                f"`python -m datasets.prepare --size {self.resolution}` makes such a set"
            )


def mirror_sample(sample: Sample, permutation: np.ndarray) -> Sample:
    """The mirror image: columns reversed, classes permuted, camera and normals reflected about x = 0."""
    normals = sample.normals
    if normals is not None:
        normals = normals[..., ::-1] * np.array([-1, 1, 1], dtype=np.float32)[:, None, None]
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[..., ::-1]),
        mask=permutation[sample.mask[..., ::-1]],
        camera=mirror_camera(sample.camera),
        normals=normals,
        depth=None if sample.depth is None else np.ascontiguousarray(sample.depth[..., ::-1]),
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """N samples to one batch; ``DataLoader(dataset, collate_fn=collate)``."""

    def stack(name: str) -> Tensor | None:
        values = [getattr(sample, name) for sample in samples]
        return None if values[0] is None else torch.from_numpy(np.stack(values))

    captions = tuple(sample.caption for sample in samples if sample.caption is not None)
    return Batch(
        image=stack("image"),
        mask=stack("mask"),
        camera=stack("camera"),
        index=torch.tensor([sample.index for sample in samples]),
        normals=stack("normals"),
        depth=stack("depth"),
        caption=captions or None,
    )


def infinite_sampler(n: int, rank: int = 0, world: int = 1, seed: int = 0, start: int = 0) -> Iterator[int]:
    """Endless indices into ``n`` samples: a new order every epoch, dealt to ``world`` processes in turn.

    Together the processes see every sample once per epoch, and a step of all of them sees the same samples as
    a step of one with the whole batch. ``start`` is the number of samples that all processes have drawn
    already: a resumed run goes on where it stopped.
    """
    if n < 1:
        raise ValueError("there are no samples to draw from")
    position, epoch, order = start + rank, -1, np.empty(0, dtype=np.int64)
    while True:
        if position // n != epoch:
            epoch = position // n
            order = np.random.default_rng([seed, epoch]).permutation(n)
        yield int(order[position % n])
        position += world


def _read_description(root: Store) -> dict[str, Any]:
    if not root.has("dataset.json"):
        deeper = [name for name in root.names() if name.endswith("/dataset.json")]
        if deeper and root.is_zip:
            raise UserError(
                f"{root.path} has its dataset.json in {deeper[0]}: zip the folder's content, not it"
            )
        if deeper:
            raise UserError(
                f"{root.path} has its dataset.json further down: give {root.locate(deeper[0])[:-13]}"
            )
        raise UserError(
            f"{root.path} has no dataset.json with cameras: `python -m datasets.prepare` makes a set with one"
        )
    description = parse_json(root.read("dataset.json"), root.locate("dataset.json"))
    labels = description.get("labels") if isinstance(description, dict) else None
    if not isinstance(labels, list) or not labels:
        where = root.locate("dataset.json")
        raise UserError(f'{where} has no cameras: it needs {{"labels": [["name.png", [25 floats]], ...]}}')
    return description


def _labels(description: dict[str, Any], root: Store) -> dict[str, np.ndarray]:
    """Cameras (25,) float32 by file name."""
    where = root.locate("dataset.json")
    labels = {}
    for number, entry in enumerate(description["labels"]):
        try:
            name, values = entry
            camera = as_label(values)
        except (TypeError, ValueError) as error:
            raise UserError(f'{where}: label {number} is not ["name.png", [25 floats]]') from error
        if not is_file_name(name):
            raise UserError(
                f"{where}: label {number} is for {name!r}, which is not the name of a picture: "
                "write its name there, or delete the label"
            )
        if camera.shape != (SIZE,) or not np.isfinite(camera).all():
            raise UserError(f"{where}: the camera of {name} is not {SIZE} finite numbers")
        labels[name] = camera
    wrong = np.flatnonzero(misshapen(np.stack(list(labels.values()))))
    if len(wrong):
        name, camera = list(labels.items())[wrong[0]]
        raise UserError(
            f"{where}: {name}: {camera_problems(camera)[0]} ({len(wrong)} of {len(labels)} cameras are "
            "wrong): `python -m datasets.prepare` lists every problem of a set"
        )
    return labels


def _who_knows(kind: str) -> str:
    """What to do about missing files of a kind."""
    if kind in ("normals", "depth"):
        return f"only rendered portraits (`python -m datasets.portraits`) have {kind}"
    return "`python -m datasets.prepare` lists every problem of a set"


def _unit_normals(stored: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Bytes (3, H, W) to vectors in [-1, 1], zero where the mask is background."""
    normals = stored.astype(np.float32) / 127.5 - 1.0
    return normals * (mask != 0)


DEPTH_SCALE = 1e-4  # world units per step of a 16-bit depth PNG: 0 to 6.55


def _metric_depth(stored: np.ndarray) -> np.ndarray:
    return (stored.astype(np.float32) * DEPTH_SCALE)[None]
