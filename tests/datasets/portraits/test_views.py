"""Several views of one head: a portrait set like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from datasets.masked_images import MaskedImages
from datasets.portraits.views import _angles, draw_head, head_name, main, write_index
from dnnlib.errors import UserError
from training.metrics.geometry import score_consistency, true_sights
from training.metrics.portrait_set import read_set
from training.rendering.cameras import yaw_pitch


def test_views_of_one_head_agree(tmp_path: Path) -> None:
    pytest.importorskip("mitsuba", reason="needs pip install '.[portraits]'")
    yaws = (-0.3, 0.0, 0.4)
    draw_head(seed=0, index=5, yaws=yaws, size=32, samples=1, outdir=tmp_path)
    write_index(tmp_path, [head_name(5)], len(yaws))
    names = MaskedImages(tmp_path, None, "ffhq-mask", 32, extras=("normals", "depth", "caption")).names
    assert names == [f"{head_name(5)}/view{number}.png" for number in range(3)]
    pictures = read_set(tmp_path, "ffhq-mask", 32, depth=True)
    yaw, pitch = yaw_pitch(pictures.cameras)
    assert yaw.tolist() == pytest.approx(yaws, abs=1e-4) and pitch.abs().max() < 1e-4
    assert len(set(pictures.captions)) == 1
    found = score_consistency(true_sights(pictures), None)
    # pixels are 0.02 wide at this size, and hair is thin
    assert found.depth_warp < 0.015 and found.mask_agreement > 0.8


def test_heads_that_are_complete_are_not_drawn_again(tmp_path: Path) -> None:
    for number in range(2):
        record = {"camera": [0.0] * 25, "caption": "a man"}
        path = tmp_path / "attributes" / head_name(3) / f"view{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    result = CliRunner().invoke(
        main, ["--count", "1", "--start", "3", "--yaws", "0,10", "--outdir", str(tmp_path)]
    )
    assert result.exit_code == 0 and "1 heads" in result.output
    assert len(json.loads((tmp_path / "dataset.json").read_text())["labels"]) == 2
    other = CliRunner().invoke(main, ["--count", "1", "--yaws", "0,20", "--outdir", str(tmp_path)])
    assert other.exit_code == 2 and "was begun with" in other.output


@pytest.mark.parametrize("text", ["", "a", "0,100", "1,,2"])
def test_what_are_no_yaws(text: str) -> None:
    with pytest.raises(UserError, match="--yaws"):
        _angles(text)
