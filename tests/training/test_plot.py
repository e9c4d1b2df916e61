"""Learning curves drawn from the lines that a run leaves."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dnnlib.errors import UserError
from training import plot


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_running_median_ignores_a_spike():
    assert plot.running_median([1, 1, 9, 1, 1], 3) == [1, 1, 1, 1, 1]
    assert plot.running_median([1, 2, 3, 4, 5], 3) == [2, 2, 3, 4, 5]


def test_points_leave_out_what_was_not_logged():
    lines = [{"kimg": 1, "a": 2.0}, {"kimg": 2}, {"kimg": 3, "a": None}, {"kimg": 4, "a": 5.0}]
    assert plot.points(lines, "a") == ([1, 4], [2.0, 5.0])


def test_panels_are_those_that_the_run_has(tmp_path):
    write(tmp_path / "stats.jsonl", [{"images": i, "phase": "x", "shape/beta": 0.1} for i in range(4)])
    out = tmp_path / "curves.png"
    assert plot.draw(tmp_path, out) == ["width of the surface: beta"]
    assert Image.open(out).size[0] > 100


def test_a_prior_s_run(tmp_path):
    lines = [{"stage": "autoencoder", "kimg": i, "l1": 0.1} for i in range(3)]
    lines += [{"stage": "diffusion", "kimg": i, "mse_image": 0.1} for i in range(3)]
    write(tmp_path / "curves.jsonl", lines)
    titles = plot.draw(tmp_path, tmp_path / "curves.svg")
    assert titles == ["autoencoder", "diffusion: error of the predicted noise"]


def test_no_curves_is_the_user_s_mistake(tmp_path):
    with pytest.raises(UserError, match="no learning curves"):
        plot.draw(tmp_path, tmp_path / "curves.png")
