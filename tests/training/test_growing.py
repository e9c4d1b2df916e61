"""A generator that begins as a smaller one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.masked_images import MaskedImages, collate
from dnnlib import config
from tests.tiny_generator import TINY_GENERATOR
from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from training.adversarial import AdversarialPhase
from training.config import TrainConfig
from training.curves import Curves
from training.generator import Generator
from training.growing import grow
from training.networks.layers import FIR_TAPS
from training.phases import Context, build_models
from training.scene import camera_at, latent_of_seed
from training.updates import FiniteGuard

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
LARGE = replace(TINY_GENERATOR, resolution=32, plane_resolution=16, raw_resolution=16, sr_resolution=16)


@pytest.fixture
def small() -> Generator:
    """Its noise and its output layers' biases are not those that a generator begins with."""
    generator = Generator(TINY_GENERATOR)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("noise_strength", "bias")):
                parameter.normal_()
    return generator


def test_planes_are_the_smaller_ones_up_sampled(small: Generator):
    large = Generator(LARGE)
    grow(large, small.state_dict())
    z = torch.randn(2, TINY_GENERATOR.z_dim)
    camera = camera_at(small, 0.2, 0.1).expand(2, -1)
    coarse, fine = (each.planes(each.map(z, camera)) for each in (small, large))
    for before, after in ((coarse.texture, fine.texture), (coarse.shape, fine.shape)):
        wanted = upsample2d(before.flatten(1, 2), setup_filter(FIR_TAPS)).view_as(after)
        torch.testing.assert_close(after, wanted)


def test_bundled_generator_shows_the_same_person_at_128_pixels():
    small = Generator.load(ROOT / "pretrained/portraits-64.safetensors")
    large = Generator(config.load(TrainConfig, ROOT / "configs/portraits-128.yaml").generator)
    grow(large, small.state_dict())
    camera, z = camera_at(small, 0.2, 0.1), latent_of_seed(small, 3)
    with torch.no_grad():
        before = small.synthesise(small.map(z, camera), camera, raw_resolution=64, deterministic=True)
        after = large.synthesise(large.map(z, camera), camera, deterministic=True)
    assert after.image.shape[-1] == 128
    # bilinear between up-sampled texels is a little smoother than between the texels
    assert (before.depth - after.depth).abs().mean() < 0.02 * before.depth.std()
    assert (before.image_raw - after.image_raw).abs().mean() < 0.02 * before.image_raw.std()


def test_new_block_learns_from_the_first_step_on(small: Generator):
    large = Generator(LARGE)
    grow(large, small.state_dict())
    planes = large.planes(torch.randn(1, large.synthesis.num_ws, LARGE.w_dim))
    (planes.texture.square().sum() + planes.shape.square().sum()).backward()
    block = large.synthesis.b16
    assert block.torgb_tex.weight.grad.abs().max() > 0
    assert block.torgb_shp.weight.grad.abs().max() > 0


def test_generator_of_the_same_size_is_copied_whole(small: Generator):
    other = Generator(TINY_GENERATOR)
    grow(other, small.state_dict())
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize(
    "change",
    [
        {"w_dim": 16},
        {"plane_channels": 8},
        {"labels": "catmask-hq"},
        {"sr_channels": (8, 4), "resolution": 64},
    ],
)
def test_what_is_no_continuation_is_refused(small: Generator, change: dict):
    with pytest.raises(RuntimeError):
        grow(Generator(replace(LARGE, **change)), small.state_dict())


def test_smaller_planes_are_refused(small: Generator):
    with pytest.raises(RuntimeError):
        grow(small, Generator(LARGE).state_dict())


def test_only_what_is_new_learns_at_first(tiny, tiny_set):
    config = tiny("schedule.grow_kimg=0.008", "batch=4", "data.mirror=false")
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=())
    batch = collate([data[i] for i in range(4)])
    phase = AdversarialPhase(context)
    generator = context.models.generator

    def changed_by_step(images: int) -> set[str]:
        before = {name: parameter.clone() for name, parameter in generator.named_parameters()}
        phase.step(batch, images)
        assert all(parameter.requires_grad for parameter in generator.parameters())
        return {
            name
            for name, parameter in generator.named_parameters()
            if not torch.equal(before[name], parameter)
        }

    for images in (0, 4):  # the first with the density's regularisation
        changed = changed_by_step(images)
        assert changed
        assert all(name.startswith(("synthesis.b16.", "superresolution")) for name in changed)
        assert any(name.startswith("synthesis.b16.torgb_shp") for name in changed)
        assert any(name.startswith("superresolution_semantic.") for name in changed)
    assert {"mapping.fc0.weight", "synthesis.b4.const", "decoder.texture.weight1"} <= changed_by_step(8)
