"""Super-resolution: against the published blocks; resizing and which w it uses."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from training.networks.superresolution import SuperResolution, SuperResolutionBlock, resize


@pytest.mark.parametrize(("name", "channels"), [("sr_block_rgb", 3), ("sr_block_semantic", 6)])
def test_block_equals_the_published_one(parity, name, channels):
    fixture = {key: torch.from_numpy(value) for key, value in parity(name).items()}
    block = SuperResolutionBlock(8, 16, 32, resolution=32, img_channels=channels)
    block.load_state_dict({k.removeprefix("param/"): v for k, v in fixture.items() if k.startswith("param/")})
    x, img = block(fixture["x"], fixture["img"], fixture["ws"])
    torch.testing.assert_close(x, fixture["out_x"], rtol=0, atol=1e-4)
    torch.testing.assert_close(img, fixture["out_img"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("prefix", "channels"), [("superresolution.", 3), ("superresolution_semantic.", 19)])
def test_names_and_shapes_are_the_published_ones(parity_path, prefix, channels):
    keys = dict(json.loads(parity_path("official_generator_keys_face.json").read_text()))
    with torch.device("meta"):
        network = SuperResolution(32, channels, 512, input_resolution=128, channels=(256, 128))
    expected = {k.removeprefix(prefix): tuple(v) for k, v in keys.items() if k.startswith(prefix)}
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == expected


def small():
    return SuperResolution(4, 3, 8, input_resolution=8, channels=(6, 5))


def test_every_block_doubles_and_uses_the_last_w():
    network, ws = small(), torch.randn(2, 7, 8)
    rgb, features = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
    image = network(rgb, features, ws)
    assert image.shape == (2, 3, 32, 32)
    other = torch.cat([torch.randn(2, 6, 8), ws[:, -1:]], dim=1)
    assert torch.equal(network(rgb, features, other), image)


def test_raw_pictures_of_another_size_are_resized_with_antialiasing():
    network, ws = small(), torch.randn(1, 1, 8)
    rgb, features = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 16, 16)
    halved = [F.interpolate(x, size=(8, 8), mode="bilinear", antialias=True) for x in (rgb, features)]
    assert torch.equal(network(rgb, features, ws), network(*halved, ws))


def test_resize_leaves_a_fitting_picture_alone():
    x = torch.randn(1, 2, 8, 8)
    assert resize(x, 8) is x
