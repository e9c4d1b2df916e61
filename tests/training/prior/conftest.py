"""Toy portraits and tiny configurations: everything here runs in seconds on one core."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.labels import label_set, write_mask
from dnnlib import config as config_files
from training.prior.config import PriorConfig

TINY = {
    "resolution": 16,
    "autoencoder": {"channels": [8, 8, 16], "groups": 4, "optimiser": {"kimg": 0.016, "batch": 4}},
    "text": {"width": 16, "layers": 1, "heads": 2, "length": 24},
    "diffusion": {
        "channels": [8, 16],
        "attention": [False, True],
        "heads": 2,
        "groups": 4,
        "condition_channels": [4, 4, 8],
        "optimiser": {"kimg": 0.016, "batch": 4, "warmup": 2},
    },
    "workers": 0,
    "log_kimg": 0.004,
    "snapshot_kimg": 0.008,
    "grid_masks": 2,
    "grid_steps": 2,
}

HAIR = {"black": (20, 20, 20), "blond": (220, 190, 120), "red": (150, 60, 30)}


def write_toy_set(folder: Path, count: int, size: int) -> Path:
    """Heads as ellipses under a cap of coloured hair, in the layout of `python -m datasets.portraits`."""
    labels = label_set("ffhq-mask")
    skin, hair = labels.index("skin"), labels.index("hair")
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    dataset: dict = {"labels": [], "captions": {}}
    for kind in ("images", "masks", "normals"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        name = f"{index:05d}.png"
        width, tall = rng.uniform(0.45, 0.65), rng.uniform(0.65, 0.85)
        inside = (x / width) ** 2 + (y / tall) ** 2 < 1
        mask = np.where(inside, np.where(y < -0.25, hair, skin), 0).astype(np.uint8)
        word = list(HAIR)[index % len(HAIR)]
        image = np.full((size, size, 3), rng.integers(60, 200, 3), dtype=np.uint8)
        image[mask == skin] = (200, 160, 130)
        image[mask == hair] = HAIR[word]
        depth = np.sqrt(np.clip(1 - (x / width) ** 2 - (y / tall) ** 2, 0.01, 1))
        normal = np.stack([x / width, -y / tall, depth], axis=-1)
        normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True) * inside[..., None]
        Image.fromarray(image).save(folder / "images" / name)
        write_mask(folder / "masks" / name, mask, labels)
        Image.fromarray(((normal + 1) * 127.5).round().astype(np.uint8)).save(folder / "normals" / name)
        camera = [*np.diag([1.0, -1, -1, 1]).ravel(), 4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1]
        dataset["labels"].append([name, [float(v) for v in camera]])
        dataset["captions"][name] = f"a portrait of a middle-aged woman with {word} hair"
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


@pytest.fixture(scope="session")
def toy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six toy portraits of 16 x 16."""
    return write_toy_set(tmp_path_factory.mktemp("toy"), count=6, size=16)


@pytest.fixture(scope="session")
def tiny_config(toy_set: Path) -> PriorConfig:
    """A prior of a few thousand weights on the toy portraits."""
    return config_files.load(PriorConfig, {**TINY, "data": str(toy_set)})
