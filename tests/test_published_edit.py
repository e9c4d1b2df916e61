"""An edit from published files: a pickle, or converted, with prior and ControlNet from standard folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from datasets.labels import label_set, read_mask, write_mask
from edit import main as edit_main
from tests.published_files import write_mate3d
from tests.stable_diffusion_files import write_stable_diffusion
from torch_utils.legacy.__main__ import main as legacy_main
from training.editing.export import load_edit

LABELS = label_set("catmask-hq")
SMALL = (
    "region.voxels=16",
    "keep_points=64",
    "views=[[0.3, 0.0]]",
    "export.frames=2",
    "export.mesh_resolution=24",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_mate3d(folder / "cat.pkl", seed=2)
    write_stable_diffusion(folder)
    return folder


@pytest.mark.parametrize("converted", [True, False], ids=["converted", "pickle"])
def test_an_edit_from_published_files(files: Path, tmp_path: Path, converted: bool) -> None:
    """The pickle works as it is, too; both give the same portrait."""
    network = files / "cat.pkl"
    if converted:
        network = tmp_path / "cat.safetensors"
        done = CliRunner().invoke(legacy_main, ["convert", str(files / "cat.pkl"), str(network)])
        assert done.exit_code == 0, done.output
    fixed = ["--network", str(network), "--device", "cpu", "--seed", "3"]
    mask, out = tmp_path / "m.png", tmp_path / "out"
    exported = CliRunner().invoke(edit_main, [*fixed, "--export-mask", str(mask)])
    assert exported.exit_code == 0, exported.output
    painted = read_mask(mask, LABELS).copy()
    place = painted[2:7, 3:12]
    absent = min(range(1, LABELS.count), key=lambda c: (place == c).sum())
    place[:] = absent
    write_mask(mask, painted, LABELS)
    folders = ["--prior", str(files / "sd"), "--controlnet", str(files / "faces")]
    models = [*folders, "--attention-slicing", "--vae-tiling"]
    what = ["--mask", str(mask), "--prompt", "a cat", "--source-prompt", "a", "--outdir", str(out)]
    sets = [word for setting in SMALL for word in ("--set", setting)]
    result = CliRunner().invoke(edit_main, [*fixed, *models, *what, "--steps", "2", *sets])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 2 and report["classes"] == [LABELS.names[absent]]
    assert all(math.isfinite(value) for step in report["losses"] for value in step.values())
    assert Image.open(out / "after.png").size == (16, 16) and (out / "turntable.mp4").stat().st_size > 0
    portrait = load_edit(out)
    before, after = portrait.source.generator.state_dict(), portrait.learned.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in after if name in before)
