"""Published generators: the fixture's pictures, every official tensor's place, and EG3D's plain kind."""

from __future__ import annotations

import json
import time

import pytest
import torch
from click.testing import CliRunner

from dnnlib import config as config_files
from torch_utils.legacy.__main__ import main
from training.config import TrainConfig
from training.generator import Generator, Want
from training.published import load_published, published_tensors

TINY = "legacy_cat_tiny.pkl"


@pytest.fixture(scope="module")
def cat(tmp_path_factory, request) -> Generator:
    """The fixture, converted on the command line and read again."""
    path = request.getfixturevalue("parity_path")(TINY)
    target = tmp_path_factory.mktemp("converted") / "cat.safetensors"
    result = CliRunner().invoke(main, ["convert", str(path), str(target)])
    assert result.exit_code == 0, result.output
    assert "6 classes (catmask-hq)" in result.output and "12 + 12 samples from 2.25 to 3.3" in result.output
    return Generator.load(target)


def test_loading_is_quick_and_runs_nothing(parity_path) -> None:
    """The source text embedded in the fixture ends the program: still being here is the proof."""
    started = time.process_time()
    load_published(parity_path(TINY))
    assert time.process_time() - started < 5


def test_the_configuration_is_read_from_the_file(cat) -> None:
    config = cat.config
    assert (config.labels, config.parts) == ("catmask-hq", 6)
    assert (config.resolution, config.raw_resolution) == (512, 32)
    assert (config.samples_coarse, config.samples_fine) == (12, 12)
    assert (config.channel_base, config.channel_max) == (1024, 16)
    assert (config.plane_projection, config.marching, config.density) == ("published", "published", "sdf")
    camera = config.camera
    assert (camera.near, camera.far, camera.radius, camera.box_warp) == (2.25, 3.3, 2.7, 1)
    assert camera.pivot == (0, 0, -0.06)


def test_its_pictures_are_the_published_ones(cat, parity) -> None:
    """1e-4 is what the fixtures promise; pictures were computed in float32, some stored in half precision."""
    expected = {name: torch.as_tensor(value) for name, value in parity("legacy_cat_tiny_expected").items()}
    camera = expected["c"]
    with torch.no_grad():
        ws = cat.map(expected["z"], camera, truncation_psi=float(expected["truncation_psi"]))
        raw = cat.synthesise(ws, camera, want=Want(image=False), deterministic=True)
        final = cat.synthesise(ws[:1], camera[:1], deterministic=True)  # one of two: 512 x 512 takes seconds
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(ws, expected["ws"], **close)
    torch.testing.assert_close(raw.image_raw, expected["image_raw"], **close)
    torch.testing.assert_close(raw.mask_raw, expected["semantic_raw"], **close)
    torch.testing.assert_close(raw.depth, expected["image_depth"], **close)
    torch.testing.assert_close(final.image, expected["image"][:1], atol=2e-3, rtol=0)
    torch.testing.assert_close(final.mask[..., ::4, ::4], expected["semantic"][:1], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("cfg", "kind"), [("ffhq-mask", "face"), ("catmask-hq", "cat")])
def test_every_official_tensor_has_its_place(cfg: str, kind: str, parity_path, root) -> None:
    official = json.loads(parity_path(f"official_generator_keys_{kind}.json").read_text())
    config = config_files.load(TrainConfig, root / "configs" / f"{cfg}.yaml").generator
    with torch.device("meta"):  # shapes without memory
        generator = Generator(config)
    assert all(tensor.is_meta for tensor in generator.state_dict().values())
    places = published_tensors(generator)
    assert {name: list(tensor.shape) for name, tensor in places.items()} == official
    assert sum(t.numel() for t in places.values()) == sum(t.numel() for t in generator.state_dict().values())
