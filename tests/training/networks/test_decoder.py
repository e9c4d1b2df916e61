import math

import pytest
import torch

from dnnlib.errors import UserError
from training.networks.decoder import TriplaneDecoder


def published_decoder(arrays) -> TriplaneDecoder:
    params = {name[6:]: torch.as_tensor(value) for name, value in arrays.items() if name.startswith("param/")}
    decoder = TriplaneDecoder(channels=8, width=64, parts=6, part_width=64, feature_channels=8)
    decoder.load_published(params)
    return decoder


def test_agrees_with_the_published_decoder(parity):
    arrays = parity("triplane_decoder")
    decoder = published_decoder(arrays)
    texture = torch.as_tensor(arrays["features_texture"]).mean(1)
    shape = torch.as_tensor(arrays["features_shape"]).mean(1)
    got = {
        "rgb": decoder.colour(texture),
        "sdf": decoder.sdf(shape),
        "sigma": decoder.density(decoder.sdf(shape)),
        "part_sdf": decoder.part_sdf(shape),
        "part_sigma": decoder.density(decoder.part_sdf(shape)),
    }
    for name, value in got.items():
        torch.testing.assert_close(value, torch.as_tensor(arrays[name]), atol=1e-4, rtol=1e-4)


def test_published_names_are_those_of_the_official_models(parity_path):
    import json

    with open(parity_path("official_generator_keys_face.json")) as file:
        official = {
            k.removeprefix("decoder."): v for k, v in json.load(file).items() if k.startswith("decoder.")
        }
    decoder = TriplaneDecoder(channels=32, width=64, parts=19, part_width=64, feature_channels=32)
    assert {name: list(value.shape) for name, value in decoder.published_names().items()} == official


def test_published_round_trip_and_errors():
    source = TriplaneDecoder(channels=3, width=5, parts=2, part_width=4, feature_channels=3)
    target = TriplaneDecoder(channels=3, width=5, parts=2, part_width=4, feature_channels=3)
    named = source.published_names()
    target.load_published(named)
    for (name, a), b in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(UserError, match="lack net_main_shp.0.bias"):
        target.load_published({k: v for k, v in named.items() if k != "net_main_shp.0.bias"})
    with pytest.raises(UserError, match="unknown net_main_shp_bbbb_2.0.bias"):
        target.load_published({**named, "net_main_shp_bbbb_2.0.bias": torch.zeros(4)})
    with pytest.raises(UserError, match=r"net_tex.0.bias is \(6,\), expected \(5,\)"):
        target.load_published({**named, "net_tex.0.bias": torch.zeros(6)})


def test_density_is_a_sigmoid_step_of_width_beta():
    decoder = TriplaneDecoder(channels=2, width=2, parts=1, part_width=2, feature_channels=3, beta=0.1)
    b = 0.1 + 1e-4
    got = decoder.density(torch.tensor([0.0, b, -100.0, 100.0]))
    want = torch.tensor([0.5 / b, 1 / (1 + math.e) / b, 1 / b, 0.0])
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_beta_is_a_buffer_unless_learned():
    sizes = dict(channels=2, width=2, parts=1, part_width=2, feature_channels=3)
    assert "sigmoid_beta" not in dict(TriplaneDecoder(**sizes).named_parameters())
    learned = TriplaneDecoder(**sizes, learn_beta=True)
    learned.density(torch.zeros(1)).sum().backward()
    assert learned.sigmoid_beta.grad.abs() > 0


def test_colour_stays_in_its_range():
    decoder = TriplaneDecoder(channels=2, width=4, parts=1, part_width=2, feature_channels=3)
    colour = decoder.colour(torch.randn(1000, 2) * 100)
    assert colour.min() >= -0.001 and colour.max() <= 1.001
