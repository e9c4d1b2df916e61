"""invert.py from command line to files, on a tiny random generator."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from datasets.labels import label_set, read_mask, write_mask
from edit import main as edit
from invert import main
from tests.tiny_generator import TINY_GENERATOR
from training.editing.inversion import Target, start_ws
from training.editing.photo import PhotoOptions, open_encoder
from training.generator import Generator
from training.metrics.portrait_set import read_set, to_float
from training.network_source import BUNDLED, open_network
from training.networks.encoder import Encoder, EncoderConfig

LABELS = label_set("ffhq-mask")
PORTRAITS = Path(__file__).parents[1] / "datasets" / "portraits" / "bundled"
FAST = ("--steps", "3", "--tune", "2", "--set", "start_steps=2", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, a picture larger than its own, and its mask."""
    folder = tmp_path_factory.mktemp("photo")
    torch.manual_seed(0)
    Generator(TINY_GENERATOR).save(folder / "network.safetensors")
    pixels = np.random.RandomState(0).randint(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "me.png")
    mask = np.zeros((48, 48), dtype=np.uint8)
    mask[12:36, 12:36] = LABELS.index("skin")
    write_mask(folder / "mask.png", mask, LABELS)
    return folder


def run(folder: Path, *options: object) -> Result:
    fixed = ("--network", folder / "network.safetensors", "--image", folder / "me.png", *FAST)
    return CliRunner().invoke(main, [str(option) for option in (*fixed, *options)])


def test_picture_becomes_a_scene_that_edit_opens(folder: Path) -> None:
    out = folder / "out"
    result = run(folder, "--mask", folder / "mask.png", "--outdir", out)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        *("latent.npz", "generator.safetensors", "generator.json", "inversion.json"),
        *("portrait.png", "mask.png", "mask_given.png", "views.png"),
    }
    report = json.loads((out / "inversion.json").read_text())
    assert f"{report['edit']} --export-mask {out}/m.png" in result.output
    assert read_mask(out / "mask_given.png", LABELS, 16)[8, 8] == LABELS.index("skin")
    words = report["edit"].split()[2:] + ["--export-mask", str(folder / "m.png"), "--device", "cpu"]
    assert CliRunner().invoke(edit, words).exit_code == 0
    rendered, exported = Image.open(out / "portrait.png"), Image.open(folder / "m_portrait.png")
    # the pose that is printed has four digits
    assert np.abs(np.asarray(rendered, float) - np.asarray(exported, float)).max() <= 2


def test_known_camera_and_no_tuning(folder: Path) -> None:
    out = folder / "known"
    options = (
        "--mask",
        folder / "mask.png",
        "--outdir",
        out,
        "--yaw",
        "0.1",
        "--pitch",
        "-0.1",
        "--tune",
        "0",
    )
    assert run(folder, *options).exit_code == 0
    report = json.loads((out / "inversion.json").read_text())
    assert (report["yaw"], report["pitch"]) == (0.1, -0.1)
    assert report["psnr"] == report["psnr_latent"]
    assert not (out / "generator.safetensors").exists()
    assert "network.safetensors" in report["edit"]


def test_bundled_reader_makes_the_mask(folder: Path) -> None:
    result = run(folder, "--outdir", folder / "read")
    assert result.exit_code == 0 and "reader" in result.output
    assert (folder / "read/mask_given.png").is_file()


def test_mistakes_cost_one_line(folder: Path, tmp_path: Path) -> None:
    def refused(message: str, *options: object) -> None:
        result = run(folder, "--outdir", tmp_path / "out", *options)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert not (tmp_path / "out").exists()

    Image.new("RGB", (20, 30)).save(tmp_path / "tall.png")
    Image.new("L", (20, 30)).save(tmp_path / "tall-mask.png")
    (tmp_path / "text.png").write_text("no picture")
    refused("crop it to a square", "--image", tmp_path / "tall.png")
    refused("not a picture", "--image", tmp_path / "text.png")
    refused("cannot read the picture", "--image", tmp_path / "none.png")
    refused("masks are square", "--mask", tmp_path / "tall-mask.png")
    refused("it is empty", "--outdir", "")
    refused("both --yaw and --pitch", "--yaw", "0.1")
    refused("unknown key 'lr_poes'", "--set", "lr_poes=1")
    Generator(replace(TINY_GENERATOR, labels="catmask-hq")).save(tmp_path / "cat.safetensors")
    refused("--mask is missing", "--network", tmp_path / "cat.safetensors")
    Generator(replace(TINY_GENERATOR, labels="none")).save(tmp_path / "plain.safetensors")
    refused("plain EG3D", "--network", tmp_path / "plain.safetensors")
    assert open_network(folder / "network.safetensors").parts == LABELS.count


def test_encoder_is_used(folder: Path) -> None:
    sizes = EncoderConfig(3 + LABELS.count, 8, TINY_GENERATOR.z_dim, 8, 8)
    still = ("--mask", folder / "mask.png", "--yaw", 0, "--pitch", 0, "--tune", 0, "--set", "lr=1e-8")
    file = folder / "encoder.safetensors"
    Encoder(sizes).save(file)
    found = {}
    for what, options in {"mean": (), "encoded": ("--encoder", file)}.items():
        result = run(folder, *still, *options, "--outdir", folder / what)
        assert result.exit_code == 0, result.output
        found[what] = np.load(folder / what / "latent.npz")["ws"]
    assert np.abs(found["mean"] - found["encoded"]).max() > 0.01


def test_bundled_encoder_reads_the_bundled_generators_people(tmp_path: Path) -> None:
    """Four portraits that it was not trained on, each at least 3 dB nearer than the mean face."""
    generator = open_network(BUNDLED)
    encoder = open_encoder(generator, PhotoOptions(BUNDLED, tmp_path, None, tmp_path, None))
    portraits = read_set(PORTRAITS, "ffhq-mask", 64).take(slice(0, 4))
    target = Target(to_float(portraits.images), portraits.masks)

    def distance(encoder: Encoder | None) -> Tensor:
        with torch.no_grad():
            ws = start_ws(generator, target, encoder, portraits.cameras)
            shown = generator.synthesise(ws, portraits.cameras, deterministic=True)
        return (shown.image - target.image).square().mean((1, 2, 3))

    assert (distance(encoder) < distance(None) / 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 9}, "reads 9 channels"),
        ({"z_dim": 3}, "to 3 numbers"),
        ({"resolution": 32}, "32 pixels"),
    ],
)
def test_encoder_of_another_network_is_refused(folder: Path, change: dict, message: str) -> None:
    sizes = EncoderConfig(3 + LABELS.count, 8, TINY_GENERATOR.z_dim, 8, 8)
    Encoder(replace(sizes, **change)).save(folder / "other.safetensors")
    result = run(folder, "--mask", folder / "mask.png", "--encoder", folder / "other.safetensors")
    assert result.exit_code == 2 and message in result.output, result.output


def test_pictures_that_mean_something_else_are_refused(folder: Path) -> None:
    deep, clear = folder / "deep.png", folder / "clear.png"
    Image.fromarray(np.full((16, 16), 40000, dtype=np.uint16)).save(deep)
    Image.fromarray(np.zeros((16, 16, 4), dtype=np.uint8)).save(clear)
    for picture, message in ((deep, "16 bits"), (clear, "transparent")):
        result = run(folder, "--mask", folder / "mask.png", "--image", picture)
        assert result.exit_code == 2 and message in result.output, result.output


@pytest.mark.parametrize(
    "setting", ["starts=[]", "start_steps=0", "chunk=-5", "mask=-7", "lr=nan", "lr=1e30", "seed=-1"]
)
def test_settings_that_cannot_work_leave_nothing(folder: Path, setting: str) -> None:
    out = folder / setting.replace("=", "-")
    result = run(folder, "--mask", folder / "mask.png", "--outdir", out, "--set", setting)
    assert result.exit_code == 2, result.output
    assert not out.exists() or not list(out.iterdir())


def test_second_inversion_leaves_nothing_of_the_first(folder: Path, monkeypatch) -> None:
    options = ("--mask", folder / "mask.png", "--outdir", folder / "twice", "--yaw", 0, "--pitch", 0)
    assert run(folder, *options).exit_code == 0
    assert (folder / "twice/generator.safetensors").exists()
    again = run(folder, *options, "--tune", 0)
    assert again.exit_code == 0 and f"{folder}/twice-2/views.png" in again.output
    (folder / "twice/inversion.json").unlink()  # written last: a writer that was stopped left the others
    again = run(folder, *options, "--tune", 0)
    assert again.exit_code == 0 and f"{folder}/twice-3/views.png" in again.output
    monkeypatch.setattr("invert.free_folder", lambda wanted, results: wanted)
    assert run(folder, *options, "--tune", 0).exit_code == 0
    assert not list((folder / "twice").glob("generator.*"))


def test_large_pictures_are_read_quietly_up_to_a_limit(folder: Path, monkeypatch) -> None:
    options = ("--mask", folder / "mask.png", "--outdir", folder / "large", "--tune", 0, "--yaw", 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # of the 48 x 48 picture and mask: a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        result = run(folder, *options, "--pitch", 0)
    assert result.exit_code == 0, result.output
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    result = run(folder, *options, "--pitch", 0)
    assert result.exit_code == 2 and "me.png is too large, more than 0 million pixels" in result.output
