"""Latent files: what is accepted, what is refused, and how."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from training.editing.latents import load_latent, save_latent
from training.scene import ws_of_latent


def test_a_saved_latent_comes_back(generator, camera, tmp_path) -> None:
    ws = generator.map(torch.randn(1, 8), camera)
    save_latent(tmp_path / "l.npz", ws=ws[0], camera=camera[0])
    assert torch.equal(load_latent(tmp_path / "l.npz", generator, 0.7), ws)


def test_an_edit_s_generator_takes_the_w_that_was_learned_with_it(generator, tmp_path) -> None:
    before, after = torch.randn(2, generator.synthesis.num_ws, 8)
    save_latent(tmp_path / "l.npz", ws=before, ws_edited=after)
    assert torch.equal(load_latent(tmp_path / "l.npz", generator, 0.7)[0], before)
    assert torch.equal(load_latent(tmp_path / "l.npz", generator, 0.7, of_edit=True)[0], after)


def test_w_is_used_for_all_layers_and_z_is_mapped(generator, tmp_path) -> None:
    w, z = torch.randn(8), torch.randn(1, 8)
    save_latent(tmp_path / "w.npz", w=w)
    ws = load_latent(tmp_path / "w.npz", generator, 0.7)
    assert ws.shape == (1, generator.synthesis.num_ws, 8) and torch.equal(ws[0, -1], w)
    save_latent(tmp_path / "z.npz", z=z)
    assert torch.equal(load_latent(tmp_path / "z.npz", generator, 0.7), ws_of_latent(generator, z, 0.7))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": np.zeros(9, np.float32)}, r"w is float32 \(9,\).*shape \(8,\)"),
        ({"w": np.full(8, np.nan, np.float32)}, "finite"),
        ({"w": np.zeros(8, np.int64)}, "int64"),
        ({"latent": np.zeros(8)}, "it holds latent"),
    ],
)
def test_a_wrong_latent_is_one_line(generator, tmp_path, arrays, message) -> None:
    save_latent(tmp_path / "l.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        load_latent(tmp_path / "l.npz", generator, 0.7)
    assert "\n" not in str(error.value)


def test_what_is_no_latent_file_is_refused_and_no_pickle_is_read(generator, tmp_path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_latent(tmp_path / "absent.npz", generator, 0.7)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="damaged"):
        load_latent(tmp_path / "text.npz", generator, 0.7)
    np.save(tmp_path / "plain.npy", np.zeros(8))
    with pytest.raises(UserError, match="npz"):
        load_latent(tmp_path / "plain.npy", generator, 0.7)
    np.savez(tmp_path / "object.npz", w=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        load_latent(tmp_path / "object.npz", generator, 0.7)
