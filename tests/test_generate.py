"""generate.py on a tiny random generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dnnlib.errors import UserError
from generate import main
from tests.tiny_generator import TINY_GENERATOR
from training.gallery import parse_seeds, square
from training.generator import Generator


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    generator = Generator(TINY_GENERATOR)
    path = tmp_path_factory.mktemp("models") / "network.safetensors"
    generator.save(path)
    return path


def run(network: Path, *options: object):
    return CliRunner().invoke(main, [str(o) for o in ("--network", network, "--device", "cpu", *options)])


def test_each_seed_has_its_pictures_and_all_have_a_grid(network: Path, tmp_path: Path) -> None:
    result = run(network, "--seeds", "1-2,5", "--outdir", tmp_path / "o")
    assert result.exit_code == 0, result.output
    kinds = ("", "_mask", "_normals", "_depth")
    names = {f"seed{seed:04d}{kind}.png" for seed in (1, 2, 5) for kind in kinds}
    assert {path.name for path in (tmp_path / "o").iterdir()} == names | {"grid.png"}
    assert Image.open(tmp_path / "o" / "grid.png").size == (3 * 130 - 2, 4 * 130 - 2)
    assert Image.open(tmp_path / "o" / "seed0001_mask.png").mode == "P"


def test_the_same_seed_is_the_same_portrait(network: Path, tmp_path: Path) -> None:
    for name, seeds in (("a", "4,7"), ("b", "7")):
        assert run(network, "--seeds", seeds, "--outdir", tmp_path / name).exit_code == 0
    assert (tmp_path / "a" / "seed0007.png").read_bytes() == (tmp_path / "b" / "seed0007.png").read_bytes()


def test_video_and_mesh(network: Path, tmp_path: Path) -> None:
    result = run(network, "--seeds", "0", "--outdir", tmp_path, "--video", "--mesh", "--trunc", "0.5")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "seed0000.mp4").stat().st_size > 1000
    assert (tmp_path / "seed0000.ply").exists() or "no mesh is written" in result.output


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3,7", [0, 1, 2, 3, 7]), ("5", [5]), (" 1 , 2 - 3", [1, 2, 3])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "0-99999999", "1,,2"])
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_a_missing_network_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path / "absent.safetensors", "--seeds", "0")
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1


def test_half_on_a_cpu_is_one_line(network: Path, tmp_path: Path) -> None:
    result = run(network, "--seeds", "0", "--outdir", tmp_path / "o", "--half")
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1
    assert "--half needs a CUDA device" in result.output and not (tmp_path / "o").exists()


def test_what_an_edit_learned_is_shown_with_a_warning(network: Path, tmp_path: Path) -> None:
    learned = tmp_path / "generator.safetensors"
    Generator.load(network).save(learned, extra={"edit": {"network": str(network)}})
    with pytest.warns(UserWarning, match="that an edit learned"):
        assert run(learned, "--seeds", "0", "--outdir", tmp_path / "o").exit_code == 0


def test_an_empty_outdir_is_not_the_current_folder(network: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(network, "--seeds", "0", "--outdir", "")
    assert result.exit_code == 2 and "'--outdir': it is empty" in result.output
    assert not list(tmp_path.iterdir())


def test_many_portraits_are_shown_in_a_square() -> None:
    pictures = [np.full((4, 4, 3), i, dtype=np.uint8) for i in range(14)]
    page = square(pictures)
    assert page.shape == (4 * 4 + 3 * 2, 4 * 4 + 3 * 2, 3)
    assert page[0, 0, 0] == 0 and page[6, 0, 0] == 4 and (page[18:, 12:] == 255).all()
