"""Grids, states on disk and random states."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from tests.tiny_generator import TINY_GENERATOR
from torch_utils import checkpoint
from training import snapshots
from training.curves import Curves, CurveWriter, read_curves
from training.generator import Generator
from training.rendering.cameras import sample_cameras

CPU = torch.device("cpu")


def test_grid_has_its_rows_and_uses_no_random_numbers(tiny, tmp_path: Path):
    generator = Generator(tiny().generator).eval()
    scenes = snapshots.fixed_scenes(8, sample_cameras(20).numpy(), 0, CPU)
    before = torch.get_rng_state()
    snapshots.write_grid(tmp_path / "grid.png", generator, scenes)
    assert torch.get_rng_state().equal(before)
    grid = Image.open(tmp_path / "grid.png")
    # tiles of 16 pixels shown at 128; three turning heads, the first with mask and normals
    assert grid.size == (snapshots.COLUMNS * 128, (4 + 3 + 2) * 128)


def test_fixed_scenes_are_those_of_the_seed():
    cameras = sample_cameras(20).numpy()
    one, two = (snapshots.fixed_scenes(8, cameras, 7, CPU) for _ in range(2))
    assert one.z.equal(two.z)
    assert np.array_equal(one.camera[0], cameras[0])
    assert np.array_equal(one.camera[-1], cameras[-1])


def test_two_states_are_kept_and_the_newest_whole_one_is_read(tmp_path: Path):
    for images in (1000, 2000, 3000):
        snapshots.save_state(tmp_path, images, {"value": torch.tensor(images), "list": [1, None]})
    names = [path.name for path in snapshots.find_states(tmp_path)]
    assert names == ["training-state-000000002000.safetensors", "training-state-000000003000.safetensors"]
    state, _ = snapshots.load_state(tmp_path, CPU)
    assert state["value"] == 3000
    assert state["list"] == [1, None]
    newest = tmp_path / names[1]
    newest.write_bytes(newest.read_bytes()[:-7])
    state, path = snapshots.load_state(tmp_path, CPU)
    assert state["value"] == 2000
    assert path.name == names[0]


def test_folder_without_state_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="no training-state"):
        snapshots.load_state(tmp_path, CPU)


def test_random_states_return():
    state = snapshots.random_state()

    def draw() -> tuple:
        return torch.rand(1).item(), np.random.rand(), random.random()

    first = draw()
    snapshots.set_random_state(state)
    assert draw() == first


def test_curves_are_means_and_lines_beyond_the_state_are_dropped(tmp_path: Path):
    curves = Curves()
    curves.add("a", torch.tensor(1.0))
    curves.add("a", torch.tensor([2.0, 4.0]))
    assert curves.collect() == {"a": 2.0}
    assert curves.collect() == {}
    writer = CurveWriter(tmp_path, 0)
    for images in (100, 200, 300):
        writer.write(images, {"phase": "test", "a": float(images)})
    writer.close()
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"images": 400, "a')  # the run died while writing
    CurveWriter(tmp_path, 200).close()
    assert [line["images"] for line in read_curves(tmp_path / "stats.jsonl")] == [100, 200]


def test_a_damaged_generator_is_said_in_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    Generator(TINY_GENERATOR).save(whole)
    tensors, meta = checkpoint.load(whole)
    del tensors["decoder.sigmoid_beta"]
    checkpoint.save(tmp_path / "cut.safetensors", tensors, meta)
    with pytest.raises(UserError, match=r"cut.safetensors is damaged, .*sigmoid_beta"):
        Generator.load(tmp_path / "cut.safetensors")
