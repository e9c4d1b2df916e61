"""The bundled pictures: a whole set in small, as its cameras and the sampled attributes say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from datasets.labels import label_set
from datasets.masked_images import EXTRAS, Batch, MaskedImages, collate
from datasets.portraits import BUNDLED
from datasets.portraits.sampling import sample
from training.rendering.cameras import orbit_camera, project
from training.rendering.rays import camera_rays

LABELS = label_set("ffhq-mask")
RECORDS = [json.loads(path.read_text()) for path in sorted(BUNDLED.glob("attributes/*/*.json"))]


@pytest.fixture(scope="module")
def batch() -> Batch:
    """All of it."""
    pictures = MaskedImages(BUNDLED, None, LABELS, 64, extras=EXTRAS)
    return collate([pictures[i] for i in range(len(pictures))])


@pytest.fixture(scope="module")
def points(batch: Batch) -> torch.Tensor:
    """(64, 64, 64, 3): where the rays of the renderer of training/ end, at the stored depth."""
    origins, directions = camera_rays(batch.camera, 64)
    return (origins + batch.depth.reshape(64, -1, 1) * directions).reshape(64, 64, 64, 3)


def test_it_is_whole_and_small(batch: Batch):
    assert len(batch) == len(RECORDS) == 64
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert len(files) == 5 * 64 + 2  # and dataset.json, settings.json
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert all(batch.caption)
    assert set(batch.mask.unique().tolist()) == set(range(LABELS.count))


def test_background_has_no_surface(batch: Batch):
    solid = batch.mask > 0
    assert ((batch.depth[:, 0] > 0) == solid).all()
    length = batch.normals.norm(dim=1)
    assert (length[~solid] == 0).all()
    assert (length[solid] - 1).abs().max() < 0.01  # a byte per component: sqrt(3) / 255
    assert 2.25 < batch.depth[:, 0][solid].min() and batch.depth.max() < 3.3  # the rays' ends


@pytest.mark.parametrize("record", RECORDS[:16], ids=lambda record: str(record["index"]))
def test_code_samples_the_same_attributes(record: dict):
    again = json.loads(json.dumps(sample(0, record["index"]).to_json()))
    record = {key: value for key, value in record.items() if key != "camera"}
    assert [*again] == [*record]
    for key, value in record.items():  # the last digits of normal and beta draws are the C library's
        assert again[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, dict | float) else value)


def test_labels_are_the_orbit_cameras_of_training(batch: Batch):
    yaw, pitch = torch.tensor([[record["yaw"], record["pitch"]] for record in RECORDS]).T
    expected = orbit_camera(yaw, pitch, pivot=LABELS.pivot)
    assert (batch.camera - expected).abs().max() < 2e-6  # six digits are stored, of float32 up to 4.26


def test_eyes_are_where_every_head_has_them(points: torch.Tensor, batch: Batch):
    """Cameras, rays and depth agree: unprojected, both eyes' middle is the same point of the world."""
    found = 0
    for cloud, mask in zip(points, batch.mask, strict=True):
        sides = [cloud[mask == LABELS.index(f"{side} eye")] for side in ("left", "right")]
        if min(map(len, sides)) < 6:  # hidden by hair, lenses, or the nose
            continue
        left, right = (side.mean(0) for side in sides)
        middle = (left + right) / 2
        assert left[0] < middle[0] < right[0]
        # scene.EYES_AT is the eyeballs' middle; what shows is their front, and unevenly in oblique views
        assert (middle - torch.tensor([0.0, 0.012, 0.225])).abs().max() < 0.04
        found += 1
    assert found > 32


def test_points_project_into_their_pixels(points: torch.Tensor, batch: Batch):
    position, _ = project(batch.camera, points.reshape(64, -1, 3))
    centre = (torch.arange(64) + 0.5) / 64
    expected = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), dim=-1).reshape(-1, 2)
    solid = (batch.mask > 0).flatten(1)
    assert (position - expected)[solid].abs().max() < 1e-5  # float32 over distances of 2.7


def test_normals_stand_on_the_surface_of_the_depth(points: torch.Tensor, batch: Batch):
    """View-space normals against the cross product of neighbouring points, where skin is smooth."""
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    facets = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)
    to_view = batch.camera[:, :16].reshape(64, 4, 4)[:, :3, :3] * torch.tensor([1.0, -1.0, -1.0])
    expected = torch.einsum("nhwi,nij->nhwj", facets, to_view)
    skin = (batch.mask == LABELS.index("skin")).float()
    inside = (torch.nn.functional.avg_pool2d(skin[:, None], 3, stride=1)[:, 0] == 1).numpy()
    cosine = (expected * batch.normals.permute(0, 2, 3, 1)[:, 1:-1, 1:-1]).sum(-1).numpy()[inside]
    assert np.median(cosine) > 0.97 and np.mean(cosine > 0.8) > 0.9
