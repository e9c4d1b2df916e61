"""A small picture set with everything that a set can hold."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.cameras import orbit_camera
from datasets.labels import label_set, write_mask

SIZE = 16


@dataclass(frozen=True)
class Made:
    """Where a set was written, and what was put in."""

    path: Path
    names: list[str]
    images: np.ndarray  # (n, SIZE, SIZE, 3) uint8
    masks: np.ndarray  # (n, SIZE, SIZE) uint8
    cameras: np.ndarray  # (n, 25) float32

    def zipped(self, folder: str = "") -> Path:
        """A zip of the set, or of one folder of it, uncompressed."""
        source = self.path / folder
        target = self.path.with_name(f"{self.path.name}-{folder or 'all'}.zip")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(source.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(source).as_posix())
        return target


def make_set(path: Path, count: int = 6, seed: int = 0) -> Made:
    """Write a set laid out as the synthetic portraits: images/, masks/, normals/, depth/, dataset.json."""
    rng = np.random.default_rng(seed)
    labels = label_set("ffhq-mask")
    names = [f"0000{i % 2}/img{i:04d}.png" for i in range(count)]
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    masks = rng.integers(0, labels.count, (count, SIZE, SIZE), dtype=np.uint8)
    cameras = np.stack([orbit_camera(0.1 * i - 0.2, 0.05 * i, labels.pivot) for i in range(count)])
    for kind in ("images", "masks", "normals", "depth"):
        for folder in ("00000", "00001"):
            (path / kind / folder).mkdir(parents=True)
    for i, name in enumerate(names):
        Image.fromarray(images[i]).save(path / "images" / name)
        write_mask(path / "masks" / name, masks[i], labels)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path / "normals" / name)
        depth = rng.integers(22500, 33000, (SIZE, SIZE)).astype(np.uint16)
        Image.fromarray(depth * (masks[i] > 0)).save(path / "depth" / name)
    entries = [[name, camera.tolist()] for name, camera in zip(names, cameras, strict=True)]
    captions = {name: f"portrait {i}" for i, name in enumerate(names)}
    (path / "dataset.json").write_text(json.dumps({"labels": entries, "captions": captions}))
    order = np.argsort(names)  # samples come in the order of their names
    return Made(path, sorted(names), images[order], masks[order], cameras[order])


@pytest.fixture
def made(tmp_path) -> Made:
    """A set of six pictures."""
    return make_set(tmp_path / "set")
