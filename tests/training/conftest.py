"""A training run in miniature: a portrait set of flat discs and a configuration to match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.cameras import orbit_camera
from dnnlib import config as config_files
from tests.tiny_run import TINY_RUN
from training.config import TrainConfig


def write_set(folder: Path, size: int, count: int) -> Path:
    """A portrait set of discs on grey: classes, normals and depth of a sphere's near side."""
    source = np.random.default_rng(0)
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    labels = []
    for kind in ("images", "masks", "normals", "depth"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"{number:04d}.png"
        radius = source.uniform(0.4, 0.8)
        height = np.sqrt(np.maximum(0, radius**2 - rows**2 - columns**2))
        inside = height > 0
        image = np.where(inside[..., None], source.integers(0, 255, 3), 128).astype(np.uint8)
        mask = np.where(inside, np.where(rows < 0, 1, 2), 0).astype(np.uint8)
        normals = np.stack([columns, -rows, height], -1) / radius
        depth = np.where(inside, (2.7 - 0.3 * height) * 1e4, 0).astype(np.uint16)
        Image.fromarray(image).save(folder / "images" / name)
        Image.fromarray(mask).save(folder / "masks" / name)
        Image.fromarray(((normals * 0.5 + 0.5) * 255).clip(0, 255).astype(np.uint8)).save(
            folder / "normals" / name
        )
        Image.fromarray(depth).save(folder / "depth" / name)
        camera = orbit_camera(source.normal() * 0.3, source.normal() * 0.1, pivot=(0.0, 0.0, 0.2))
        labels.append([name, [float(x) for x in camera]])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of 16 x 16."""
    return write_set(tmp_path_factory.mktemp("set"), 16, 6)


@pytest.fixture
def tiny(tiny_set: Path):
    """``tiny('kimg=0.1', ...)`` -> a TrainConfig that trains on the tiny set in seconds."""

    def make(*overrides: str) -> TrainConfig:
        return config_files.load(TrainConfig, TINY_RUN, [f"data.images={tiny_set}", *overrides])

    return make
