"""Published generators: the fixture's pictures, every official tensor's place, and EG3D's plain kind."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dnnlib import config as config_files
from dnnlib.errors import UserError
from edit import main as edit_main
from generate import main as generate_main
from tests.published_files import as_module, dump, tree, write_eg3d, write_mate3d, write_tensors
from torch_utils.legacy.__main__ import main
from training.config import TrainConfig
from training.generator import Generator, Want
from training.published import convert, load_published, published_tensors

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


def eg3d_values(tensors: dict, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Density and colour as EG3D's decoder defines them, of mean plane features (..., C)."""
    weights = {name.removeprefix("decoder.net."): t for name, t in tensors.items() if "decoder" in name}
    hidden = features @ weights["0.weight"].T / features.shape[-1] ** 0.5 + weights["0.bias"]
    hidden = torch.nn.functional.softplus(hidden)
    out = hidden @ weights["2.weight"].T / hidden.shape[-1] ** 0.5 + weights["2.bias"]
    return out[..., :1], torch.sigmoid(out[..., 1:]) * 1.002 - 0.001


def test_a_plain_eg3d_generator_has_its_density_and_colour(tmp_path: Path) -> None:
    tensors = write_eg3d(tmp_path / "eg3d.pkl", c_scale=0.5)
    generator = load_published(tmp_path / "eg3d.pkl")
    assert generator.parts == 0 and generator.config.density == "direct"
    embed = tensors["backbone.mapping.embed.weight"]
    torch.testing.assert_close(generator.mapping.embed.weight, embed * 0.5)
    with torch.no_grad():
        planes = generator.planes(generator.map(torch.randn(1, 6), torch.randn(1, 25)))
        field = generator.field(planes)
        points = torch.rand(1, 50, 3) - 0.5
        values = field.query(points, colour=True, parts=False)
        density, colour = eg3d_values(tensors, field.texture_features(points))
    assert torch.equal(planes.texture, planes.shape)
    torch.testing.assert_close(values.density, density, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values.colour, colour)
    torch.testing.assert_close(values.sdf, 10 - density, atol=1e-5, rtol=1e-5)  # the surface at EG3D's level


def test_a_plain_eg3d_generator_renders_all_but_masks(tmp_path: Path) -> None:
    write_eg3d(tmp_path / "eg3d.pkl")
    run = ["--network", str(tmp_path / "eg3d.pkl"), "--seeds", "0,1", "--mesh", "--device", "cpu"]
    result = CliRunner().invoke(generate_main, [*run, "--outdir", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "no masks" in result.output
    kinds = (
        "seed000{}.png",
        "seed000{}_normals.png",
        "seed000{}_depth.png",
        "seed000{}.ply",
        "seed000{}.glb",
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "grid.png",
        *(kind.format(seed) for kind in kinds for seed in (0, 1)),
    }
    for options in (["--export-mask", "m.png"], ["--mask", "m.png", "--prompt", "a cat"]):
        refused = CliRunner().invoke(edit_main, [*run[:2], "--device", "cpu", *options])
        assert refused.exit_code == 2 and len(refused.output.strip().splitlines()) == 1
        assert "it has no masks" in refused.output


def test_a_plain_generator_survives_our_own_format(tmp_path: Path) -> None:
    write_eg3d(tmp_path / "eg3d.pkl")
    generator = convert(tmp_path / "eg3d.pkl", tmp_path / "eg3d.safetensors")
    again = Generator.load(tmp_path / "eg3d.safetensors")
    assert again.config == generator.config
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in generator.state_dict().items())


def changed(tensors: dict, **changes) -> dict:
    return {name: t for name, t in {**tensors, **changes}.items() if t is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder.net_tex.0.bias", None, "lacks 1 tensors of such a generator, first decoder.net_tex.0.bias"),
        ("decoder.surplus", torch.ones(1), "1 tensors that no place is known for, first 'decoder.surplus'"),
        ("decoder.net_tex.0.bias", torch.ones(9), r"decoder.net_tex.0.bias is \(9,\), expected \(8,\)"),
        ("decoder.net_tex.0.bias", torch.full((8,), torch.nan), "not finite"),
        ("decoder.net_tex.0.bias", torch.ones(8, dtype=torch.int64), "int64"),
        ("backbone.mapping.embed.weight", None, "neither a MaTe3D nor an EG3D"),
        ("decoder.net_main_shp_bbbb_6.0.weight", torch.ones(4, 4), "7 parts, and no label set has as many"),
        ("backbone.synthesis.b4.conv1.weight", torch.ones(0, 1 << 40), "unexpected shape"),
    ],
)
def test_tensors_that_do_not_fit(name: str, value, message: str, tmp_path: Path) -> None:
    generator = write_mate3d(tmp_path / "whole.pkl")
    write_tensors(tmp_path / "m.pkl", changed(published_tensors(generator), **{name: value}))
    with pytest.raises(UserError, match=message) as error:
        load_published(tmp_path / "m.pkl")
    assert "\n" not in str(error.value) and "m.pkl" in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("white_back", True, "renders with white_back True; only False"),
        ("superresolution_noise_mode", "random", "superresolution_noise_mode"),
        ("ray_start", "auto", "does not say its ray_start as a number"),
        ("depth_resolution", 10**9, "sensible size"),
        ("avg_camera_pivot", [0, 0], "point its cameras look at"),
        ("c_scale", "much", "sensible size"),
    ],
)
def test_settings_that_are_not_implemented(setting: str, value, message: str, tmp_path: Path) -> None:
    write_mate3d(tmp_path / "m.pkl", **{setting: value})
    with pytest.raises(UserError, match=message) as error:
        load_published(tmp_path / "m.pkl")
    assert "\n" not in str(error.value)


def test_the_average_is_preferred(tmp_path: Path) -> None:
    """Of G and G_ema; other networks in the file, discriminators say, are left alone."""
    modules = {"D": tree({"weight": torch.ones(1)}), "augment_pipe": None}
    (tmp_path / "none.pkl").write_bytes(dump(modules))
    with pytest.raises(UserError, match="holds no generator: expected G_ema in it and found 'D'"):
        load_published(tmp_path / "none.pkl")
    wanted = write_mate3d(tmp_path / "average.pkl", seed=1)
    other = write_mate3d(tmp_path / "other.pkl", seed=2)
    for name, generator in (("G", other), ("G_ema", wanted)):
        modules[name] = as_module(published_tensors(generator))
    (tmp_path / "both.pkl").write_bytes(dump(modules))
    assert torch.equal(load_published(tmp_path / "both.pkl").mapping.w_avg, wanted.mapping.w_avg)
