"""Meshes of fields whose surface is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from training.field import FieldValues
from training.mesh import extract_mesh, write_mesh


class Ball:
    """A ball of radius 0.3 at (0.1, 0, 0), class 1, red above and blue below; with ``wall`` a slab behind."""

    def __init__(self, wall: bool = False) -> None:
        self.wall = wall

    def part_sdf(self, points):
        ball = (points - torch.tensor([0.1, 0.0, 0.0])).norm(dim=-1) - 0.3
        wall = points[..., 2] + 0.4 if self.wall else torch.full_like(ball, 1.0)
        return torch.stack([wall, ball], dim=-1)

    def sdf(self, points):
        return self.part_sdf(points).amin(-1, keepdim=True)

    def density(self, sdf):
        return sdf

    def query(self, points, *, colour, parts):
        up = (points[..., 1:2] > 0).float()
        colours = torch.cat([up, torch.zeros_like(up), 1 - up], dim=-1)
        return FieldValues(self.sdf(points), self.sdf(points), colours, self.part_sdf(points))


def test_a_ball_is_a_ball_the_right_way_out() -> None:
    mesh = extract_mesh(Ball(), 1.0, resolution=48)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.02)  # positive: faces look outwards
    np.testing.assert_allclose(mesh.bounds.mean(axis=0), [0.1, 0, 0], atol=1e-3)


def test_vertex_colours_are_the_fields() -> None:
    mesh = extract_mesh(Ball(), 1.0, resolution=32)
    top = mesh.visual.vertex_colors[mesh.vertices[:, 1] > 0.01]
    assert (top == [255, 0, 0, 255]).all()


def test_the_wall_is_left_out_unless_asked_for() -> None:
    assert extract_mesh(Ball(wall=True), 1.0, resolution=32).bounds[0, 2] > -0.35
    assert extract_mesh(Ball(wall=True), 1.0, resolution=32, background=None).bounds[0, 2] < -0.35


def test_no_surface_is_none() -> None:
    assert extract_mesh(Ball(), 0.1, resolution=8) is None  # a box inside the ball


def test_files_open_again(tmp_path) -> None:
    mesh = extract_mesh(Ball(), 1.0, resolution=24)
    write_mesh(mesh, tmp_path / "m.ply", tmp_path / "m.glb")
    for name in ("m.ply", "m.glb"):
        again = trimesh.load(tmp_path / name, force="mesh")
        assert len(again.faces) == len(mesh.faces)
        assert (again.visual.vertex_colors[:, 3] == 255).all() and again.visual.vertex_colors[
            :, 0
        ].max() == 255
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.glb", "m.ply"]
