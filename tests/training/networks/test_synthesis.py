"""The backbone: against the published one, and its names and shapes at the published size."""

from __future__ import annotations

import json

import pytest
import torch

from training.networks.mapping import MappingNetwork
from training.networks.synthesis import PlaneSynthesis


def test_planes_equal_the_published_ones(parity):
    fixture = {key: torch.from_numpy(value) for key, value in parity("backbone").items()}
    network = PlaneSynthesis(32, resolution=32, plane_channels_total=24, channel_base=512, channel_max=32)
    network.load_state_dict(
        {k.removeprefix("param/"): v for k, v in fixture.items() if k.startswith("param/")}
    )
    assert network.num_ws == 8
    texture, shape = network(fixture["ws"], noise_mode="const")
    torch.testing.assert_close(texture, fixture["planes_texture"], rtol=0, atol=1e-4)
    torch.testing.assert_close(shape, fixture["planes_shape"], rtol=0, atol=1e-4)


def test_names_and_shapes_are_the_published_ones(parity_path):
    keys = dict(json.loads(parity_path("official_generator_keys_face.json").read_text()))
    with torch.device("meta"):  # shapes only: the real one has 30 million parameters
        synthesis = PlaneSynthesis(512, resolution=256, plane_channels_total=96)
        mapping = MappingNetwork(512, 25, 512, num_ws=synthesis.num_ws)
    for prefix, network in (("backbone.synthesis.", synthesis), ("backbone.mapping.", mapping)):
        expected = {k.removeprefix(prefix): tuple(v) for k, v in keys.items() if k.startswith(prefix)}
        assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == expected


def test_every_w_reaches_the_planes_and_neighbouring_blocks_share_one():
    network = PlaneSynthesis(8, resolution=16, plane_channels_total=6, channel_base=64, channel_max=8)
    assert network.num_ws == 6  # conv1 | conv0 conv1 | conv0 conv1 | output
    ws = torch.randn(1, 6, 8, requires_grad=True)
    for plane in network(ws):
        assert plane.shape == (1, 6, 16, 16)
        gradient = torch.autograd.grad(plane.square().sum(), ws, retain_graph=True)[0]
        assert (gradient.norm(dim=-1) > 0).all()


def test_resolution_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="48"):
        PlaneSynthesis(8, resolution=48, plane_channels_total=6)


@pytest.mark.cuda
def test_half_precision_is_close():
    network = PlaneSynthesis(32, 32, 24, channel_base=512, channel_max=32, fp16_blocks=2).cuda()
    ws = torch.randn(2, network.num_ws, 32, device="cuda")
    half = network(ws)[0]
    for block in network.children():
        block.use_fp16 = False
    full = network(ws)[0]
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.05 * full.abs().max()  # 11 bits through four layers
